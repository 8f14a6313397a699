"""What a runner's charge makes of commands: every pair of an entry and a command, and what happens to workers."""

from __future__ import annotations

import msgspec
import pytest

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Command, Deploy, EndReason, Entry, Forget, Ping, ResumePoint, StopWork, WorkerWait
from vidflow.domain.runner import (
    DETAIL_CHARACTERS,
    REMEMBER_S,
    Action,
    Finish,
    Kill,
    Launch,
    NoAction,
    RunnerState,
    SeenEpoch,
    apply_command,
    build_report,
    count_command,
    drain,
    forget_old_epochs,
    is_empty,
    needs_immediate_report,
    record_worker_end,
    record_worker_progress,
)

UUID = "01930000-0000-7000-8000-000000000001"
OTHER = "01930000-0000-7000-8000-000000000002"
NOW_S = 100.0
OLDER, SAME, NEWER = 4, 5, 6


def deploy(epoch: int, uuid: str = UUID, next_frame: int = 7) -> Deploy:
    return Deploy(uuid, epoch, "clip.mp4", "motion", resume=ResumePoint(next_frame))


def running(epoch: int, uuid: str = UUID) -> Entry:
    return Entry(uuid, epoch, 9, waits_for=WorkerWait.SOURCE)


def ended(epoch: int, reason: EndReason = EndReason.CRASHED) -> Entry:
    return Entry(UUID, epoch, 9, waits_for=WorkerWait.SOURCE, reason=reason)


def charge_with(
    entry: Entry | None, *, capacity: int = 2, draining: bool = False, seen: int | None = None
) -> RunnerState:
    """A charge with this entry of epoch SAME, whose epoch (or `seen_epochs`) it has seen."""
    highest = seen if seen is not None else entry.epoch if entry is not None else None
    return RunnerState(
        capacity, draining,
        entries=() if entry is None else (entry,),
        seen_epochs=() if highest is None else (SeenEpoch(UUID, highest, 0.0),),
    )  # fmt: skip


NONE, SEEN, RUNNING, ENDED = None, "seen", running(SAME), ended(SAME)


def before(situation: Entry | str | None) -> RunnerState:
    return charge_with(None, seen=SAME) if situation == SEEN else charge_with(situation)  # type: ignore[arg-type]


STARTED = Entry(UUID, NEWER, 7, waits_for=WorkerWait.START)
STOPPED_UNSEEN = Entry(UUID, NEWER, reason=EndReason.STOPPED)


@pytest.mark.parametrize(
    ("situation", "command", "entry", "action"),
    [
        # never heard of the scenario
        (NONE, deploy(NEWER), STARTED, Launch(deploy(NEWER))),
        (NONE, StopWork(UUID, NEWER), STOPPED_UNSEEN, NoAction()),
        (NONE, Forget(UUID, NEWER), None, NoAction()),
        # no entry, but the epoch was seen
        (SEEN, deploy(OLDER), None, NoAction()),
        (SEEN, deploy(SAME), None, NoAction()),
        (SEEN, deploy(NEWER), STARTED, Launch(deploy(NEWER))),
        (SEEN, StopWork(UUID, OLDER), None, NoAction()),
        (SEEN, StopWork(UUID, SAME), None, NoAction()),
        (SEEN, StopWork(UUID, NEWER), STOPPED_UNSEEN, NoAction()),
        (SEEN, Forget(UUID, OLDER), None, NoAction()),
        (SEEN, Forget(UUID, SAME), None, NoAction()),
        (SEEN, Forget(UUID, NEWER), None, NoAction()),
        # running
        (RUNNING, deploy(OLDER), RUNNING, NoAction()),
        (RUNNING, deploy(SAME), RUNNING, NoAction()),
        (RUNNING, deploy(NEWER), STARTED, Launch(deploy(NEWER), replaces_epoch=SAME)),
        (RUNNING, StopWork(UUID, OLDER), RUNNING, NoAction()),
        (RUNNING, StopWork(UUID, SAME), RUNNING, Finish(UUID, SAME, EndReason.STOPPED)),
        (RUNNING, StopWork(UUID, NEWER), RUNNING, Finish(UUID, SAME, EndReason.STOPPED)),
        (RUNNING, Forget(UUID, OLDER), RUNNING, NoAction()),
        (RUNNING, Forget(UUID, SAME), RUNNING, NoAction()),
        (RUNNING, Forget(UUID, NEWER), RUNNING, NoAction()),
        # ended
        (ENDED, deploy(OLDER), ENDED, NoAction()),
        (ENDED, deploy(SAME), ENDED, NoAction()),
        (ENDED, deploy(NEWER), STARTED, Launch(deploy(NEWER))),
        (ENDED, StopWork(UUID, OLDER), ENDED, NoAction()),
        (ENDED, StopWork(UUID, SAME), ENDED, NoAction()),
        (ENDED, StopWork(UUID, NEWER), STOPPED_UNSEEN, NoAction()),
        (ENDED, Forget(UUID, OLDER), ENDED, NoAction()),
        (ENDED, Forget(UUID, SAME), None, NoAction()),
        (ENDED, Forget(UUID, NEWER), None, NoAction()),
        # a ping changes nothing
        (NONE, Ping("r"), None, NoAction()),
        (RUNNING, Ping("r"), RUNNING, NoAction()),
        (ENDED, Ping("r"), ENDED, NoAction()),
    ],
)
def test_the_command_table(
    situation: Entry | str | None, command: Command, entry: Entry | None, action: Action
) -> None:
    after, does = apply_command(before(situation), command, NOW_S)
    assert (after.entry(UUID), does) == (entry, action)
    assert after.taken == 1


