"""Invariant 1: a scenario that a client knows of is never lost. Its rows and its outbox message commit together or not at all.

Requests to a real api fail in PostgreSQL at a table that they write to: the write fails, the commit fails, or the connection ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.api_server import SOURCE_URL, is_ready, ready_api, wait_until
from tests.integration.delivery import emptied_database

from vidflow.infra.postgres.connection import Connection
from vidflow.settings import ApiOptions


class Fault(StrEnum):
    """What happens to a request that writes to a table."""

    WRITE_FAILS = "a write fails"
    COMMIT_FAILS = "the commit fails"
    CONNECTION_ENDS = "the connection ends"


class Request(NamedTuple):
    """A request for a new scenario, or for the shutdown of the latest one, and the table where a fault occurs."""

    shutdown: bool
    table: str = "outbox"
    fault: Fault | None = None


TABLES = ("scenarios", "scenario_progress", "scenario_history", "outbox")
CREATIONS = [Request(shutdown=False, table=table, fault=fault) for table in TABLES for fault in Fault]
SHUTDOWNS = [
    Request(shutdown=True, table=table, fault=fault)
    for table in ("scenarios", "scenario_history", "outbox")
    for fault in Fault
]
WITHOUT_FAULT = [Request(shutdown=False), Request(shutdown=True)]
SCHEDULES = st.lists(st.sampled_from(WITHOUT_FAULT) | st.sampled_from([*CREATIONS, *SHUTDOWNS]), min_size=2, max_size=8)


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with emptied_database(database_url) as connection:
        yield connection


@contextmanager
def fault_at(connection: Connection, table: str, fault: Fault | None) -> Iterator[None]:
    """Let every transaction that writes to the table fail during the block."""
    if fault is None:
        yield
        return
    effect = "PERFORM pg_terminate_backend(pg_backend_pid())" if fault is Fault.CONNECTION_ENDS else "NULL"
    deferred = fault is Fault.COMMIT_FAILS
    connection.execute(
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {effect}; RAISE EXCEPTION 'fault' USING ERRCODE = 'disk_full'; END $$"
    )
    connection.execute(
        f"CREATE {'CONSTRAINT' if deferred else ''} TRIGGER fail AFTER INSERT OR UPDATE ON {table} "
        f"{'DEFERRABLE INITIALLY DEFERRED' if deferred else ''} FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    try:
        yield
    finally:
        connection.execute("DROP FUNCTION fail CASCADE")


class ClientRecord:
    """What a client sent and what it knows from the answers."""

    def __init__(self, client: httpx.Client, connection: Connection) -> None:
        self._client, self._connection = client, connection
        self.created: list[str] = []
        self.shut_down: set[str] = set()

    def send(self, request: Request) -> httpx.Response | None:
        """Send the request, and wait until the api has recovered from its fault. Return None if there is nothing to shut down."""
        if request.shutdown and not self.created:
            return None
        with fault_at(self._connection, request.table, request.fault):
            response = self._shut_down(self.created[-1]) if request.shutdown else self._create()
        wait_until(lambda: is_ready(self._client), "the api is ready")
        return response

    def _create(self) -> httpx.Response:
        response = self._client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"})
        if response.status_code == 201:
            self.created.append(response.json()["scenario_uuid"])
        return response

    def _shut_down(self, uuid: str) -> httpx.Response:
        response = self._client.post(f"/scenario/{uuid}/shutdown")
        if response.status_code == 200:
            self.shut_down.add(uuid)
        return response

    def check(self) -> None:
        """Every scenario has all its rows and its message, and the tables hold exactly what was confirmed."""
        read = self._read_uuids
        created = sorted(self.created)
        assert read("SELECT scenario_uuid::text FROM scenarios") == created
        assert read("SELECT scenario_uuid::text FROM scenario_progress") == created
        assert read("SELECT scenario_uuid::text FROM scenario_history WHERE number = 0") == created
        assert read("SELECT key FROM outbox WHERE kind = 'start'") == created
        shut_down = sorted(self.shut_down)
        assert read("SELECT scenario_uuid::text FROM scenarios WHERE outcome = 'stopped'") == shut_down
        assert read("SELECT scenario_uuid::text FROM scenario_history WHERE number > 0") == shut_down
        assert read("SELECT key FROM outbox WHERE kind = 'shutdown'") == shut_down

    def _read_uuids(self, query: str) -> list[str]:
        return sorted(uuid for (uuid,) in self._connection.execute(query).fetchall())


@pytest.mark.parametrize("request_", [*CREATIONS, *SHUTDOWNS], ids=lambda request: "-".join(map(str, request)))
def test_a_request_that_fails_is_refused_and_leaves_nothing(
    client: httpx.Client, connection: Connection, request_: Request
) -> None:
    record = ClientRecord(client, connection)
    record.send(Request(shutdown=False))
    response = record.send(request_)
    assert response is not None
    assert response.status_code == 503, response.text
    record.check()


@given(schedule=SCHEDULES)
@settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_was_confirmed_is_stored_completely_in_any_sequence_of_requests_and_faults(
    client: httpx.Client, database_url: str, schedule: list[Request]
) -> None:
    with emptied_database(database_url) as connection:
        record = ClientRecord(client, connection)
        for request in schedule:
            record.send(request)
            record.check()
