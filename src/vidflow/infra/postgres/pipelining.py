"""A transaction whose statements do not wait for one another: however far away the server is, few round trips."""

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
    """Run the block in one transaction and in the connection's pipeline mode: only a fetch waits for the server.

    For a connection in autocommit mode that is in no transaction and prepares no statements: what was to be prepared behind one that
    failed would not be. What a statement raised that nothing was fetched of is raised at
    the block's end, and nothing is committed then. (`connection.transaction()` in a pipeline waits four times by itself.)
    """
    try:
        with connection.pipeline() as pipeline:
            try:
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(psycopg.Error):  # of the statements behind the one that failed
                    pipeline.sync()
                raise
    finally:
        if not connection.closed and connection.info.transaction_status is not TransactionStatus.IDLE:
            with contextlib.suppress(psycopg.Error):  # the connection is lost: so is the transaction
                connection.execute("ROLLBACK")
