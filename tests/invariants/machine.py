"""Hypothesis' state machine over the small world: any step at any moment, and after each one all that must hold. No step of its own."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.invariants.parts import Mode, Runner, Source
from tests.invariants.world import Simulation

EXAMPLES: Final = int(os.environ.get("VIDFLOW_TEST_EXAMPLES", "0"))
"""How many schedules a long run tries; unset: few, and the same ones each time."""
STEPS: Final = int(os.environ.get("VIDFLOW_TEST_STEPS", "50"))
INDEX: Final = st.integers(0, 7)
SOURCES: Final = st.builds(
    Source,
    frames=st.integers(0, 4),
    live=st.booleans(),
    poison=st.sampled_from([frozenset(), frozenset(), frozenset(), frozenset({0}), frozenset({1, 2})]),
    skips=st.booleans(),
    fatal=st.sampled_from([None, None, None, 1]),
)


def explore(examples: int) -> settings:
    """The settings of a machine that tries `examples` schedules by default."""
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
    """Steps of all parts in any order. Subclasses add the faults; the teardown mends everything and waits for the end."""

    MOST_SCENARIOS = 2

    @initialize(source=SOURCES, runners=st.integers(1, 2), capacity=st.integers(1, 2))
    def begin(self, source: Source, runners: int, capacity: int) -> None:
        self.world = Simulation(runners, capacity)
        self.world.init(source)

    def pick_runner(self, index: int) -> Runner:
        runners = list(self.world.runners.values())
        return runners[index % len(runners)]

    def pick_scenario(self, index: int) -> str:
        uuids = list(self.world.sources)
        return uuids[index % len(uuids)]

    def has_workers(self) -> bool:
        return any(True for _ in self.world.workers())

    def pick_worker(self, index: int) -> tuple[Runner, str]:
        workers = list(self.world.workers())
        return workers[index % len(workers)]

    # --- the usual course

    @precondition(lambda self: len(self.world.sources) < self.MOST_SCENARIOS)
    @rule(source=SOURCES)
    def init(self, source: Source) -> None:
        self.world.init(source)

    @rule(index=INDEX)
    def shutdown(self, index: int) -> None:
        self.world.shutdown(self.pick_scenario(index))

    @rule()
    def tick(self) -> None:
        self.world.tick()

    @rule(index=INDEX)
    def tick_beside_a_shutdown(self, index: int) -> None:
        plan = self.world.look()
        self.world.shutdown(self.pick_scenario(index))
        self.world.write(plan)

    @precondition(lambda self: self.world.tables.outbox)
    @rule(index=INDEX)
    def publish(self, index: int) -> None:
        self.world.publish(index)

    @precondition(lambda self: any(runner.commands for runner in self.world.runners.values()))
    @rule(who=INDEX, index=INDEX)
    def take_command(self, who: int, index: int) -> None:
        runners = [runner for runner in self.world.runners.values() if runner.commands]
        self.world.take_command(runners[who % len(runners)], index)

    @precondition(has_workers)
    @rule(index=INDEX)
    def work(self, index: int) -> None:
        self.world.work(*self.pick_worker(index))

    @rule(index=INDEX, most=st.integers(0, 4))
    def store(self, index: int, most: int) -> None:
        self.world.store(self.pick_scenario(index), most)

    @rule(index=INDEX)
    def note_end(self, index: int) -> None:
        self.world.note_end(self.pick_scenario(index))

    @rule()
    def inbox_catches_up(self) -> None:
        self.world.flow_inbox()

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 7.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(steps=st.sampled_from([1, 2, 4, 16]))
    def all_goes_well(self, steps: int) -> None:
        self.world.flow(steps)

    @invariant()
    def all_invariants_hold(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


class WithFaults(Interleavings):
    """Any fault of a process or of a message."""

    @rule(index=INDEX)
    def kill_runner(self, index: int) -> None:
        self.world.kill_runner(self.pick_runner(index))

    @precondition(Interleavings.has_workers)
    @rule(index=INDEX)
    def crash_worker(self, index: int) -> None:
        self.world.crash_worker(*self.pick_worker(index))

    @rule(index=INDEX, mode=st.sampled_from([Mode.CUT, Mode.FROZEN, Mode.DEAF]))
    def trouble(self, index: int, mode: Mode) -> None:
        runner = self.pick_runner(index)
        if runner.mode is Mode.WELL:
            self.world.trouble(runner, mode)

    @rule(index=INDEX)
    def well_again(self, index: int) -> None:
        runner = self.pick_runner(index)
        if runner.mode is not Mode.WELL:
            self.world.trouble(runner, Mode.WELL)

    @rule(index=INDEX)
    def drain_runner(self, index: int) -> None:
        self.world.drain(self.pick_runner(index))

    @rule()
    def another_leads(self) -> None:
        self.world.take_over()

    @rule()
    def kafka_away(self) -> None:
        self.world.kafka_away()

    @rule()
    def kafka_back(self) -> None:
        self.world.kafka_back()

    @rule(who=INDEX, index=INDEX)
    def keep_copy_of_command(self, who: int, index: int) -> None:
        self.world.keep_copy(self.pick_runner(who), index)

    @precondition(lambda self: self.world.late_commands)
    @rule(index=INDEX)
    def late_command_comes(self, index: int) -> None:
        self.world.release_copy(index)

    @rule(who=INDEX, index=INDEX)
    def lose_command(self, who: int, index: int) -> None:
        self.world.lose_command(self.pick_runner(who), index)

    @rule(index=INDEX)
    def keep_copy_of_report(self, index: int) -> None:
        self.world.keep_report(self.pick_runner(index))

    @precondition(lambda self: self.world.late_reports)
    @rule(index=INDEX)
    def late_report_comes(self, index: int) -> None:
        self.world.release_report(index)

    @rule(index=INDEX, back=st.integers(1, 4))
    def inbox_reads_again(self, index: int, back: int) -> None:
        self.world.read_again(self.pick_scenario(index), back)


class WithLosses(WithFaults):
    """Kafka emptied and the database restored, besides."""

    @rule()
    def empty_kafka(self) -> None:
        self.world.empty_kafka()

    @rule()
    def back_up(self) -> None:
        self.world.back_up()

    @precondition(lambda self: self.world.snapshot is not None)
    @rule()
    def restore(self) -> None:
        self.world.restore()