COMMANDS: list[Command] = [Ping("r")]
for _epoch in (OLDER, SAME, NEWER):
    COMMANDS += [deploy(_epoch), StopWork(UUID, _epoch), Forget(UUID, _epoch)]


@pytest.mark.parametrize("situation", [NONE, SEEN, RUNNING, ENDED])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_given_again_changes_nothing_more(situation: Entry | str | None, command: Command) -> None:
    once, _ = apply_command(before(situation), command, NOW_S)
    twice, does = apply_command(once, command, NOW_S)
    assert (twice.entries, twice.seen_epochs) == (once.entries, once.seen_epochs)
    assert isinstance(does, NoAction | Finish)


@pytest.mark.parametrize("command", [deploy(NEWER), StopWork(UUID, NEWER)])
def test_a_deploy_that_comes_after_a_newer_command_is_old(command: Command) -> None:
    after, _ = apply_command(charge_with(None), command, NOW_S)
    assert apply_command(after, deploy(SAME), NOW_S)[1] == NoAction()


def test_a_stop_of_a_newer_epoch_outdates_the_deploy_that_it_overtook() -> None:
    stopping, _ = apply_command(charge_with(running(SAME)), StopWork(UUID, NEWER), NOW_S)
    assert apply_command(stopping, deploy(NEWER), NOW_S)[1] == NoAction()


@pytest.mark.parametrize(
    "full", [charge_with(running(SAME, OTHER), capacity=1), charge_with(None, draining=True), RunnerState(0)]
)
def test_a_runner_without_room_refuses(full: RunnerState) -> None:
    after, does = apply_command(full, deploy(NEWER), NOW_S)
    assert after.entry(UUID) == Entry(UUID, NEWER, 7, reason=EndReason.REFUSED)
    assert does == NoAction()


def test_a_newer_epoch_takes_the_slot_of_the_one_that_it_replaces() -> None:
    after, does = apply_command(charge_with(running(SAME), capacity=1), deploy(NEWER), NOW_S)
    assert does == Launch(deploy(NEWER), replaces_epoch=SAME)
    assert after.entries == (STARTED,)


def test_a_draining_runner_ends_an_older_epoch_and_refuses_the_newer_one() -> None:
    after, does = apply_command(charge_with(running(SAME), draining=True), deploy(NEWER), NOW_S)
    assert does == Kill(UUID, SAME)
    assert after.entries == (Entry(UUID, NEWER, 7, reason=EndReason.REFUSED),)


@pytest.mark.parametrize(
    ("command", "entry", "action"),
    [
        (StopWork(UUID, SAME), running(SAME), Finish(UUID, SAME, EndReason.STOPPED)),
        (Forget(UUID, SAME), running(SAME), NoAction()),
        (deploy(SAME), running(SAME), NoAction()),
    ],
)
def test_a_draining_runner_still_obeys_about_what_it_has(command: Command, entry: Entry, action: Action) -> None:
    after, does = apply_command(charge_with(running(SAME), draining=True), command, NOW_S)
    assert (after.entry(UUID), does) == (entry, action)


def test_a_draining_runner_forgets() -> None:
    after, _ = apply_command(charge_with(ended(SAME), draining=True), Forget(UUID, SAME), NOW_S)
    assert is_empty(after)


