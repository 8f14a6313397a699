"""The wall clock of a role, of the database or of Kafka jumps by hours, forwards and back, while work is under way."""

from __future__ import annotations

import datetime
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults import checks, works
from tests.faults.clocks import KAFKA, POSTGRES, ROLES, Clock, Clocked, clocks
from tests.faults.scene import Scene, scene
from tests.faults.strikes import Victim, aim, frozen, present, workers_of
from tests.faults.works import Work
from tests.integration.embedded import wait_until

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(300)]

HOUR_S = 3600.0
AHEAD_S, BEHIND_S = 2 * HOUR_S, -3 * HOUR_S
"""Kafka's own limit for a message from the future is an hour."""
SLOTS = 4
FELT_S = 20.0
TAKEN_OVER_S = 20.0
WORKED_OFF_S = 60.0

Moved = dict[str, Clock]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clocks")


@pytest.fixture(scope="module")
def moved(folder: Path) -> Iterator[Moved]:
    with clocks(folder / "clocks") as moved:
        yield moved


@pytest.fixture(scope="module")
def now(moved: Moved, folder: Path) -> Iterator[Scene]:  # noqa: ARG001 - what is started has them
    with scene(folder / "data", [works.slow(folder, 200)], made_by=Clocked) as now:
        yield now


@pytest.fixture
def work(now: Scene) -> Work:
    [work] = now.undisturbed
    return work


def busy(now: Scene, work: Work) -> None:
    """Fills all slots, lets two more wait; returns once those that run are under way."""
    now.until_whole()
    uuids = [now.begin(work) for _ in range(SLOTS)]
    for uuid in uuids:
        now.under_way(uuid)
    for _ in range(2):
        now.begin(work)


@contextmanager
def put_right(clock: Clock) -> Iterator[None]:
    try:
        yield
    finally:
        clock.move(0)


def jump(clock: Clock, by_s: float) -> None:
    """The clock jumps, and its program has noticed."""
    clock.move(by_s)
    before = clock.felt
    wait_until(lambda: clock.felt > before, "it is told the moved time", FELT_S)


def holds(now: Scene) -> checks.Sums:
    now.until_whole()
    return checks.all_hold(now)


def jumps(now: Scene, clock: Clock, work: Work, *moves_s: float) -> Iterator[float]:
    """Lets the clock jump to each of these, and back, always while scenarios run and others wait; yields each in midst of it."""
    with put_right(clock):
        busy(now, work)
        for by_s in moves_s:
            jump(clock, by_s)
            yield by_s
            now.under_way(now.begin(work))


@pytest.mark.parametrize("program", [*ROLES, KAFKA])
def test_invariant_8_a_program_whose_clock_jumps_costs_nothing(
    now: Scene, moved: Moved, work: Work, program: str
) -> None:
    for _ in jumps(now, moved[program], work, AHEAD_S, BEHIND_S):
        pass
    assert holds(now).losses == 0


def database_is_ahead_by_s(now: Scene) -> float:
    with now.tables() as tables:
        [(ahead_s,)] = tables.execute(
            "SELECT extract(epoch FROM clock_timestamp() - %s::timestamptz)::float8", (machine_time(),)
        ).fetchall()
    return float(ahead_s)


def machine_time() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_invariants_4_and_8_a_database_whose_clock_jumps_costs_nothing(now: Scene, moved: Moved, work: Work) -> None:
    """Leases end early, or would last for hours; backoffs, the inbox's marks and epochs stand on it."""
    for by_s in jumps(now, moved[POSTGRES], work, HOUR_S, -HOUR_S):
        assert database_is_ahead_by_s(now) == pytest.approx(by_s, abs=5)
    assert holds(now).losses == 0


def test_invariant_8_who_dies_as_the_databases_clock_goes_back_is_replaced_at_once(
    now: Scene, moved: Moved, work: Work
) -> None:
    """Its leases would last for an hour more."""
    chance = random.Random(0)  # noqa: S311
    with put_right(moved[POSTGRES]):
        busy(now, work)
        [leader] = aim(now.parts, Victim.LEADER, chance)
        relay = now.parts.pids()["relay"][0]
        with frozen([leader, relay]):
            jump(moved[POSTGRES], -HOUR_S)
            os.kill(leader, signal.SIGKILL)
            os.kill(relay, signal.SIGKILL)
        wait_until(lambda: bool(present(now.parts, Victim.LEADER, chance)), "another one leads", TAKEN_OVER_S)
        now.begin(work)
        assert holds(now).losses == 0
    holds(now)


def test_invariant_8_what_the_inbox_noted_before_the_databases_clock_went_back_counts_no_more(
    now: Scene, moved: Moved, work: Work
) -> None:
    """By the old clock it has caught up with all that comes within the hour: finished work would count as lost."""
    with put_right(moved[POSTGRES]):
        busy(now, work)
        with frozen(now.parts.pids()["inbox"]):
            jump(moved[POSTGRES], -HOUR_S)
            wait_until(lambda: no_worker(now), "the workers have sent all", WORKED_OFF_S)
        assert holds(now).losses == 0
    holds(now)


def no_worker(now: Scene) -> bool:
    return not any(workers_of(runner) for runner in now.parts.pids()["runner"])
