"""A transaction in pipeline mode. Its statements do not wait for each other, so that it takes few round trips."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg.pq import TransactionStatus

from vidflow.infra.postgres.connection import Connection


@contextmanager
def pipelined_transaction(connection: Connection, begin: LiteralString = "BEGIN") -> Iterator[Connection]:
    """Run the block in one transaction in pipeline mode. Only a fetch waits for the server.

    The connection must be in autocommit mode, outside a transaction, and must not use prepared statements, since statements after a failed
    one would not be prepared. An error of a statement whose result was not fetched is raised at the end of the block, and nothing is
    committed. `connection.transaction()` is not used, because it takes four round trips in a pipeline.
    """
    try:
        with connection.pipeline() as pipeline:
            try:
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(psycopg.Error):  # errors of the statements after the failed one
                    pipeline.sync()
                raise
    finally:
        if not connection.closed and connection.info.transaction_status is not TransactionStatus.IDLE:
            with contextlib.suppress(psycopg.Error):  # if the connection is lost, so is the transaction
                connection.execute("ROLLBACK")
