"""The disk of PostgreSQL's data or of Kafka's is full for a while, under a whole vidflow at work."""

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
"""What an empty server keeps there, some of its log, and little more."""
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
    done = [workloads.slow(clips, 300), workloads.sampled(clips, 5)]
    with run_system(disks["kafka"].path.parent, done) as now:
        yield now


@pytest.fixture
def work(system: SystemUnderTest) -> Workload:
    return next(iter(system.reference_frames))


@pytest.fixture
def short(system: SystemUnderTest) -> Workload:
    """What is over at once: many may be let in before the last page is full."""
    return list(system.reference_frames)[1]


@contextmanager
def filled_disk(disk: SmallDisk) -> Iterator[None]:
    disk.fill()
    try:
        yield
    finally:
        disk.release()


def occupy_slots(now: SystemUnderTest, work: Workload) -> None:
    """Fills all slots, lets two more wait; returns once those that run are under way."""
    now.wait_until_recovered()
    uuids = [now.create_scenario(work) for _ in range(4)]
    for uuid in uuids:
        now.wait_until_running(uuid)
    for _ in range(2):
        now.create_scenario(work)


def keep_full(seconds: float) -> None:
    """The time for which a disk is full, which nothing tells."""
    threading.Event().wait(seconds)


def check_recovered(now: SystemUnderTest) -> checks.CheckTotals:
    now.wait_until_recovered()
    return checks.check_all(now)


def refusal(now: SystemUnderTest, work: Workload) -> str | None:
    """The code by which new work is refused; None where it was taken, and where nobody answered."""
    body = {"source": str(work.source), "model": work.model, "fps": work.fps}
    try:
        answer = now.vidflow.http.post("/scenario/init", json=body, timeout=REQUEST_TIMEOUT_S)
    except httpx.TransportError:
        return None
    if answer.status_code == 201:
        now.created[answer.json()["scenario_uuid"]] = work
        return None
    assert answer.status_code == 503
    return str(answer.json()["code"])


def count_outage_lines(now: SystemUnderTest, since: int) -> Counter[tuple[str, str]]:
    """How often which process has said that the database's disk is full, and that it is back."""
    return Counter((match[1], match[2]) for line in now.log_lines[since:] if (match := OUTAGE_LINE.match(line)))


def test_invariants_1_and_8_work_on_a_full_disk_of_the_database_waits_and_finishes(
    system: SystemUnderTest, disks: Disks, work: Workload, short: Workload
) -> None:
    """The tables cannot grow; the log has room in the files that it has."""
    occupy_slots(system, work)
    said = len(system.log_lines)
    with filled_disk(disks["postgres"]):
        wait_until(lambda: refusal(system, short) == "disk_full", "new work is refused", NOTICED_S)
        keep_full(FULL_S)
        wait_until(lambda: refusal(system, short) == "disk_full", "it is refused still", NOTICED_S)
        assert system.processes.pids()["postgres"]
    assert check_recovered(system).losses == 0
    heard = count_outage_lines(system, said)
    assert heard
    assert set(heard.values()) == {1}, heard
    assert {name for name, _ in heard} == {name for name, event in heard if event == "back"}


def test_invariants_1_and_8_a_database_that_died_of_its_full_disk_comes_back_with_room(
    system: SystemUnderTest, disks: Disks, work: Workload
) -> None:
    """Where its log cannot grow, PostgreSQL ends itself, and does not start again."""
    occupy_slots(system, work)
    said = len(system.log_lines)
    with filled_disk(disks["postgres"]):
        wait_until(lambda: log_is_full(system), "the server has died", NOTICED_S)
        keep_full(FULL_S)
        assert system.count_unfinished() is None
        assert refusal(system, work) != "disk_full"
    check_recovered(system)
    assert any("dev: postgres ended" in line for line in system.log_lines[said:])


def log_is_full(now: SystemUnderTest) -> bool:
    """Whether the server has died of a log that needs a file more; lets it begin new files until it does."""
    try:
        with now.connect() as tables:
            for _ in range(MAX_WAL_SEGMENTS):
                tables.execute("SELECT pg_logical_emit_message(true, 'test', 'begins the file')")
                tables.execute("SELECT pg_switch_wal()")
    except psycopg.OperationalError:
        return True
    return False


def test_invariant_8_a_kafka_that_died_of_its_full_disk_comes_back_with_room(
    system: SystemUnderTest, disks: Disks, work: Workload
) -> None:
    """A broker without a folder to write to ends itself; it is started again until it finds room."""
    occupy_slots(system, work)
    said = len(system.log_lines)
    with filled_disk(disks["kafka"]):
        wait_until(
            lambda: any("dev: kafka ended" in line for line in system.log_lines[said:]), "it has died", NOTICED_S
        )
        system.create_scenario(work)
        keep_full(FULL_S)
    check_recovered(system)
