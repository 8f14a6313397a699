"""What a runner makes of a command and of what happens to its workers: its charge. Not how a worker is started or ended.

A charge holds at most one entry for each scenario: running, or ended and kept until the leader says forget. Beside them it
remembers, for an hour, the highest epoch that it has seen of each scenario, so that a late command starts nothing again.
All that it is can be compared and hashed; time is passed in.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, TypeVar

import msgspec

from vidflow.domain.errors import ErrorInfo, sanitize_text
from vidflow.domain.messages import Command, Deploy, EndReason, Entry, Forget, Ping, Report, StopWork, WorkerWait
from vidflow.domain.report_size import fits_one_more_entry, keep_end

REMEMBER_S: Final = 3600.0
"""How long a seen epoch is remembered: far longer than any copy of a command is late."""
DETAIL_CHARACTERS: Final = 8192
"""What an entry keeps of a worker's last words: enough for the stack of a crash in native code, whose top stands first."""
DETAIL_BYTES: Final = DETAIL_CHARACTERS + 2048
"""And what that may take in a report: control characters take six bytes each."""


_WORKERS_SHARE: Final = 0.8
"""Of a machine's memory: the rest is for the runner, the servers beside it and the system."""
_LEAST_CAP_BYTES: Final = 2 * 1024**3
"""A worker with torch and a large video needs so much, however many slots share the machine."""


class SeenEpoch(msgspec.Struct, frozen=True):
    """The highest epoch seen of a scenario, and when a command last named the scenario (seconds of the caller's clock)."""

    scenario_uuid: str
    epoch: int
    at_s: float


ItemT = TypeVar("ItemT", bound=Entry | SeenEpoch)


class RunnerState(msgspec.Struct, frozen=True):
    """All that a runner has in its charge. `entries` and `seen_epochs` are in the order of their uuids; `taken` counts commands."""

    capacity: int
    draining: bool = False
    taken: int = 0
    entries: tuple[Entry, ...] = ()
    seen_epochs: tuple[SeenEpoch, ...] = ()

    def entry(self, scenario_uuid: str) -> Entry | None:
        """The scenario's entry, None where it has none."""
        return _find_row(self.entries, scenario_uuid)

    def highest_seen_epoch(self, scenario_uuid: str) -> int:
        """The highest epoch seen of the scenario, -1 where none is remembered."""
        seen = _find_row(self.seen_epochs, scenario_uuid)
        return -1 if seen is None else seen.epoch

    def has_room_for(self, scenario_uuid: str) -> bool:
        """Whether a worker may start for it: not draining, and a slot free beside the one that the scenario itself holds."""
        busy = sum(entry.is_running for entry in self.entries if entry.scenario_uuid != scenario_uuid)
        return not self.draining and busy < self.capacity

    def can_list(self, scenario_uuid: str) -> bool:
        """Return whether a report has a place for an entry of this scenario beside those of the others."""
        return self.entry(scenario_uuid) is not None or fits_one_more_entry(self.entries)


class NoAction(msgspec.Struct, frozen=True):
    """There is nothing to do."""


class Launch(msgspec.Struct, frozen=True):
    """Start a worker, once the one of `replaces_epoch` has been ended, where there is one."""

    deploy: Deploy
    replaces_epoch: int | None = None


class Finish(msgspec.Struct, frozen=True):
    """Let the worker finish what it has in hand and send its end marker. Its entry turns ended once it has ended."""

    scenario_uuid: str
    epoch: int
    reason: EndReason


class Kill(msgspec.Struct, frozen=True):
    """End the worker at once: its epoch counts no more, and its entry is gone already."""

    scenario_uuid: str
    epoch: int


Action = NoAction | Launch | Finish | Kill


