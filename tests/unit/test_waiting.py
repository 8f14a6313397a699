"""What a scenario waits for, in every state and with every set of available components."""

from __future__ import annotations

import itertools

import pytest

from vidflow.domain.scenario import State
from vidflow.domain.waiting import ComponentStatus, WaitingFor, find_waiting_for

ALL_AVAILABLE = ComponentStatus(leads=True, relays=True, free_slot=True, caught_up=True)
NONE_AVAILABLE = ComponentStatus(leads=False, relays=False, free_slot=False, caught_up=False)


@pytest.mark.parametrize(
    ("state", "due", "components", "expected"),
    [
        (State.INIT_STARTUP, False, NONE_AVAILABLE, WaitingFor.BACKOFF),
        (State.INIT_STARTUP, True, NONE_AVAILABLE, WaitingFor.ORCHESTRATOR),
        (
            State.INIT_STARTUP,
            True,
            ComponentStatus(leads=True, relays=True, free_slot=False, caught_up=True),
            WaitingFor.RUNNER,
        ),
        (
            State.INIT_STARTUP,
            True,
            ComponentStatus(leads=True, relays=True, free_slot=False, caught_up=True, empty_pool=True),
            WaitingFor.POOL,
        ),
        (State.INIT_STARTUP, True, ALL_AVAILABLE, WaitingFor.ORCHESTRATOR),
        (State.IN_STARTUP_PROCESSING, True, ALL_AVAILABLE, WaitingFor.START),
        (
            State.IN_STARTUP_PROCESSING,
            True,
            ComponentStatus(leads=True, relays=False, free_slot=True, caught_up=True),
            WaitingFor.RELAY,
        ),
        (State.ACTIVE, True, ALL_AVAILABLE, None),
        (
            State.ACTIVE,
            True,
            ComponentStatus(leads=True, relays=True, free_slot=True, caught_up=False),
            WaitingFor.INBOX,
        ),
        (State.INIT_SHUTDOWN, True, ALL_AVAILABLE, WaitingFor.ORCHESTRATOR),
        (State.IN_SHUTDOWN_PROCESSING, True, ALL_AVAILABLE, WaitingFor.DRAIN),
        (State.IN_SHUTDOWN_PROCESSING, True, NONE_AVAILABLE, WaitingFor.INBOX),
    ],
)
def test_what_a_scenario_waits_for(
    state: State, due: bool, components: ComponentStatus, expected: WaitingFor | None
) -> None:
    assert find_waiting_for(state, due=due, components=components) is expected


def test_an_inactive_scenario_waits_for_nothing() -> None:
    for due, *components in itertools.product((False, True), repeat=6):
        assert find_waiting_for(State.INACTIVE, due=due, components=ComponentStatus(*components)) is None
