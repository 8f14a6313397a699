"""What a scenario waits for, in every state and every company."""

from __future__ import annotations

import itertools

import pytest

from vidflow.domain.scenario import State
from vidflow.domain.waiting import ComponentStatus, WaitingFor, find_waiting_for

ALL_THERE = ComponentStatus(leads=True, relays=True, free_slot=True, caught_up=True)
NOBODY = ComponentStatus(leads=False, relays=False, free_slot=False, caught_up=False)


@pytest.mark.parametrize(
    ("state", "due", "around", "expected"),
    [
        (State.INIT_STARTUP, False, NOBODY, WaitingFor.BACKOFF),
        (State.INIT_STARTUP, True, NOBODY, WaitingFor.ORCHESTRATOR),
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
        (State.INIT_STARTUP, True, ALL_THERE, WaitingFor.ORCHESTRATOR),
        (State.IN_STARTUP_PROCESSING, True, ALL_THERE, WaitingFor.START),
        (
            State.IN_STARTUP_PROCESSING,
            True,
            ComponentStatus(leads=True, relays=False, free_slot=True, caught_up=True),
            WaitingFor.RELAY,
        ),
        (State.ACTIVE, True, ALL_THERE, None),
        (
            State.ACTIVE,
            True,
            ComponentStatus(leads=True, relays=True, free_slot=True, caught_up=False),
            WaitingFor.INBOX,
        ),
        (State.INIT_SHUTDOWN, True, ALL_THERE, WaitingFor.ORCHESTRATOR),
        (State.IN_SHUTDOWN_PROCESSING, True, ALL_THERE, WaitingFor.DRAIN),
        (State.IN_SHUTDOWN_PROCESSING, True, NOBODY, WaitingFor.INBOX),
    ],
)
def test_it_waits_for(state: State, due: bool, around: ComponentStatus, expected: WaitingFor | None) -> None:
    assert find_waiting_for(state, due, around) is expected


def test_what_has_ended_waits_for_nothing() -> None:
    for due, *there in itertools.product((False, True), repeat=6):
        assert find_waiting_for(State.INACTIVE, due, ComponentStatus(*there)) is None
