"""Why a scenario does not move right now, as far as the tables tell: one word for its client. It decides nothing."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from vidflow.domain.scenario import State


class WaitingFor(StrEnum):
    """What the next step waits for: a backoff's end, a leader, a relay, a runner of the scenario's pool, a free slot there, a
    worker's start, its end, the inbox."""

    BACKOFF = "backoff"
    ORCHESTRATOR = "orchestrator"
    RELAY = "relay"
    POOL = "pool"
    RUNNER = "runner"
    START = "start"
    DRAIN = "drain"
    INBOX = "inbox"


class ComponentStatus(msgspec.Struct, frozen=True):
    """What is there to move a scenario: a leader, a relay, a runner with a free slot in its pool, an inbox that has caught up.

    `empty_pool`: the scenario names a pool other than the default one, and no runner of it is there.
    """

    leads: bool
    relays: bool
    free_slot: bool
    caught_up: bool
    empty_pool: bool = False


def find_waiting_for(state: State, due: bool, components: ComponentStatus) -> WaitingFor | None:  # noqa: FBT001 - a fact, no switch
    """What a scenario in `state` waits for; None where it is at work or at its end. `due`: its backoff is over."""
    if state is State.INACTIVE:
        return None
    if state is State.INIT_STARTUP and not due:
        return WaitingFor.BACKOFF
    if state in {State.INIT_STARTUP, State.INIT_SHUTDOWN}:
        if state is State.INIT_STARTUP and components.leads and not components.free_slot:
            return WaitingFor.POOL if components.empty_pool else WaitingFor.RUNNER
        return WaitingFor.ORCHESTRATOR
    if not components.caught_up:
        return WaitingFor.INBOX
    if state is State.ACTIVE:
        return None
    if not components.relays:
        return WaitingFor.RELAY
    return WaitingFor.START if state is State.IN_STARTUP_PROCESSING else WaitingFor.DRAIN
