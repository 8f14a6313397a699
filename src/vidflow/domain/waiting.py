"""What a scenario currently waits for, as shown to its client. Derived from the tables; nothing depends on it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from vidflow.domain.scenario import DEPLOYED, State


class WaitingFor(StrEnum):
    """What the next step of a scenario waits for.

    BACKOFF: its backoff to end. ORCHESTRATOR: a leader. RELAY: a relay. POOL: any runner in its pool. RUNNER: a free slot in
    its pool. START: its worker to start. DRAIN: its worker to end. INBOX: the inbox to catch up.
    SOURCE: its live source, which sends nothing.
    """

    BACKOFF = "backoff"
    ORCHESTRATOR = "orchestrator"
    RELAY = "relay"
    POOL = "pool"
    RUNNER = "runner"
    START = "start"
    DRAIN = "drain"
    INBOX = "inbox"
    SOURCE = "source"


class ComponentStatus(msgspec.Struct, frozen=True):
    """Whether there is a leader, a relay, a free slot in the scenario's pool, and an inbox that has caught up.

    `empty_pool`: the scenario's pool is not the default one and has no runner.
    """

    leads: bool
    relays: bool
    free_slot: bool
    caught_up: bool
    empty_pool: bool = False


def find_waiting_for(
    state: State, *, due: bool, components: ComponentStatus, source_lost: bool = False
) -> WaitingFor | None:
    """Return what a scenario in `state` waits for, None if it is being processed or has ended.

    `due`: its backoff is over. `source_lost`: its worker has reported that its live source sends nothing.
    """
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
    if state is State.ACTIVE or (source_lost and state in DEPLOYED):
        return WaitingFor.SOURCE if source_lost else None
    if not components.relays:
        return WaitingFor.RELAY
    return WaitingFor.START if state is State.IN_STARTUP_PROCESSING else WaitingFor.DRAIN
