"""Retention: partitions are created ahead, and expired results and scenarios are removed, during reads and writes."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from tests.integration.delivery import emptied_database, print_figure
from tests.scopes import EVERYTHING

from vidflow.domain.messages import Frame
from vidflow.domain.retention import DAY_MS, RetentionPolicy, TimeRange
from vidflow.infra.postgres import lease as leases
from vidflow.infra.postgres import results, retention, scenarios
from vidflow.infra.postgres.connection import FENCED_TRANSACTION_S, Connection, connect
from vidflow.infra.postgres.lease import LEADER_LEASE
from vidflow.infra.postgres.lease_holder import Lease
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry import metrics
from vidflow.roles.orchestrator import housekeeping
from vidflow.roles.orchestrator.housekeeping import (
    RetentionRound,
    ScanCursors,
    create_missing_partitions,
    run_retention,
    run_round,
)

HOLDER, OTHER_HOLDER = uuid.uuid4(), uuid.uuid4()
DEFAULT_PARTITION = "scenario_results_default"
MONTH = RetentionPolicy(partition_days=1, results_days=30)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with emptied_database(database_url) as connection:
        connection.execute("TRUNCATE results_removed")
        for partition in retention.list_partitions(connection):
            connection.execute(f"DROP TABLE {partition.table}")
        for table in retention.list_detached_partitions(connection):
            connection.execute(f"DROP TABLE {table}")
        yield connection


@pytest.fixture
def lease(connection: Connection, database_url: str) -> Iterator[Lease]:
    term = leases.acquire(connection, LEADER_LEASE, HOLDER)
    assert term is not None
    unrenewed = Lease(database_url, LEADER_LEASE, HOLDER, term, time.monotonic() + 60)  # trusted without renewals
    with closing(unrenewed) as lease:
        yield lease


def insert_aged_scenario(
    connection: Connection, days_ago: int, frames: int = 3, *, ended_days_ago: int | None = None
) -> str:
    """Insert a scenario of that age with results. It is inactive if `ended_days_ago` is given."""
    state = "active" if ended_days_ago is None else "inactive"
    [(uuid_,)] = connection.execute(
        """
        INSERT INTO scenarios (scenario_uuid, state, outcome, epoch, runner, source, model, fps, state_changed_at)
        VALUES (uuidv7(make_interval(days => -%s)), %s, %s, 1, 'r', 's', 'm', 'all', now() - make_interval(days => %s))
     RETURNING scenario_uuid::text
        """,
        (days_ago, state, "completed" if state == "inactive" else None, ended_days_ago or 0),
    ).fetchall()
    scenario_uuid = str(uuid_)
    connection.execute(
        "INSERT INTO scenario_progress (scenario_uuid, epoch, next_frame, closed) VALUES (%s, 1, %s, %s)",
        (scenario_uuid, frames, state == "inactive"),
    )
    connection.execute(
        "INSERT INTO scenario_history (scenario_uuid, epoch, number, attempt, to_state, reason_code, reason)"
        " VALUES (%s, 0, 0, 0, 'x', 'x', 'x')",
        (scenario_uuid,),
    )
    results.add_frames(connection, [frame(scenario_uuid, number) for number in range(frames)])
    return scenario_uuid


def frame(scenario_uuid: str, number: int) -> Frame:
    return Frame(
        scenario_uuid=scenario_uuid, epoch=1, frame_number=number, pts=number, time_s=float(number), width=64, height=48,
        origin_pts=0, time_base="1/10", detections=(), at="",
    )  # fmt: skip


def make_partition(connection: Connection, days_ago: int) -> retention.Partition:
    """Create the partition of that day."""
    from_ms = retention.read_database_ms(connection) // DAY_MS * DAY_MS - days_ago * DAY_MS
    partition = retention.Partition(f"scenario_results_{days_ago:08d}", TimeRange(from_ms, from_ms + DAY_MS))
    with connection.transaction():
        retention.make_partition(connection, partition)
    return partition


def table_of(connection: Connection, scenario_uuid: str) -> set[str]:
    rows = connection.execute(
        "SELECT DISTINCT tableoid::regclass::text FROM scenario_results WHERE scenario_uuid = %s", (scenario_uuid,)
    ).fetchall()
    return {table for (table,) in rows}


def is_removed(connection: Connection, scenario_uuid: str) -> bool:
    page = results.read_result_page(connection, EVERYTHING, scenario_uuid, -1, 10)
    assert page is not None
    assert page.removed == (page.frames == [])
    return page.removed


def count(connection: Connection, table: str) -> int:
    [(number,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(number)


def test_the_results_of_the_first_scenario_are_in_a_partition(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    create_missing_partitions(database_url, lease, RetentionPolicy())
    scenario_uuid = insert_aged_scenario(connection, 0)
    [table] = table_of(connection, scenario_uuid)
    assert table in {partition.table for partition in retention.list_partitions(connection)}
    create_missing_partitions(database_url, lease, RetentionPolicy())
    assert count(connection, DEFAULT_PARTITION) == 0


def test_ranges_begin_after_the_rows_of_the_default_partition(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    scenario_uuid = insert_aged_scenario(connection, 0)
    create_missing_partitions(database_url, lease, MONTH)
    first = retention.list_partitions(connection)[0]
    assert first.time_range.from_ms > retention.time_ms(scenario_uuid)
    assert table_of(connection, scenario_uuid) == {DEFAULT_PARTITION}


def test_a_partition_is_removed_once_all_of_its_scenarios_have_expired(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    for days_ago in (50, 40, 20):
        make_partition(connection, days_ago)
    running, old, young = (
        insert_aged_scenario(connection, 50),
        insert_aged_scenario(connection, 40, ended_days_ago=40),
        insert_aged_scenario(connection, 20, ended_days_ago=20),
    )
    neighbour = insert_aged_scenario(connection, 50, ended_days_ago=50)
    just_ended = insert_aged_scenario(connection, 41, ended_days_ago=10)
    assert run_round(database_url, lease, MONTH)
    assert not run_round(database_url, lease, MONTH)
    assert is_removed(connection, old)
    assert not any(is_removed(connection, scenario) for scenario in (running, young, neighbour, just_ended))
    assert not any("40" in partition.table for partition in retention.list_partitions(connection))
    assert retention.list_detached_partitions(connection) == []


def test_results_are_kept_forever_by_default(connection: Connection, lease: Lease, database_url: str) -> None:
    make_partition(connection, 400)
    old = insert_aged_scenario(connection, 400, ended_days_ago=400)
    assert not run_round(database_url, lease, RetentionPolicy())
    assert not is_removed(connection, old)


def test_expired_rows_of_the_default_partition_are_deleted_in_batches(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    old = insert_aged_scenario(connection, 45, frames=4500, ended_days_ago=45)
    young = insert_aged_scenario(connection, 5, ended_days_ago=5)
    rounds = 0
    while run_round(database_url, lease, MONTH):
        rounds += 1
        page = results.read_result_page(connection, EVERYTHING, old, -1, 10)
        assert page is not None
        assert page.removed
    assert rounds == 3
    assert count(connection, DEFAULT_PARTITION) == 3
    assert not is_removed(connection, young)


def test_a_partition_with_a_long_read_is_removed_later(connection: Connection, lease: Lease, database_url: str) -> None:
    make_partition(connection, 40)
    old = insert_aged_scenario(connection, 40, ended_days_ago=40)
    with connect(database_url, name="test reads") as reader:
        with reader.transaction():
            assert not is_removed(reader, old)
            run_round(database_url, lease, MONTH)
            assert not is_removed(connection, old)
            assert any("40" in partition.table for partition in retention.list_partitions(connection))
        assert run_round(database_url, lease, MONTH)
        assert is_removed(reader, old)


def test_a_partition_detached_by_a_leader_that_died_is_dropped(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    partition = make_partition(connection, 40)
    with connection.transaction():
        retention.detach_partition(connection, partition)
    assert retention.list_detached_partitions(connection) == [f"{partition.table}_removed"]
    run_round(database_url, lease, RetentionPolicy())
    assert retention.list_detached_partitions(connection) == []


def test_a_former_leader_cannot_remove_results(connection: Connection, lease: Lease, database_url: str) -> None:
    make_partition(connection, 40)
    old = insert_aged_scenario(connection, 40, ended_days_ago=40)
    connection.execute("UPDATE lease SET expires_at = clock_timestamp()")
    assert leases.acquire(connection, LEADER_LEASE, OTHER_HOLDER) is not None
    partitions = retention.list_partitions(connection)
    assert not run_round(database_url, lease, MONTH)
    assert retention.list_partitions(connection) == partitions
    assert not is_removed(connection, old)


def test_a_scenario_is_deleted_with_its_history_once_its_results_are_removed(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    policy = RetentionPolicy(partition_days=1, results_days=30, scenarios_days=60)
    make_partition(connection, 70)
    make_partition(connection, 50)
    old, middle = (
        insert_aged_scenario(connection, 70, ended_days_ago=70),
        insert_aged_scenario(connection, 50, ended_days_ago=50),
    )
    never_ran = insert_aged_scenario(connection, 70, frames=0, ended_days_ago=70)
    running = insert_aged_scenario(connection, 80)  # its results stay in the DEFAULT partition
    while run_round(database_url, lease, policy):
        pass
    remaining = {uuid_ for (uuid_,) in connection.execute("SELECT scenario_uuid::text FROM scenarios").fetchall()}
    assert remaining == {middle, running}
    assert old not in remaining
    assert never_ran not in remaining
    for table in ("scenario_history", "scenario_progress"):
        owners = {uuid_ for (uuid_,) in connection.execute(f"SELECT scenario_uuid::text FROM {table}").fetchall()}
        assert owners == remaining


class ResultsLoad:
    """A writer and a reader of results without pauses. `longest_s` is the longest time of one operation."""

    def __init__(self, url: str, watched: list[str]) -> None:
        self._url = url
        self._watched = watched
        self._stop = threading.Event()
        self.longest_s = 0.0
        self.rounds = 0

    def write(self) -> None:
        with connect(self._url, name="test writes") as connection:
            while not self._stop.is_set():
                began_s = time.monotonic()
                with connection.transaction():
                    insert_aged_scenario(connection, 0, frames=50)
                self._record(began_s)

    def read(self) -> None:
        """Check that a completed scenario has all its frames unless they are reported as removed."""
        with connect(self._url, name="test reads") as connection:
            while not self._stop.is_set():
                for scenario_uuid in self._watched:
                    began_s = time.monotonic()
                    page = results.read_result_page(connection, EVERYTHING, scenario_uuid, -1, 100)
                    self._record(began_s)
                    assert page is not None
                    assert page.removed or len(page.frames) == 20

    def _record(self, began_s: float) -> None:
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        self.rounds += 1

    def end(self) -> None:
        self._stop.set()


@pytest.mark.long
def test_partitions_are_removed_during_reads_and_writes(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    ages = range(31, 61)
    for days_ago in ages:
        make_partition(connection, days_ago)
    watched = [insert_aged_scenario(connection, days_ago, frames=20, ended_days_ago=days_ago) for days_ago in ages]
    load = ResultsLoad(database_url, watched)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(load.write), pool.submit(load.read), pool.submit(load.read)]
        try:
            deadline_s = time.monotonic() + 60
            while not all(is_removed(connection, scenario) for scenario in watched) and time.monotonic() < deadline_s:
                run_round(database_url, lease, MONTH)
        finally:
            load.end()
        for future in futures:
            future.result()
    assert all(is_removed(connection, scenario) for scenario in watched)
    assert retention.list_detached_partitions(connection) == []
    print_figure(
        f"{load.rounds} reads and writes while 30 partitions were removed; longest: {load.longest_s * 1000:.0f} ms"
    )


def test_the_thread_ends_when_a_stop_is_requested_or_the_lease_is_lost(lease: Lease, database_url: str) -> None:
    stop = Stop()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(run_retention, database_url, lease, RetentionPolicy(), stop)
        assert not running.done()
        stop.request()
        running.result(timeout=10)
        another = pool.submit(run_retention, database_url, lease, RetentionPolicy(), Stop())
        lease.close()
        another.result(timeout=10)


def failures() -> float:
    return float(metrics.ORCHESTRATOR_REGISTRY.get_sample_value("vidflow_orchestrator_retention_failures_total") or 0)


def test_failures_are_logged_as_warnings_and_counted(
    connection: Connection, lease: Lease, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_partition(connection, 40)
    insert_aged_scenario(connection, 40, ended_days_ago=40)
    failures_before = failures()
    with connect(database_url, name="test reads") as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM scenario_results").fetchall()
        assert not run_round(database_url, lease, MONTH)
    assert not run_round("postgresql://nobody@127.0.0.1:1/none", lease, MONTH)
    assert failures() == failures_before + 2
    warnings = [record for record in caplog.records if record.getMessage() == "retention_failed"]
    assert [record.levelname for record in warnings] == ["WARNING", "WARNING"]
    assert "lock" in warnings[0].vidflow_fields["needs"]  # type: ignore[attr-defined]


def test_a_scan_may_take_longer_than_a_fenced_transaction(
    connection: Connection, lease: Lease, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_partition(connection, 40)
    old = insert_aged_scenario(connection, 40, ended_days_ago=40)
    find_ended_up_to = retention.find_ended_up_to

    def slow(tx: Connection, *arguments: Any) -> Any:
        tx.execute("SELECT pg_sleep(%s)", (FENCED_TRANSACTION_S + 0.3,))
        return find_ended_up_to(tx, *arguments)

    monkeypatch.setattr(retention, "find_ended_up_to", slow)
    assert run_round(database_url, lease, MONTH)
    assert is_removed(connection, old)


def test_scenarios_that_have_ended_are_scanned_once(
    connection: Connection, lease: Lease, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ENDED_SCAN_ROWS", 4)
    make_partition(connection, 40)
    for _ in range(10):
        insert_aged_scenario(connection, 40, frames=1, ended_days_ago=40)
    running = insert_aged_scenario(connection, 40, frames=1)
    later = insert_aged_scenario(connection, 40, frames=1, ended_days_ago=40)
    cursors = ScanCursors()
    assert not run_round(database_url, lease, MONTH, cursors)
    [ended_up_to] = cursors.ended.values()
    assert ended_up_to < running
    connection.execute(
        "UPDATE scenarios SET state = 'inactive', outcome = 'stopped', state_changed_at = now() - interval '35 days' WHERE state = 'active'"
    )
    assert run_round(database_url, lease, MONTH, cursors)
    assert is_removed(connection, later)


def test_scenarios_that_are_kept_do_not_prevent_the_deletion_of_later_ones(
    connection: Connection, lease: Lease, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "EXPIRED_SCAN_ROWS", 2)
    monkeypatch.setattr(housekeeping, "MAX_SCANS_PER_ROUND", 1)
    policy = RetentionPolicy(partition_days=1, results_days=30, scenarios_days=60)
    running = {insert_aged_scenario(connection, 80, frames=0) for _ in range(5)}
    expired = insert_aged_scenario(connection, 70, frames=0, ended_days_ago=70)
    cursors = ScanCursors()
    for _ in range(4):
        run_round(database_url, lease, policy, cursors)
    remaining = {uuid_ for (uuid_,) in connection.execute("SELECT scenario_uuid::text FROM scenarios").fetchall()}
    assert remaining == running
    assert expired not in remaining


def test_a_round_without_the_database_raises_no_error(lease: Lease, database_url: str) -> None:
    assert not run_round("postgresql://nobody@127.0.0.1:1/none", lease, RetentionPolicy())
    with connect(database_url, name="test") as connection:
        assert RetentionRound(connection, lease, RetentionPolicy()).remove_expired() is False


class TestDeletedScenarios:
    """Scenarios that clients have deleted: nothing of them is left, in bounded transactions."""

    def test_everything_of_a_deleted_scenario_is_removed_and_nothing_else(
        self, connection: Connection, lease: Lease, database_url: str
    ) -> None:
        make_partition(connection, 3)
        deleted = [insert_aged_scenario(connection, days_ago, frames=4500, ended_days_ago=1) for days_ago in (3, 8)]
        kept = insert_aged_scenario(connection, 3, ended_days_ago=1)
        for scenario_uuid in (*deleted, kept):
            connection.execute(
                """
                INSERT INTO scenario_gaps (scenario_uuid, epoch, after_frame, from_s, to_s, reason)
                SELECT %s, 1, n, 0, 1, 'corrupt' FROM generate_series(1, 2500) AS n
                """,
                (scenario_uuid,),
            )
        tables = ("scenarios", "scenario_progress", "scenario_history", "scenario_results", "scenario_gaps")
        of_kept = {table: count_of(connection, table, kept) for table in tables}
        for scenario_uuid in deleted:
            assert scenarios.delete_scenario(connection, EVERYTHING, scenario_uuid)
            assert results.read_result_page(connection, EVERYTHING, scenario_uuid, -1, 10) is None
            assert not scenarios.delete_scenario(connection, EVERYTHING, scenario_uuid)
        while run_round(database_url, lease, RetentionPolicy()):
            pass
        for table in tables:
            assert [count_of(connection, table, scenario_uuid) for scenario_uuid in deleted] == [0, 0], table
            assert count_of(connection, table, kept) == of_kept[table]
        assert count(connection, "deleted_scenarios") == 0

    def test_a_transaction_deletes_a_bounded_number_of_rows(self, connection: Connection) -> None:
        scenario_uuid = insert_aged_scenario(connection, 3, frames=25, ended_days_ago=1)
        scenarios.delete_scenario(connection, EVERYTHING, scenario_uuid)
        assert retention.find_deleted_scenario(connection) == scenario_uuid
        left = []
        while retention.delete_rest(connection, scenario_uuid, 10):
            left.append(count_of(connection, "scenario_results", scenario_uuid))
        assert left == [15, 5]
        assert retention.find_deleted_scenario(connection) is None


def count_of(connection: Connection, table: str, scenario_uuid: str) -> int:
    query = f"SELECT count(*) FROM {table} WHERE scenario_uuid = %s"
    [(number,)] = connection.execute(query, (scenario_uuid,)).fetchall()
    return int(number)
