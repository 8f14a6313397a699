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
from tests.faults import checks, workloads
from tests.faults.clocks import KAFKA, POSTGRES, ROLES, Clock, ClockedStack, movable_clocks
from tests.faults.injection import Victim, find_victim, frozen, wait_for_victim, workers_of
from tests.faults.system_under_test import SystemUnderTest, run_system
from tests.faults.workloads import Workload
from tests.integration.server_owner import wait_until

pytestmark = [pytest.mark.long, pytest.mark.whole, pytest.mark.fault, pytest.mark.timeout(300)]

HOUR_S = 3600.0
AHEAD_S, BEHIND_S = 2 * HOUR_S, -3 * HOUR_S
"""Kafka's own limit for a message from the future is an hour."""
SLOTS = 4
FELT_S = 20.0
TAKEOVER_LIMIT_S = 20.0
WORKED_OFF_S = 60.0

Clocks = dict[str, Clock]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clocks")


@pytest.fixture(scope="module")
def role_clocks(folder: Path) -> Iterator[Clocks]:
    with movable_clocks(folder / "clocks") as moved:
        yield moved


@pytest.fixture(scope="module")
def system(role_clocks: Clocks, folder: Path) -> Iterator[SystemUnderTest]:  # noqa: ARG001 - what is started has them
    with run_system(folder / "data", [workloads.slow(folder, 200)], stack_factory=ClockedStack) as now:
        yield now


@pytest.fixture
def work(system: SystemUnderTest) -> Workload:
    [work] = system.reference_frames
    return work


def occupy_slots(now: SystemUnderTest, work: Workload) -> None:
    """Fills all slots, lets two more wait; returns once those that run are under way."""
    now.wait_until_recovered()
    uuids = [now.create_scenario(work) for _ in range(SLOTS)]
    for uuid in uuids:
        now.wait_until_running(uuid)
    for _ in range(2):
        now.create_scenario(work)


@contextmanager
def reset_after(clock: Clock) -> Iterator[None]:
    try:
        yield
    finally:
        clock.move(0)


def move_clock(clock: Clock, by_s: float) -> None:
    """The clock jumps, and its program has noticed."""
    clock.move(by_s)
    before = clock.shifted_reads
    wait_until(lambda: clock.shifted_reads > before, "it is told the moved time", FELT_S)


def check_recovered(now: SystemUnderTest) -> checks.CheckTotals:
    now.wait_until_recovered()
    return checks.check_all(now)


def move_clock_under_load(now: SystemUnderTest, clock: Clock, work: Workload, *moves_s: float) -> Iterator[float]:
    """Lets the clock jump to each of these, and back, always while scenarios run and others wait; yields each in midst of it."""
    with reset_after(clock):
        occupy_slots(now, work)
        for by_s in moves_s:
            move_clock(clock, by_s)
            yield by_s
            now.wait_until_running(now.create_scenario(work))


@pytest.mark.parametrize("program", [*ROLES, KAFKA])
def test_invariant_8_a_program_whose_clock_jumps_costs_nothing(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload, program: str
) -> None:
    for _ in move_clock_under_load(system, role_clocks[program], work, AHEAD_S, BEHIND_S):
        pass
    assert check_recovered(system).losses == 0


def database_is_ahead_by_s(now: SystemUnderTest) -> float:
    with now.connect() as tables:
        [(ahead_s,)] = tables.execute(
            "SELECT extract(epoch FROM clock_timestamp() - %s::timestamptz)::float8", (machine_time(),)
        ).fetchall()
    return float(ahead_s)


def machine_time() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_invariants_4_and_8_a_database_whose_clock_jumps_costs_nothing(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload
) -> None:
    """Leases end early, or would last for hours; backoffs, the inbox's marks and epochs stand on it."""
    for by_s in move_clock_under_load(system, role_clocks[POSTGRES], work, HOUR_S, -HOUR_S):
        assert database_is_ahead_by_s(system) == pytest.approx(by_s, abs=5)
    assert check_recovered(system).losses == 0


def test_invariant_8_who_dies_as_the_databases_clock_goes_back_is_replaced_at_once(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload
) -> None:
    """Its leases would last for an hour more."""
    chance = random.Random(0)  # noqa: S311
    with reset_after(role_clocks[POSTGRES]):
        occupy_slots(system, work)
        [leader] = wait_for_victim(system.processes, Victim.LEADER, chance)
        relay = system.processes.pids()["relay"][0]
        with frozen([leader, relay]):
            move_clock(role_clocks[POSTGRES], -HOUR_S)
            os.kill(leader, signal.SIGKILL)
            os.kill(relay, signal.SIGKILL)
        wait_until(
            lambda: bool(find_victim(system.processes, Victim.LEADER, chance)), "another one leads", TAKEOVER_LIMIT_S
        )
        system.create_scenario(work)
        assert check_recovered(system).losses == 0
    check_recovered(system)


def test_invariant_8_what_the_inbox_noted_before_the_databases_clock_went_back_counts_no_more(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload
) -> None:
    """By the old clock it has caught up with all that comes within the hour: finished work would count as lost."""
    with reset_after(role_clocks[POSTGRES]):
        occupy_slots(system, work)
        with frozen(system.processes.pids()["inbox"]):
            move_clock(role_clocks[POSTGRES], -HOUR_S)
            wait_until(lambda: no_worker(system), "the workers have sent all", WORKED_OFF_S)
        assert check_recovered(system).losses == 0
    check_recovered(system)


def no_worker(now: SystemUnderTest) -> bool:
    return not any(workers_of(runner) for runner in now.processes.pids()["runner"])
