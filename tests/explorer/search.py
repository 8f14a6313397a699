"""Breadth-first search through all states of a world, which finds the shortest trace to a failure. Then liveness, backwards."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from tests.explorer.state import WorldConfig, WorldState, initial
from tests.explorer.state_checks import check_invariants, has_stored_stream, is_done
from tests.explorer.steps import (
    CLIENT_SHUTS_DOWN,
    LEADER_TICKS,
    LEADER_WRITES,
    WorldStep,
    generate_all_steps,
    generate_time_steps,
)
from tests.invariants.simulation_checks import InvariantViolation

from vidflow.domain.errors import IllegalTransition

MAX_STATES = 3_000_000


class Failure(NamedTuple):
    """What does not hold, and the shortest trace to it: each step's label and the state after it."""

    text: str
    trace: tuple[tuple[str, WorldState], ...]


class Exploration(NamedTuple):
    """The result of a search. `complete` is False if it stopped before the last state."""

    world: WorldConfig
    states: int
    transitions: int
    depth: int
    seconds: float
    failure: Failure | None
    complete: bool


class _Graph:
    """The states in the order of discovery, the step that first reached each, and the fair steps between them."""

    def __init__(self, first: WorldState) -> None:
        self.numbers = {first: 0}
        self.states = [first]
        self.parent = array("i", [-1])
        self.label = [""]
        self.depth = array("H", [0])
        self.origins, self.targets = array("I"), array("I")
        self.from_client = bytearray()
        self.sending: list[int] = []
        self.transitions = 0
        self._parts: dict[object, object] = {}

    def add(self, origin: int, step: WorldStep, state: WorldState) -> None:
        self.transitions += 1
        number = self.numbers.get(state)
        if number is None:
            parts = self._parts
            state = WorldState(*(parts.setdefault(part, part) for part in state))  # type: ignore[arg-type]
            number = self.numbers[state] = len(self.states)
            self.states.append(state)
            self.parent.append(origin)
            self.label.append(step.label)
            self.depth.append(self.depth[origin] + 1)
        if step.fair and number != origin:
            self.origins.append(origin)
            self.targets.append(number)
            self.from_client.append(step.label == CLIENT_SHUTS_DOWN)

    def trace_to(self, number: int) -> tuple[tuple[str, WorldState], ...]:
        steps = []
        while number >= 0:
            steps.append((self.label[number], self.states[number]))
            number = self.parent[number]
        return tuple(reversed(steps))

    def find_reaching(self, goals: Iterable[int], *, without_client: bool = False) -> bytearray:
        """Return, for each state, 1 if fair steps lead to one of the goals.

        With `without_client` the path may contain no step of a client.
        """
        count = len(self.states)
        first = array("I", bytes(4 * (count + 1)))
        for target in self.targets:
            first[target + 1] += 1
        for number in range(count):
            first[number + 1] += first[number]
        # The edges sorted by target: those into state n lie at first[n] to first[n + 1].
        position, sources = array("I", first), array("I", bytes(4 * len(self.targets)))
        from_client = bytearray(len(self.targets))
        for origin, target, is_client in zip(self.origins, self.targets, self.from_client, strict=True):
            sources[position[target]], from_client[position[target]] = origin, is_client
            position[target] += 1
        reached, waiting = bytearray(count), list(goals)
        for number in waiting:
            reached[number] = 1
        while waiting:
            number = waiting.pop()
            for edge in range(first[number], first[number + 1]):
                origin = sources[edge]
                if not reached[origin] and not (without_client and from_client[edge]):
                    reached[origin] = 1
                    waiting.append(origin)
        return reached


def explore(world: WorldConfig, max_states: int = MAX_STATES) -> Exploration:
    """Explore all states of the world, or as many as it takes to find a failure."""
    started_s = time.monotonic()
    first = initial(world)
    graph, failure, number = _Graph(first), None, 0
    while number < len(graph.states) <= max_states and failure is None:
        failure = _expand(graph, number, world)
        number += 1
    complete = failure is None and number == len(graph.states)
    if complete:
        failure = _find_liveness_failure(graph, world)
    seconds = time.monotonic() - started_s
    return Exploration(world, len(graph.states), graph.transitions, max(graph.depth), seconds, failure, complete)


def _expand(graph: _Graph, number: int, world: WorldConfig) -> Failure | None:
    """Take every step from a state. Return the first failure."""
    state, ticked = graph.states[number], None
    step = WorldStep("", False, lambda: state)
    try:
        for step in generate_all_steps(state, world):
            after = step.next_state()
            if step.label == LEADER_TICKS:
                ticked = after
            if step.label in {LEADER_TICKS, LEADER_WRITES} and _count_commands(after) > _count_commands(state):
                graph.sending.append(number)
            check_invariants(state, after, world)
            graph.add(number, step, after)
        for step in generate_time_steps(state, ticked or state):
            graph.add(number, step, step.next_state())
    except (InvariantViolation, IllegalTransition) as error:
        return Failure(str(error), (*graph.trace_to(number), (step.label, state)))
    return None


def _count_commands(state: WorldState) -> int:
    return len(state.outbox) + sum(len(runner.commands) for runner in state.runners)


def _find_liveness_failure(graph: _Graph, world: WorldConfig) -> Failure | None:
    """Return the first state from which fair steps do not lead to a final state.

    In a final state all work is done, and no fair steps from it lead to another command.
    """
    sends_later = graph.find_reaching(graph.sending)
    ends = [number for number, state in enumerate(graph.states) if not sends_later[number] and is_done(state)]
    number = graph.find_reaching(ends).find(0)
    if number >= 0:
        return Failure("invariant 7: no fault-free path leads to the end of all work", graph.trace_to(number))
    if world.source.live:
        stored = [number for number, state in enumerate(graph.states) if has_stored_stream(state, world)]
        number = graph.find_reaching(stored, without_client=True).find(0)
        if number >= 0:
            return Failure("invariant 8: a live stream does not continue", graph.trace_to(number))
    return None
