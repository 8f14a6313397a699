"""A runner's state, and how commands and workers change it.

The state holds at most one entry per scenario: running, or ended and kept until the leader sends a forget. It also remembers
the highest epoch seen of each scenario for an hour, so that a late command starts nothing a second time. States are immutable
and can be compared and hashed.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, TypeVar

import msgspec

from vidflow.domain.errors import ErrorInfo, sanitize_text
from vidflow.domain.messages import Command, Deploy, EndReason, Entry, Forget, Ping, Report, StopWork, WorkerWait
from vidflow.domain.report_size import fits_one_more_entry, keep_end

REMEMBER_S: Final = 3600.0
"""How long a seen epoch is remembered: far longer than a copy of a command can be delayed."""
DETAIL_CHARACTERS: Final = 8192
"""How much of the end of a worker's standard error an entry keeps: enough for the stack of a crash in native code, top first."""
DETAIL_BYTES: Final = DETAIL_CHARACTERS + 2048
"""Limit for the same text in a report, where a control character takes six bytes."""

WORKERS_SHARE: Final = 0.8
"""Share of the machine's memory for workers. The rest is for the runner, other servers and the system."""
_LEAST_CAP_BYTES: Final = 2 * 1024**3
"""What a worker with torch and a large video needs, however many slots share the machine."""


class SeenEpoch(msgspec.Struct, frozen=True):
    """The highest epoch seen of a scenario, and when a command last named the scenario (seconds of the caller's clock)."""

    scenario_uuid: str
    epoch: int
    at_s: float


ItemT = TypeVar("ItemT", bound=Entry | SeenEpoch)


class RunnerState(msgspec.Struct, frozen=True):
    """A runner's state. `entries` and `seen_epochs` are sorted by scenario_uuid; `taken` counts commands."""

    capacity: int
    draining: bool = False
    taken: int = 0
    entries: tuple[Entry, ...] = ()
    seen_epochs: tuple[SeenEpoch, ...] = ()

    def entry(self, scenario_uuid: str) -> Entry | None:
        """Return the scenario's entry, or None."""
        return _find_row(self.entries, scenario_uuid)

    def highest_seen_epoch(self, scenario_uuid: str) -> int:
        """Return the highest epoch seen of the scenario, -1 if none is remembered."""
        seen = _find_row(self.seen_epochs, scenario_uuid)
        return -1 if seen is None else seen.epoch

    def has_room_for(self, scenario_uuid: str) -> bool:
        """Return whether a worker may start: the runner is not draining, and other scenarios leave a slot free."""
        busy = sum(entry.is_running for entry in self.entries if entry.scenario_uuid != scenario_uuid)
        return not self.draining and busy < self.capacity

    def can_list(self, scenario_uuid: str) -> bool:
        """Return whether a report has room for an entry of this scenario besides the others."""
        return self.entry(scenario_uuid) is not None or fits_one_more_entry(self.entries)


class NoAction(msgspec.Struct, frozen=True):
    """Nothing to do."""


class Launch(msgspec.Struct, frozen=True):
    """Start a worker, after ending the worker of `replaces_epoch` if there is one."""

    deploy: Deploy
    replaces_epoch: int | None = None


class Finish(msgspec.Struct, frozen=True):
    """Let the worker finish the frames that it is working on and send its end marker. Its entry stays running until the worker ends."""

    scenario_uuid: str
    epoch: int
    reason: EndReason


class Kill(msgspec.Struct, frozen=True):
    """End the worker immediately. Its epoch is outdated and its entry already removed."""

    scenario_uuid: str
    epoch: int


Action = NoAction | Launch | Finish | Kill