def test_an_ended_entry_holds_no_slot() -> None:
    _, does = apply_command(charge_with(ended(SAME), capacity=1), deploy(NEWER, OTHER), NOW_S)
    assert isinstance(does, Launch)


def test_entries_stand_in_the_order_of_their_uuids() -> None:
    charge = RunnerState(3)
    for uuid in (OTHER, UUID):
        charge, _ = apply_command(charge, deploy(1, uuid), NOW_S)
    assert [entry.scenario_uuid for entry in charge.entries] == [UUID, OTHER]


def test_a_worker_tells_its_progress() -> None:
    after = record_worker_progress(charge_with(running(SAME)), UUID, SAME, 12, WorkerWait.INFERENCE)
    assert after.entry(UUID) == Entry(UUID, SAME, 12, waits_for=WorkerWait.INFERENCE)


@pytest.mark.parametrize("entry", [None, running(OLDER), running(NEWER), ended(SAME)])
def test_what_another_epochs_worker_tells_is_ignored(entry: Entry | None) -> None:
    charge = charge_with(entry)
    assert record_worker_progress(charge, UUID, SAME, 12, WorkerWait.KAFKA) == charge
    assert record_worker_end(charge, UUID, SAME, EndReason.CRASHED) == charge


def test_an_ended_worker_stays_listed_with_its_error_and_what_it_waited_for() -> None:
    error = ErrorInfo("source_missing", "there is no such file", 3)
    after = record_worker_end(
        charge_with(running(SAME)), UUID, SAME, EndReason.ERROR, error, fatal=True, detail="x" * 9000
    )
    assert after.entry(UUID) == Entry(
        UUID,
        SAME,
        9,
        waits_for=WorkerWait.SOURCE,
        reason=EndReason.ERROR,
        error=error,
        fatal=True,
        detail="x" * DETAIL_CHARACTERS,
    )


def test_draining_asks_the_running_workers_to_hand_over() -> None:
    charge = RunnerState(3, entries=(ended(SAME), running(NEWER, OTHER)))
    after, finishes = drain(charge)
    assert after.draining
    assert finishes == (Finish(OTHER, NEWER, EndReason.HANDED_OVER),)


def test_seen_epochs_are_forgotten_after_an_hour_without_a_word() -> None:
    charge = RunnerState(2, seen_epochs=(SeenEpoch(UUID, SAME, 0.0), SeenEpoch(OTHER, SAME, 1.0)))
    after = forget_old_epochs(charge, REMEMBER_S)
    assert (after.highest_seen_epoch(UUID), after.highest_seen_epoch(OTHER)) == (-1, SAME)


def test_a_command_that_names_a_scenario_keeps_its_epoch_remembered() -> None:
    charge, _ = apply_command(charge_with(None, seen=SAME), deploy(OLDER), NOW_S)
    assert forget_old_epochs(charge, REMEMBER_S + NOW_S / 2).highest_seen_epoch(UUID) == SAME


def test_the_epoch_of_an_entry_is_never_forgotten() -> None:
    assert forget_old_epochs(charge_with(running(SAME)), 10 * REMEMBER_S).highest_seen_epoch(UUID) == SAME


def test_a_command_that_cannot_be_read_is_counted_and_nothing_else() -> None:
    charge = charge_with(running(SAME))
    assert count_command(charge) == msgspec.structs.replace(charge, taken=1)


def test_a_report_tells_all() -> None:
    told = build_report(charge_with(running(SAME), draining=True), runner="r", pool="default", number=3, version="1")
    assert (told.runner, told.pool, told.number, told.capacity, told.draining, told.version) == (
        "r",
        "default",
        3,
        2,
        True,
        "1",
    )
    assert told.entries == (running(SAME),)


def test_each_frame_is_no_news_but_an_end_is() -> None:
    charge = charge_with(running(SAME))
    assert not needs_immediate_report(charge, record_worker_progress(charge, UUID, SAME, 12, WorkerWait.INFERENCE))
    assert needs_immediate_report(charge, record_worker_end(charge, UUID, SAME, EndReason.CRASHED))
    assert needs_immediate_report(charge, apply_command(charge, Ping("r"), NOW_S)[0])
    assert needs_immediate_report(charge, drain(charge)[0])


def test_a_charge_can_be_hashed() -> None:
    charge, _ = apply_command(RunnerState(2), deploy(NEWER), NOW_S)
    assert len({charge, apply_command(RunnerState(2), deploy(NEWER), NOW_S)[0]}) == 1