def default_memory_cap(available_bytes: int, slots: int) -> int:
    """Return the memory cap of each worker where nobody sets one: all slots together stay within the machine.

    With many slots it is 2 GiB all the same, so that one worker alone cannot exhaust the machine but several may.
    """
    for_workers = int(available_bytes * _WORKERS_SHARE)
    return max(for_workers // slots, min(_LEAST_CAP_BYTES, for_workers))


def apply_command(charge: RunnerState, command: Command, now_s: float) -> tuple[RunnerState, Action]:
    """What the command makes of the charge, and what is to be done. A command may come late, twice or never."""
    charge = count_command(charge)
    match command:
        case Deploy():
            return _deploy(charge, command, now_s)
        case StopWork():
            return _stop(charge, command, now_s)
        case Forget():
            return _forget(charge, command), NoAction()
        case Ping():
            return charge, NoAction()


def count_command(charge: RunnerState) -> RunnerState:
    """The charge with one more command taken: for one that cannot be read this is all that becomes of it."""
    return msgspec.structs.replace(charge, taken=charge.taken + 1)


def _deploy(charge: RunnerState, deploy: Deploy, now_s: float) -> tuple[RunnerState, Action]:
    uuid, epoch = deploy.scenario_uuid, deploy.epoch
    if charge.highest_seen_epoch(uuid) >= epoch:
        return _record_epoch(charge, uuid, epoch, now_s), NoAction()
    if not charge.can_list(uuid):  # as if it were lost: it is given again, or to another runner
        return charge, NoAction()
    older = charge.entry(uuid)
    replaces = older.epoch if older is not None and older.is_running else None
    charge, room = _record_epoch(charge, uuid, epoch, now_s), charge.has_room_for(uuid)
    if not room:
        refused = _put_entry(charge, Entry(uuid, epoch, deploy.resume.next_frame, reason=EndReason.REFUSED))
        return refused, NoAction() if replaces is None else Kill(uuid, replaces)
    running = Entry(uuid, epoch, deploy.resume.next_frame, waits_for=WorkerWait.START)
    return _put_entry(charge, running), Launch(deploy, replaces)


def _stop(charge: RunnerState, stop: StopWork, now_s: float) -> tuple[RunnerState, Action]:
    uuid, epoch = stop.scenario_uuid, stop.epoch
    entry, unseen = charge.entry(uuid), charge.highest_seen_epoch(uuid) < epoch
    charge = _record_epoch(charge, uuid, epoch, now_s)
    if entry is not None and entry.is_running and entry.epoch <= epoch:
        return charge, Finish(uuid, entry.epoch, EndReason.STOPPED)
    if unseen and charge.can_list(uuid):  # so that its deploy, should it come, is old
        return _put_entry(charge, Entry(uuid, epoch, reason=EndReason.STOPPED)), NoAction()
    return charge, NoAction()


def _forget(charge: RunnerState, forget: Forget) -> RunnerState:
    entry = charge.entry(forget.scenario_uuid)
    if entry is None or entry.is_running or entry.epoch > forget.epoch:
        return charge
    return msgspec.structs.replace(charge, entries=tuple(other for other in charge.entries if other is not entry))


def record_worker_progress(
    charge: RunnerState, scenario_uuid: str, epoch: int, next_frame: int, waits_for: WorkerWait
) -> RunnerState:
    """The worker of this epoch will send `next_frame` next and waits for `waits_for`. Any other epoch's word is ignored."""
    entry = charge.entry(scenario_uuid)
    if entry is None or not entry.is_running or entry.epoch != epoch:
        return charge
    return _put_entry(charge, msgspec.structs.replace(entry, next_frame=next_frame, waits_for=waits_for))


def record_worker_end(
    charge: RunnerState, scenario_uuid: str, epoch: int, reason: EndReason,
    error: ErrorInfo | None = None, *, fatal: bool = False, detail: str | None = None,
) -> RunnerState:  # fmt: skip
    """The worker of this epoch has ended. The entry keeps what it waited for last; any other epoch's end is ignored."""
    entry = charge.entry(scenario_uuid)
    if entry is None or not entry.is_running or entry.epoch != epoch:
        return charge
    tail = keep_end(sanitize_text(detail[-DETAIL_CHARACTERS:]), DETAIL_BYTES) if detail else None
    if error is not None:
        error = ErrorInfo(sanitize_text(error.code), sanitize_text(error.message), error.frame_number)
    return _put_entry(charge, msgspec.structs.replace(entry, reason=reason, error=error, fatal=fatal, detail=tail))


def drain(charge: RunnerState) -> tuple[RunnerState, tuple[Finish, ...]]:
    """The charge that takes no deploy any more, and its workers, which are to hand over."""
    finish = tuple(
        Finish(entry.scenario_uuid, entry.epoch, EndReason.HANDED_OVER) for entry in charge.entries if entry.is_running
    )
    return msgspec.structs.replace(charge, draining=True), finish


def forget_old_epochs(charge: RunnerState, now_s: float) -> RunnerState:
    """The charge without the seen epochs that no command has named for an hour, those of its entries excepted."""
    kept = tuple(
        seen
        for seen in charge.seen_epochs
        if now_s - seen.at_s < REMEMBER_S or charge.entry(seen.scenario_uuid) is not None
    )
    return charge if len(kept) == len(charge.seen_epochs) else msgspec.structs.replace(charge, seen_epochs=kept)


def build_report(charge: RunnerState, *, runner: str, pool: str, number: int, version: str) -> Report:
    """All that the runner has in its charge, as it is told to the leader. `number` counts its reports."""
    return Report(
        runner=runner, pool=pool, number=number, capacity=charge.capacity, taken=charge.taken, draining=charge.draining,
        entries=charge.entries, version=version,
    )  # fmt: skip


def is_empty(charge: RunnerState) -> bool:
    """Whether nothing is listed: what a draining runner waits for."""
    return not charge.entries


def needs_immediate_report(before: RunnerState, after: RunnerState) -> bool:
    """Whether the leader should hear of the change at once, and not with the next report.

    News is an entry that came, went, ended or did its first frame, an answer to a ping, and the draining; not each frame.
    """
    return (
        before.taken != after.taken
        or before.draining != after.draining
        or _select_reported_fields(before) != _select_reported_fields(after)
    )


def _select_reported_fields(charge: RunnerState) -> list[tuple[str, int, EndReason | None, bool]]:
    return [
        (entry.scenario_uuid, entry.epoch, entry.reason, entry.waits_for is WorkerWait.START)
        for entry in charge.entries
    ]


def _record_epoch(charge: RunnerState, scenario_uuid: str, epoch: int, now_s: float) -> RunnerState:
    highest = max(epoch, charge.highest_seen_epoch(scenario_uuid))
    return msgspec.structs.replace(
        charge, seen_epochs=_put(charge.seen_epochs, SeenEpoch(scenario_uuid, highest, now_s))
    )


def _put_entry(charge: RunnerState, entry: Entry) -> RunnerState:
    return msgspec.structs.replace(charge, entries=_put(charge.entries, entry))


def _get_uuid(one: Entry | SeenEpoch) -> str:
    return one.scenario_uuid


def _find_row(rows: tuple[ItemT, ...], scenario_uuid: str) -> ItemT | None:
    place = bisect_left(rows, scenario_uuid, key=_get_uuid)
    return rows[place] if place < len(rows) and rows[place].scenario_uuid == scenario_uuid else None


def _put(rows: tuple[ItemT, ...], row: ItemT) -> tuple[ItemT, ...]:
    place = bisect_left(rows, row.scenario_uuid, key=_get_uuid)
    rest = place + 1 if place < len(rows) and rows[place].scenario_uuid == row.scenario_uuid else place
    return (*rows[:place], row, *rows[rest:])