def divide_cores(cores: int, workers: int) -> int:
    """Return how many threads the model of each worker may use, at least one."""
    return max(1, cores // max(1, workers))


def default_memory_cap(available_bytes: int, slots: int) -> int:
    """Return the default memory cap of each worker, such that all slots together fit into the machine.

    The cap is at least 2 GiB, or 80 % of the machine if that is less. With many slots, several workers together may therefore
    exhaust the machine, but one alone cannot.
    """
    for_workers = int(available_bytes * WORKERS_SHARE)
    return max(for_workers // slots, min(_LEAST_CAP_BYTES, for_workers))


def apply_command(state: RunnerState, command: Command, now_s: float) -> tuple[RunnerState, Action]:
    """Return the state after the command, and the action to take. Commands may arrive late, twice or never."""
    state = count_command(state)
    match command:
        case Deploy():
            return _deploy(state, command, now_s)
        case StopWork():
            return _stop(state, command, now_s)
        case Forget():
            return _forget(state, command), NoAction()
        case Ping():
            return state, NoAction()


def count_command(state: RunnerState) -> RunnerState:
    """Count a command. A command that cannot be decoded has no other effect."""
    return msgspec.structs.replace(state, taken=state.taken + 1)


def _deploy(state: RunnerState, deploy: Deploy, now_s: float) -> tuple[RunnerState, Action]:
    uuid, epoch = deploy.scenario_uuid, deploy.epoch
    if state.highest_seen_epoch(uuid) >= epoch:
        return _record_epoch(state, uuid, epoch, now_s), NoAction()
    if not state.can_list(uuid):  # treated as lost: the leader sends it again, or to another runner
        return state, NoAction()
    older = state.entry(uuid)
    replaces = older.epoch if older is not None and older.is_running else None
    state, room = _record_epoch(state, uuid, epoch, now_s), state.has_room_for(uuid)
    if not room:
        refused = _put_entry(state, Entry(uuid, epoch, deploy.resume.next_frame, reason=EndReason.REFUSED))
        return refused, NoAction() if replaces is None else Kill(uuid, replaces)
    running = Entry(uuid, epoch, deploy.resume.next_frame, waits_for=WorkerWait.START)
    return _put_entry(state, running), Launch(deploy, replaces)


def _stop(state: RunnerState, stop: StopWork, now_s: float) -> tuple[RunnerState, Action]:
    uuid, epoch = stop.scenario_uuid, stop.epoch
    entry, unseen = state.entry(uuid), state.highest_seen_epoch(uuid) < epoch
    state = _record_epoch(state, uuid, epoch, now_s)
    if entry is not None and entry.is_running and entry.epoch <= epoch:
        return state, Finish(uuid, entry.epoch, EndReason.STOPPED)
    if unseen and state.can_list(uuid):  # a deploy of this epoch that arrives later is outdated
        return _put_entry(state, Entry(uuid, epoch, reason=EndReason.STOPPED)), NoAction()
    return state, NoAction()


def _forget(state: RunnerState, forget: Forget) -> RunnerState:
    entry = state.entry(forget.scenario_uuid)
    if entry is None or entry.is_running or entry.epoch > forget.epoch:
        return state
    return msgspec.structs.replace(state, entries=tuple(other for other in state.entries if other is not entry))


def record_worker_progress(
    state: RunnerState, scenario_uuid: str, epoch: int, next_frame: int, waits_for: WorkerWait
) -> RunnerState:
    """Record which frame the worker sends next and what it waits for. Workers of other epochs are ignored."""
    entry = state.entry(scenario_uuid)
    if entry is None or not entry.is_running or entry.epoch != epoch:
        return state
    return _put_entry(state, msgspec.structs.replace(entry, next_frame=next_frame, waits_for=waits_for))


def record_worker_end(
    state: RunnerState, scenario_uuid: str, epoch: int, reason: EndReason,
    error: ErrorInfo | None = None, *, fatal: bool = False, detail: str | None = None,
) -> RunnerState:  # fmt: skip
    """Record the end of the worker. The entry keeps what it last waited for. Workers of other epochs are ignored."""
    entry = state.entry(scenario_uuid)
    if entry is None or not entry.is_running or entry.epoch != epoch:
        return state
    tail = keep_end(sanitize_text(detail[-DETAIL_CHARACTERS:]), DETAIL_BYTES) if detail else None
    if error is not None:
        error = ErrorInfo(sanitize_text(error.code), sanitize_text(error.message), error.frame_number)
    return _put_entry(state, msgspec.structs.replace(entry, reason=reason, error=error, fatal=fatal, detail=tail))


def drain(state: RunnerState) -> tuple[RunnerState, tuple[Finish, ...]]:
    """Return the draining state, which refuses deploys, and a hand-over request for each running worker."""
    finishes = tuple(
        Finish(entry.scenario_uuid, entry.epoch, EndReason.HANDED_OVER) for entry in state.entries if entry.is_running
    )
    return msgspec.structs.replace(state, draining=True), finishes


def forget_old_epochs(state: RunnerState, now_s: float) -> RunnerState:
    """Forget the seen epochs of scenarios that no command has named for REMEMBER_S and that have no entry."""
    kept = tuple(
        seen
        for seen in state.seen_epochs
        if now_s - seen.at_s < REMEMBER_S or state.entry(seen.scenario_uuid) is not None
    )
    return state if len(kept) == len(state.seen_epochs) else msgspec.structs.replace(state, seen_epochs=kept)


def build_report(state: RunnerState, *, runner: str, pool: str, number: int, version: str) -> Report:
    """Return the report of the state to the leader. `number` counts the runner's reports."""
    return Report(
        runner=runner, pool=pool, number=number, capacity=state.capacity, taken=state.taken, draining=state.draining,
        entries=state.entries, version=version,
    )  # fmt: skip


def is_empty(state: RunnerState) -> bool:
    """Return whether there are no entries, so that a draining runner may exit."""
    return not state.entries


def needs_immediate_report(previous: RunnerState, state: RunnerState) -> bool:
    """Return whether to report the change at once instead of with the next regular report.

    This is so for a command taken, an entry added, removed, ended or past its start, and the start of draining, but not for
    each frame.
    """
    return (
        previous.taken != state.taken
        or previous.draining != state.draining
        or _select_reported_fields(previous) != _select_reported_fields(state)
    )


def _select_reported_fields(state: RunnerState) -> list[tuple[str, int, EndReason | None, bool]]:
    return [
        (entry.scenario_uuid, entry.epoch, entry.reason, entry.waits_for is WorkerWait.START) for entry in state.entries
    ]


def _record_epoch(state: RunnerState, scenario_uuid: str, epoch: int, now_s: float) -> RunnerState:
    highest = max(epoch, state.highest_seen_epoch(scenario_uuid))
    return msgspec.structs.replace(state, seen_epochs=_put(state.seen_epochs, SeenEpoch(scenario_uuid, highest, now_s)))


def _put_entry(state: RunnerState, entry: Entry) -> RunnerState:
    return msgspec.structs.replace(state, entries=_put(state.entries, entry))


def _get_uuid(row: Entry | SeenEpoch) -> str:
    return row.scenario_uuid


def _find_row(rows: tuple[ItemT, ...], scenario_uuid: str) -> ItemT | None:
    index = bisect_left(rows, scenario_uuid, key=_get_uuid)
    return rows[index] if index < len(rows) and rows[index].scenario_uuid == scenario_uuid else None


def _put(rows: tuple[ItemT, ...], row: ItemT) -> tuple[ItemT, ...]:
    index = bisect_left(rows, row.scenario_uuid, key=_get_uuid)
    exists = index < len(rows) and rows[index].scenario_uuid == row.scenario_uuid
    return (*rows[:index], row, *rows[index + exists :])
