"""The wall clock of a role, the database or Kafka jumps by hours, forward and back, while scenarios are running."""

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
"""Both exceed one hour, Kafka's own limit for a message from the future."""
SLOTS = 4
NOTICED_S = 20.0
TAKEOVER_LIMIT_S = 20.0
FINISHED_S = 60.0

Clocks = dict[str, Clock]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clocks")


@pytest.fixture(scope="module")
def role_clocks(folder: Path) -> Iterator[Clocks]:
    with movable_clocks(folder / "clocks") as clocks:
        yield clocks


@pytest.fixture(scope="module")
def system(role_clocks: Clocks, folder: Path) -> Iterator[SystemUnderTest]:  # noqa: ARG001 - must be set up first
    with run_system(folder / "data", [workloads.slow(folder, 200)], stack_factory=ClockedStack) as started:
        yield started


@pytest.fixture
def work(system: SystemUnderTest) -> Workload:
    [work] = system.reference_frames
    return work


def occupy_slots(system: SystemUnderTest, work: Workload) -> None:
    """Fill all slots, wait until these scenarios are running, and queue two more."""
    system.wait_until_recovered()
    uuids = [system.create_scenario(work) for _ in range(SLOTS)]
    for uuid in uuids:
        system.wait_until_running(uuid)
    for _ in range(2):
        system.create_scenario(work)


@contextmanager
def reset_after(clock: Clock) -> Iterator[None]:
    try:
        yield
    finally:
        clock.move(0)


def move_clock(clock: Clock, by_s: float) -> None:
    """Move the clock and wait until its program has read the moved time."""
    clock.move(by_s)
    before = clock.shifted_reads
    wait_until(lambda: clock.shifted_reads > before, "the program reads the moved time", NOTICED_S)


def check_recovered(system: SystemUnderTest) -> checks.CheckTotals:
    system.wait_until_recovered()
    return checks.check_all(system)


def move_clock_under_load(system: SystemUnderTest, clock: Clock, work: Workload, *moves_s: float) -> Iterator[float]:
    """Move the clock to each offset and finally back, while scenarios are running and queued. Yield after each move."""
    with reset_after(clock):
        occupy_slots(system, work)
        for by_s in moves_s:
            move_clock(clock, by_s)
            yield by_s
            system.wait_until_running(system.create_scenario(work))


@pytest.mark.parametrize("program", [*ROLES, KAFKA])
def test_invariant_8_a_clock_jump_of_a_program_causes_no_loss(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload, program: str
) -> None:
    for _ in move_clock_under_load(system, role_clocks[program], work, AHEAD_S, BEHIND_S):
        pass
    assert check_recovered(system).losses == 0


def database_is_ahead_by_s(system: SystemUnderTest) -> float:
    with system.connect() as connection:
        [(ahead_s,)] = connection.execute(
            "SELECT extract(epoch FROM clock_timestamp() - %s::timestamptz)::float8", (machine_time(),)
        ).fetchall()
    return float(ahead_s)


def machine_time() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_invariants_4_and_8_a_clock_jump_of_the_database_causes_no_loss(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload
) -> None:
    """Leases, backoffs, the inbox's caught-up times and epochs depend on this clock."""
    for by_s in move_clock_under_load(system, role_clocks[POSTGRES], work, HOUR_S, -HOUR_S):
        assert database_is_ahead_by_s(system) == pytest.approx(by_s, abs=5)
    assert check_recovered(system).losses == 0


def test_invariant_8_a_leader_and_a_relay_killed_while_the_database_clock_steps_back_are_replaced(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload
) -> None:
    """Without a cap, their leases would last for another hour."""
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
            lambda: bool(find_victim(system.processes, Victim.LEADER, chance)),
            "another orchestrator leads",
            TAKEOVER_LIMIT_S,
        )
        system.create_scenario(work)
        assert check_recovered(system).losses == 0
    check_recovered(system)


def test_invariant_8_a_caught_up_time_from_before_the_database_clock_stepped_back_is_ignored(
    system: SystemUnderTest, role_clocks: Clocks, work: Workload
) -> None:
    """By the old clock the inbox has caught up with the next hour, so that finished work would count as lost."""
    with reset_after(role_clocks[POSTGRES]):
        occupy_slots(system, work)
        with frozen(system.processes.pids()["inbox"]):
            move_clock(role_clocks[POSTGRES], -HOUR_S)
            wait_until(lambda: no_worker(system), "all workers have finished", FINISHED_S)
        assert check_recovered(system).losses == 0
    check_recovered(system)


def no_worker(system: SystemUnderTest) -> bool:
    return not any(workers_of(runner) for runner in system.processes.pids()["runner"])
