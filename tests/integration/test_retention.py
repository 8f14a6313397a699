"""Old results and scenarios go, and partitions are there ahead, while others read and write. Real PostgreSQL."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.integration.delivery import emptied_database, print_figure

from vidflow.domain.messages import Frame
from vidflow.domain.retention import DAY_MS, DEFAULT_PARTITION, PartitionRange, RetentionPolicy
from vidflow.infra.postgres import lease as leases
from vidflow.infra.postgres import predictions, results, retention
from vidflow.infra.postgres.connection import FENCED_TRANSACTION_S, Connection, connect
from vidflow.infra.postgres.lease import Lease
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

ONE, OTHER = uuid.uuid4(), uuid.uuid4()
MONTH = RetentionPolicy(partition_days=1, results_days=30)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with emptied_database(database_url) as connection:
        connection.execute("TRUNCATE results_removed")
        for one in retention.list_partitions(connection):
            connection.execute(f"DROP TABLE {one.table}")
        for table in retention.list_detached_partitions(connection):
            connection.execute(f"DROP TABLE {table}")
        yield connection


@pytest.fixture
def lease(connection: Connection, database_url: str) -> Iterator[Lease]:
    term = leases.acquire(connection, "leader", ONE)
    assert term is not None
    held = Lease(database_url, "leader", ONE, term, time.monotonic() + 60)  # as if it were renewed
    yield held
    held.close()


def insert_aged_scenario(
    tables: Connection, days_ago: int, frames: int = 3, *, ended_days_ago: int | None = None
) -> str:
    """A scenario of that age with results; inactive since then, where that is given."""
    state = "active" if ended_days_ago is None else "inactive"
    [(found,)] = tables.execute(
        """
        INSERT INTO scenarios (scenario_uuid, state, outcome, epoch, runner, source, model, fps, state_changed_at)
        VALUES (uuidv7(make_interval(days => -%s)), %s, %s, 1, 'r', 's', 'm', 'all', now() - make_interval(days => %s))
     RETURNING scenario_uuid::text
        """,
        (days_ago, state, "completed" if state == "inactive" else None, ended_days_ago or 0),
    ).fetchall()
    scenario_uuid = str(found)
    tables.execute(
        "INSERT INTO scenario_progress (scenario_uuid, epoch, next_frame, closed) VALUES (%s, 1, %s, %s)",
        (scenario_uuid, frames, state == "inactive"),
    )
    tables.execute(
        "INSERT INTO scenario_history (scenario_uuid, epoch, number, attempt, to_state, reason) VALUES (%s, 0, 0, 0, 'x', 'x')",
        (scenario_uuid,),
    )
    results.add_frames(tables, [frame(scenario_uuid, number) for number in range(frames)])
    return scenario_uuid


def frame(scenario_uuid: str, number: int) -> Frame:
    return Frame(
        scenario_uuid=scenario_uuid, epoch=1, frame_number=number, pts=number, time_s=float(number), width=64, height=48,
        origin_pts=0, time_base="1/10", detections=(), at="",
    )  # fmt: skip


def make_partition(tables: Connection, days_ago: int) -> PartitionRange:
    """Makes the partition of that day."""
    from_ms = retention.read_database_ms(tables) // DAY_MS * DAY_MS - days_ago * DAY_MS
    one = PartitionRange(f"scenario_results_{days_ago:08d}", from_ms, from_ms + DAY_MS)
    with tables.transaction():
        retention.make_partition(tables, one)
    return one


def table_of(tables: Connection, scenario_uuid: str) -> set[str]:
    rows = tables.execute(
        "SELECT DISTINCT tableoid::regclass::text FROM scenario_results WHERE scenario_uuid = %s", (scenario_uuid,)
    ).fetchall()
    return {table for (table,) in rows}


def is_removed(tables: Connection, scenario_uuid: str) -> bool:
    page = predictions.read_result_page(tables, scenario_uuid, -1, 10)
    assert page is not None
    assert page.removed == (page.frames == [])
    return page.removed


def count(tables: Connection, table: str) -> int:
    [(number,)] = tables.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(number)


def test_results_lie_in_a_partition_from_the_first_scenario_on(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    create_missing_partitions(database_url, lease, RetentionPolicy())
    scenario_uuid = insert_aged_scenario(connection, 0)
    [table] = table_of(connection, scenario_uuid)
    assert table in {one.table for one in retention.list_partitions(connection)}
    create_missing_partitions(database_url, lease, RetentionPolicy())
    assert count(connection, DEFAULT_PARTITION) == 0


def test_where_the_default_partition_has_rows_the_ranges_begin_behind_them(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    scenario_uuid = insert_aged_scenario(connection, 0)
    create_missing_partitions(database_url, lease, MONTH)
    first = retention.list_partitions(connection)[0]
    assert first.from_ms > retention.time_ms(scenario_uuid)
    assert table_of(connection, scenario_uuid) == {DEFAULT_PARTITION}


def test_a_range_goes_once_all_of_its_scenarios_have_ended_long_ago(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    for days_ago in (50, 40, 20):
        make_partition(connection, days_ago)
    running, old, young = (
        insert_aged_scenario(connection, 50),
        insert_aged_scenario(connection, 40, ended_days_ago=40),
        insert_aged_scenario(connection, 20, ended_days_ago=20),
    )
    beside = insert_aged_scenario(connection, 50, ended_days_ago=50)
    just_ended = insert_aged_scenario(connection, 41, ended_days_ago=10)
    assert run_round(database_url, lease, MONTH)
    assert not run_round(database_url, lease, MONTH)
    assert is_removed(connection, old)
    assert not any(is_removed(connection, one) for one in (running, young, beside, just_ended))
    assert not any("40" in one.table for one in retention.list_partitions(connection))
    assert retention.list_detached_partitions(connection) == []


def test_results_are_kept_for_ever_unless_it_is_asked_otherwise(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    make_partition(connection, 400)
    old = insert_aged_scenario(connection, 400, ended_days_ago=400)
    assert not run_round(database_url, lease, RetentionPolicy())
    assert not is_removed(connection, old)


def test_old_rows_of_the_default_partition_go_in_batches(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    old = insert_aged_scenario(connection, 45, frames=4500, ended_days_ago=45)
    young = insert_aged_scenario(connection, 5, ended_days_ago=5)
    rounds = 0
    while run_round(database_url, lease, MONTH):
        rounds += 1
        page = predictions.read_result_page(connection, old, -1, 10)
        assert page is not None
        assert page.removed
    assert rounds == 3
    assert count(connection, DEFAULT_PARTITION) == 3
    assert not is_removed(connection, young)


def test_who_reads_for_long_is_not_waited_for(connection: Connection, lease: Lease, database_url: str) -> None:
    make_partition(connection, 40)
    old = insert_aged_scenario(connection, 40, ended_days_ago=40)
    with connect(database_url, name="test reads") as reader:
        with reader.transaction():
            assert not is_removed(reader, old)
            run_round(database_url, lease, MONTH)
            assert not is_removed(connection, old)
            assert any("40" in one.table for one in retention.list_partitions(connection))
        assert run_round(database_url, lease, MONTH)
        assert is_removed(reader, old)


def test_a_table_that_was_detached_by_a_leader_that_died_is_dropped(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    one = make_partition(connection, 40)
    with connection.transaction():
        retention.detach_partition(connection, one)
    assert retention.list_detached_partitions(connection) == [f"{one.table}_removed"]
    run_round(database_url, lease, RetentionPolicy())
    assert retention.list_detached_partitions(connection) == []


def test_a_former_leader_removes_nothing(connection: Connection, lease: Lease, database_url: str) -> None:
    make_partition(connection, 40)
    old = insert_aged_scenario(connection, 40, ended_days_ago=40)
    connection.execute("UPDATE lease SET expires_at = clock_timestamp()")
    assert leases.acquire(connection, "leader", OTHER) is not None
    before = retention.list_partitions(connection)
    assert not run_round(database_url, lease, MONTH)
    assert retention.list_partitions(connection) == before
    assert not is_removed(connection, old)


def test_a_scenario_goes_with_its_history_once_its_results_are_gone(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    kept = RetentionPolicy(partition_days=1, results_days=30, scenarios_days=60)
    make_partition(connection, 70)
    make_partition(connection, 50)
    old, middle = (
        insert_aged_scenario(connection, 70, ended_days_ago=70),
        insert_aged_scenario(connection, 50, ended_days_ago=50),
    )
    never_ran = insert_aged_scenario(connection, 70, frames=0, ended_days_ago=70)
    running = insert_aged_scenario(connection, 80)  # its rows stay, in the DEFAULT partition
    while run_round(database_url, lease, kept):
        pass
    left = {one for (one,) in connection.execute("SELECT scenario_uuid::text FROM scenarios").fetchall()}
    assert left == {middle, running}
    assert old not in left
    assert never_ran not in left
    for table in ("scenario_history", "scenario_progress"):
        owners = {one for (one,) in connection.execute(f"SELECT scenario_uuid::text FROM {table}").fetchall()}
        assert owners == left


class ResultsLoad:
    """Somebody who stores results and somebody who reads them, without a pause; the longest that one of them waited."""

    def __init__(self, url: str, watched: list[str]) -> None:
        self._url = url
        self._watched = watched
        self._stop = threading.Event()
        self.longest_s = 0.0
        self.rounds = 0

    def write(self) -> None:
        with connect(self._url, name="test writes") as tables:
            while not self._stop.is_set():
                began_s = time.monotonic()
                with tables.transaction():
                    insert_aged_scenario(tables, 0, frames=50)
                self._took(began_s)

    def read(self) -> None:
        """Never finds a completed scenario without its frames, unless they are told to be gone."""
        with connect(self._url, name="test reads") as tables:
            while not self._stop.is_set():
                for one in self._watched:
                    began_s = time.monotonic()
                    page = predictions.read_result_page(tables, one, -1, 100)
                    self._took(began_s)
                    assert page is not None
                    assert page.removed or len(page.frames) == 20

    def _took(self, began_s: float) -> None:
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        self.rounds += 1

    def end(self) -> None:
        self._stop.set()


def test_readers_and_writers_notice_nothing_of_partitions_that_come_and_go(
    connection: Connection, lease: Lease, database_url: str
) -> None:
    ages = range(31, 61)
    for days_ago in ages:
        make_partition(connection, days_ago)
    watched = [insert_aged_scenario(connection, days_ago, frames=20, ended_days_ago=days_ago) for days_ago in ages]
    load = ResultsLoad(database_url, watched)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(load.write), pool.submit(load.read), pool.submit(load.read)]
        try:
            until_s = time.monotonic() + 60
            while not all(is_removed(connection, one) for one in watched) and time.monotonic() < until_s:
                run_round(database_url, lease, MONTH)
        finally:
            load.end()
        for one in running:
            one.result()
    assert all(is_removed(connection, one) for one in watched)
    assert retention.list_detached_partitions(connection) == []
    print_figure(
        f"{load.rounds} reads and writes while 30 partitions went, the longest took {load.longest_s * 1000:.0f} ms"
    )


def test_the_thread_ends_with_the_lease_and_with_a_stop(lease: Lease, database_url: str) -> None:
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


def test_what_goes_wrong_is_a_warning_and_is_counted(
    connection: Connection, lease: Lease, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_partition(connection, 40)
    insert_aged_scenario(connection, 40, ended_days_ago=40)
    before = failures()
    with connect(database_url, name="test reads") as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM scenario_results").fetchall()
        assert not run_round(database_url, lease, MONTH)
    assert not run_round("postgresql://nobody@127.0.0.1:1/none", lease, MONTH)
    assert failures() == before + 2
    warned = [record for record in caplog.records if record.getMessage() == "retention_failed"]
    assert [record.levelname for record in warned] == ["WARNING", "WARNING"]
    assert "lock" in warned[0].vidflow_fields["needs"]  # type: ignore[attr-defined]


def test_a_read_may_take_longer_than_a_fenced_transaction(
    connection: Connection, lease: Lease, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_partition(connection, 40)
    old = insert_aged_scenario(connection, 40, ended_days_ago=40)
    look = retention.find_ended_up_to

    def slow(tx: Connection, *more: Any) -> Any:
        tx.execute("SELECT pg_sleep(%s)", (FENCED_TRANSACTION_S + 0.3,))
        return look(tx, *more)

    monkeypatch.setattr(retention, "find_ended_up_to", slow)
    assert run_round(database_url, lease, MONTH)
    assert is_removed(connection, old)


def test_a_range_is_looked_at_once_but_for_the_first_that_has_not_ended(
    connection: Connection, lease: Lease, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ENDED_SCAN_ROWS", 4)
    make_partition(connection, 40)
    for _ in range(10):
        insert_aged_scenario(connection, 40, frames=1, ended_days_ago=40)
    running = insert_aged_scenario(connection, 40, frames=1)
    later = insert_aged_scenario(connection, 40, frames=1, ended_days_ago=40)
    seen = ScanCursors()
    assert not run_round(database_url, lease, MONTH, seen)
    [upto] = seen.ended.values()
    assert upto < running
    connection.execute(
        "UPDATE scenarios SET state = 'inactive', outcome = 'stopped', state_changed_at = now() - interval '35 days' WHERE state = 'active'"
    )
    assert run_round(database_url, lease, MONTH, seen)
    assert is_removed(connection, later)


def test_scenarios_that_stay_do_not_keep_later_ones_from_going(
    connection: Connection, lease: Lease, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "EXPIRED_SCAN_ROWS", 2)
    monkeypatch.setattr(housekeeping, "MAX_SCANS_PER_ROUND", 1)
    kept = RetentionPolicy(partition_days=1, results_days=30, scenarios_days=60)
    running = {insert_aged_scenario(connection, 80, frames=0) for _ in range(5)}
    gone = insert_aged_scenario(connection, 70, frames=0, ended_days_ago=70)
    seen = ScanCursors()
    for _ in range(4):
        run_round(database_url, lease, kept, seen)
    left = {one for (one,) in connection.execute("SELECT scenario_uuid::text FROM scenarios").fetchall()}
    assert left == running
    assert gone not in left


def test_a_round_without_the_database_ends_without_an_error(lease: Lease, database_url: str) -> None:
    assert not run_round("postgresql://nobody@127.0.0.1:1/none", lease, RetentionPolicy())
    with connect(database_url, name="test") as tables:
        assert RetentionRound(tables, lease, RetentionPolicy()).remove_expired() is False
