"""Hypothesis state machines over the simulation: any step at any moment, and all checks after each step."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import RunnerMode, SimulatedRunner, SimulatedSource

EXAMPLES: Final = int(os.environ.get("VIDFLOW_TEST_EXAMPLES", "0"))
"""Number of schedules of a long run. If unset, few schedules are run, the same ones each time."""
STEPS: Final = int(os.environ.get("VIDFLOW_TEST_STEPS", "50"))
INDEX: Final = st.integers(0, 7)
SOURCES: Final = st.builds(
    SimulatedSource,
    frames=st.integers(0, 4),
    live=st.booleans(),
    poison=st.sampled_from([frozenset(), frozenset(), frozenset(), frozenset({0}), frozenset({1, 2})]),
    skips=st.booleans(),
    fatal=st.sampled_from([None, None, None, 1]),
)


def machine_settings(examples: int) -> settings:
    """Return the settings of a machine that tries `examples` schedules by default."""
    return settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=STEPS,
        derandomize=EXAMPLES == 0,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class Interleavings(RuleBasedStateMachine):
    """Steps of all parts in any order. Subclasses add faults. The teardown ends all faults and waits for every scenario to end."""

    MAX_SCENARIOS = 2

    @initialize(source=SOURCES, runners=st.integers(1, 2), capacity=st.integers(1, 2))
    def start(self, source: SimulatedSource, runners: int, capacity: int) -> None:
        self.simulation = Simulation(runners, capacity)
        self.simulation.init(source)

    def pick_runner(self, index: int) -> SimulatedRunner:
        runners = list(self.simulation.runners.values())
        return runners[index % len(runners)]

    def pick_scenario(self, index: int) -> str:
        uuids = list(self.simulation.sources)
        return uuids[index % len(uuids)]

    def has_workers(self) -> bool:
        return any(True for _ in self.simulation.workers())

    def pick_worker(self, index: int) -> tuple[SimulatedRunner, str]:
        workers = list(self.simulation.workers())
        return workers[index % len(workers)]

    # --- steps without faults

    @precondition(lambda self: len(self.simulation.sources) < self.MAX_SCENARIOS)
    @rule(source=SOURCES)
    def init(self, source: SimulatedSource) -> None:
        self.simulation.init(source)

    @rule(index=INDEX)
    def shutdown(self, index: int) -> None:
        self.simulation.shutdown(self.pick_scenario(index))

    @rule()
    def tick(self) -> None:
        self.simulation.tick()

    @rule(index=INDEX)
    def tick_with_a_concurrent_shutdown(self, index: int) -> None:
        plan = self.simulation.make_plan()
        self.simulation.shutdown(self.pick_scenario(index))
        self.simulation.write_plan(plan)

    @precondition(lambda self: self.simulation.tables.outbox)
    @rule(index=INDEX)
    def publish(self, index: int) -> None:
        self.simulation.publish(index)

    @precondition(lambda self: any(runner.commands for runner in self.simulation.runners.values()))
    @rule(runner=INDEX, index=INDEX)
    def take_command(self, runner: int, index: int) -> None:
        runners = [runner for runner in self.simulation.runners.values() if runner.commands]
        self.simulation.take_command(runners[runner % len(runners)], index)

    @precondition(has_workers)
    @rule(index=INDEX)
    def work(self, index: int) -> None:
        self.simulation.work(*self.pick_worker(index))

    @rule(index=INDEX, limit=st.integers(0, 4))
    def store(self, index: int, limit: int) -> None:
        self.simulation.store(self.pick_scenario(index), limit)

    @rule(index=INDEX)
    def note_end(self, index: int) -> None:
        self.simulation.note_end(self.pick_scenario(index))

    @rule()
    def inbox_catches_up(self) -> None:
        self.simulation.run_inbox()

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 7.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.simulation.pass_time(seconds)

    @rule(steps=st.sampled_from([1, 2, 4, 16]))
    def run_without_faults(self, steps: int) -> None:
        self.simulation.run_rounds(steps)

    @invariant()
    def all_invariants_hold(self) -> None:
        self.simulation.check()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.settle()


class InterleavingsWithFaults(Interleavings):
    """Adds the faults of processes and messages."""

    @rule(index=INDEX)
    def kill_runner(self, index: int) -> None:
        self.simulation.kill_runner(self.pick_runner(index))

    @precondition(Interleavings.has_workers)
    @rule(index=INDEX)
    def crash_worker(self, index: int) -> None:
        self.simulation.crash_worker(*self.pick_worker(index))

    @rule(index=INDEX, mode=st.sampled_from([RunnerMode.CUT_OFF, RunnerMode.FROZEN, RunnerMode.NOT_RECEIVING]))
    def set_mode(self, index: int, mode: RunnerMode) -> None:
        runner = self.pick_runner(index)
        if runner.mode is RunnerMode.HEALTHY:
            self.simulation.set_mode(runner, mode)

    @rule(index=INDEX)
    def heal_runner(self, index: int) -> None:
        runner = self.pick_runner(index)
        if runner.mode is not RunnerMode.HEALTHY:
            self.simulation.set_mode(runner, RunnerMode.HEALTHY)

    @rule(index=INDEX)
    def drain_runner(self, index: int) -> None:
        self.simulation.drain(self.pick_runner(index))

    @rule()
    def take_over(self) -> None:
        self.simulation.take_over()

    @rule()
    def kafka_away(self) -> None:
        self.simulation.kafka_away()

    @rule()
    def kafka_back(self) -> None:
        self.simulation.kafka_back()

    @rule(runner=INDEX, index=INDEX)
    def keep_copy_of_command(self, runner: int, index: int) -> None:
        self.simulation.keep_copy(self.pick_runner(runner), index)

    @precondition(lambda self: self.simulation.late_commands)
    @rule(index=INDEX)
    def deliver_late_command(self, index: int) -> None:
        self.simulation.release_copy(index)

    @rule(runner=INDEX, index=INDEX)
    def lose_command(self, runner: int, index: int) -> None:
        self.simulation.lose_command(self.pick_runner(runner), index)

    @rule(index=INDEX)
    def keep_copy_of_report(self, index: int) -> None:
        self.simulation.keep_report(self.pick_runner(index))

    @precondition(lambda self: self.simulation.late_reports)
    @rule(index=INDEX)
    def deliver_late_report(self, index: int) -> None:
        self.simulation.release_report(index)

    @rule(index=INDEX, back=st.integers(1, 4))
    def inbox_reads_again(self, index: int, back: int) -> None:
        self.simulation.read_again(self.pick_scenario(index), back)


class InterleavingsWithDataLoss(InterleavingsWithFaults):
    """Adds the loss of all topics and the restore of a backup of the database."""

    @rule()
    def empty_kafka(self) -> None:
        self.simulation.empty_kafka()

    @rule()
    def back_up(self) -> None:
        self.simulation.back_up()

    @precondition(lambda self: self.simulation.backup is not None)
    @rule()
    def restore(self) -> None:
        self.simulation.restore()
