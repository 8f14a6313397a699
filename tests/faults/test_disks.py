"""The disk with the data of PostgreSQL or Kafka is full for a while, under a running vidflow."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psycopg
import pytest
from tests.faults import checks, workloads
from tests.faults.system_under_test import REQUEST_TIMEOUT_S, SystemUnderTest, run_system
from tests.faults.workloads import Workload
from tests.integration.disks import SmallDisk, small_disk
from tests.integration.server_owner import wait_until

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(300)]

MEGABYTES = 160
"""Enough for an empty server and some of its log."""
FULL_S = 12.0
NOTICED_S = 60.0
MAX_WAL_SEGMENTS = 20
OUTAGE_LINE = re.compile(r"(\S+): \S+ \w+ outage (disk_full|back) server=PostgreSQL")

Disks = dict[str, SmallDisk]


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    folder = tmp_path_factory.mktemp("disks")
    with (
        small_disk(folder / "postgres", megabytes=MEGABYTES) as postgres,
        small_disk(folder / "kafka", megabytes=MEGABYTES) as kafka,
    ):
        yield {"postgres": postgres, "kafka": kafka}


@pytest.fixture(scope="module")
def system(disks: Disks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    clips = tmp_path_factory.mktemp("clips")
    works = [workloads.slow(clips, 300), workloads.sampled(clips, 5)]
    with run_system(disks["kafka"].path.parent, works) as started:
        yield started


@pytest.fixture
def work(system: SystemUnderTest) -> Workload:
    return next(iter(system.reference_frames))


@pytest.fixture
def short(system: SystemUnderTest) -> Workload:
    """A workload that ends at once: many may be accepted before the last page is full."""
    return list(system.reference_frames)[1]


@contextmanager
def filled_disk(disk: SmallDisk) -> Iterator[None]:
    disk.fill()
    try:
        yield
    finally:
        disk.release()


def occupy_slots(system: SystemUnderTest, work: Workload) -> None:
    """Fill all slots, wait until these scenarios are running, and queue two more."""
    system.wait_until_recovered()
    uuids = [system.create_scenario(work) for _ in range(4)]
    for uuid in uuids:
        system.wait_until_running(uuid)
    for _ in range(2):
        system.create_scenario(work)


def keep_full(seconds: float) -> None:
    """Wait while the disk is full. There is no event to wait for."""
    threading.Event().wait(seconds)


def check_recovered(system: SystemUnderTest) -> checks.CheckTotals:
    system.wait_until_recovered()
    return checks.check_all(system)


def refusal(system: SystemUnderTest, work: Workload) -> str | None:
    """Return the error code by which a new scenario is refused, or None if it was accepted or not answered."""
    body = {"source": str(work.source), "model": work.model, "fps": work.fps}
    try:
        answer = system.vidflow.http.post("/scenario/init", json=body, timeout=REQUEST_TIMEOUT_S)
    except httpx.TransportError:
        return None
    if answer.status_code == 201:
        system.created[answer.json()["scenario_uuid"]] = work
        return None
    assert answer.status_code == 503
    return str(answer.json()["code"])


def count_outage_lines(system: SystemUnderTest, since: int) -> Counter[tuple[str, str]]:
    """Count, by process and log event, the lines about the database's full disk and its recovery."""
    return Counter((match[1], match[2]) for line in system.log_lines[since:] if (match := OUTAGE_LINE.match(line)))


def test_invariants_1_and_8_work_waits_while_the_database_disk_is_full_and_then_finishes(
    system: SystemUnderTest, disks: Disks, work: Workload, short: Workload
) -> None:
    """The tables cannot grow, but the write-ahead log still has space in its existing files."""
    occupy_slots(system, work)
    first_line = len(system.log_lines)
    with filled_disk(disks["postgres"]):
        wait_until(lambda: refusal(system, short) == "disk_full", "new work is refused", NOTICED_S)
        keep_full(FULL_S)
        wait_until(lambda: refusal(system, short) == "disk_full", "new work is still refused", NOTICED_S)
        assert system.processes.pids()["postgres"]
    assert check_recovered(system).losses == 0
    counts = count_outage_lines(system, first_line)
    assert counts
    assert set(counts.values()) == {1}, counts
    assert {name for name, _ in counts} == {name for name, event in counts if event == "back"}


def test_invariants_1_and_8_a_database_that_ended_on_a_full_disk_recovers_once_there_is_space(
    system: SystemUnderTest, disks: Disks, work: Workload
) -> None:
    """If its write-ahead log cannot grow, PostgreSQL ends and cannot start until there is space."""
    occupy_slots(system, work)
    first_line = len(system.log_lines)
    with filled_disk(disks["postgres"]):
        wait_until(lambda: log_is_full(system), "the server has ended", NOTICED_S)
        keep_full(FULL_S)
        assert system.count_unfinished() is None
        assert refusal(system, work) != "disk_full"
    check_recovered(system)
    assert any("dev: postgres ended" in line for line in system.log_lines[first_line:])


def log_is_full(system: SystemUnderTest) -> bool:
    """Return whether the server has ended because its log needs another file. Makes it start new files until it does."""
    try:
        with system.connect() as connection:
            for _ in range(MAX_WAL_SEGMENTS):
                connection.execute("SELECT pg_logical_emit_message(true, 'test', 'starts the file')")
                connection.execute("SELECT pg_switch_wal()")
    except psycopg.OperationalError:
        return True
    return False


def test_invariant_8_a_broker_that_ended_on_a_full_disk_recovers_once_there_is_space(
    system: SystemUnderTest, disks: Disks, work: Workload
) -> None:
    """A broker that cannot write to its folder ends. It is restarted until there is space."""
    occupy_slots(system, work)
    first_line = len(system.log_lines)
    with filled_disk(disks["kafka"]):
        wait_until(
            lambda: any("dev: kafka ended" in line for line in system.log_lines[first_line:]),
            "the broker has ended",
            NOTICED_S,
        )
        system.create_scenario(work)
        keep_full(FULL_S)
    check_recovered(system)
