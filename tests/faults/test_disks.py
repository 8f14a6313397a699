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
from tests.faults import checks, works
from tests.faults.scene import ASK_S, Scene, scene
from tests.faults.works import Work
from tests.integration.disks import SmallDisk, small_disk
from tests.integration.embedded import wait_until

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(300)]

MEGABYTES = 160
"""What an empty server keeps there, some of its log, and little more."""
FULL_S = 12.0
NOTICED_S = 60.0
MOST_LOG_SEGMENTS = 20
TOLD = re.compile(r"(\S+): \S+ \w+ outage (disk_full|back) server=PostgreSQL")

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
def now(disks: Disks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    clips = tmp_path_factory.mktemp("clips")
    done = [works.slow(clips, 300), works.sampled(clips, 5)]
    with scene(disks["kafka"].path.parent, done) as now:
        yield now


@pytest.fixture
def work(now: Scene) -> Work:
    return next(iter(now.undisturbed))


@pytest.fixture
def short(now: Scene) -> Work:
    """What is over at once: many may be let in before the last page is full."""
    return list(now.undisturbed)[1]


@contextmanager
def full(disk: SmallDisk) -> Iterator[None]:
    disk.fill()
    try:
        yield
    finally:
        disk.make_room()


def busy(now: Scene, work: Work) -> None:
    """Fills all slots, lets two more wait; returns once those that run are under way."""
    now.until_whole()
    uuids = [now.begin(work) for _ in range(4)]
    for uuid in uuids:
        now.under_way(uuid)
    for _ in range(2):
        now.begin(work)


def stays_so(seconds: float) -> None:
    """The time for which a disk is full, which nothing tells."""
    threading.Event().wait(seconds)


def holds(now: Scene) -> checks.Sums:
    now.until_whole()
    return checks.all_hold(now)


def refusal(now: Scene, work: Work) -> str | None:
    """The code by which new work is refused; None where it was taken, and where nobody answered."""
    body = {"source": str(work.source), "model": work.model, "fps": work.fps}
    try:
        answer = now.vidflow.http.post("/scenario/init", json=body, timeout=ASK_S)
    except httpx.TransportError:
        return None
    if answer.status_code == 201:
        now.born[answer.json()["scenario_uuid"]] = work
        return None
    assert answer.status_code == 503
    return str(answer.json()["code"])


def told(now: Scene, since: int) -> Counter[tuple[str, str]]:
    """How often which process has said that the database's disk is full, and that it is back."""
    return Counter((match[1], match[2]) for line in now.said[since:] if (match := TOLD.match(line)))


def test_invariants_1_and_8_work_on_a_full_disk_of_the_database_waits_and_finishes(
    now: Scene, disks: Disks, work: Work, short: Work
) -> None:
    """The tables cannot grow; the log has room in the files that it has."""
    busy(now, work)
    said = len(now.said)
    with full(disks["postgres"]):
        wait_until(lambda: refusal(now, short) == "disk_full", "new work is refused", NOTICED_S)
        stays_so(FULL_S)
        wait_until(lambda: refusal(now, short) == "disk_full", "it is refused still", NOTICED_S)
        assert now.parts.pids()["postgres"]
    assert holds(now).losses == 0
    heard = told(now, said)
    assert heard
    assert set(heard.values()) == {1}, heard
    assert {name for name, _ in heard} == {name for name, event in heard if event == "back"}


def test_invariants_1_and_8_a_database_that_died_of_its_full_disk_comes_back_with_room(
    now: Scene, disks: Disks, work: Work
) -> None:
    """Where its log cannot grow, PostgreSQL ends itself, and does not start again."""
    busy(now, work)
    said = len(now.said)
    with full(disks["postgres"]):
        wait_until(lambda: log_is_full(now), "the server has died", NOTICED_S)
        stays_so(FULL_S)
        assert now.unfinished() is None
        assert refusal(now, work) != "disk_full"
    holds(now)
    assert any("dev: postgres ended" in line for line in now.said[said:])


def log_is_full(now: Scene) -> bool:
    """Whether the server has died of a log that needs a file more; lets it begin new files until it does."""
    try:
        with now.tables() as tables:
            for _ in range(MOST_LOG_SEGMENTS):
                tables.execute("SELECT pg_logical_emit_message(true, 'test', 'begins the file')")
                tables.execute("SELECT pg_switch_wal()")
    except psycopg.OperationalError:
        return True
    return False


def test_invariant_8_a_kafka_that_died_of_its_full_disk_comes_back_with_room(
    now: Scene, disks: Disks, work: Work
) -> None:
    """A broker without a folder to write to ends itself; it is started again until it finds room."""
    busy(now, work)
    said = len(now.said)
    with full(disks["kafka"]):
        wait_until(lambda: any("dev: kafka ended" in line for line in now.said[said:]), "it has died", NOTICED_S)
        now.begin(work)
        stays_so(FULL_S)
    holds(now)
