"""How commands and workers change a runner's state, for every pair of an entry and a command."""

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


def state_with(
    entry: Entry | None, *, capacity: int = 2, draining: bool = False, seen: int | None = None
) -> RunnerState:
    """Return a state with this entry. The highest seen epoch is `seen`, or else that of the entry."""
    highest = seen if seen is not None else entry.epoch if entry is not None else None
    return RunnerState(
        capacity, draining,
        entries=() if entry is None else (entry,),
        seen_epochs=() if highest is None else (SeenEpoch(UUID, highest, 0.0),),
    )  # fmt: skip


NONE, SEEN, RUNNING, ENDED = None, "seen", running(SAME), ended(SAME)


def initial_state(situation: Entry | str | None) -> RunnerState:
    return state_with(None, seen=SAME) if situation == SEEN else state_with(situation)  # type: ignore[arg-type]


STARTED = Entry(UUID, NEWER, 7, waits_for=WorkerWait.START)
STOPPED_UNSEEN = Entry(UUID, NEWER, reason=EndReason.STOPPED)


@pytest.mark.parametrize(
    ("situation", "command", "entry", "action"),
    [
        # unknown scenario
        (NONE, deploy(NEWER), STARTED, Launch(deploy(NEWER))),
        (NONE, StopWork(UUID, NEWER), STOPPED_UNSEEN, NoAction()),
        (NONE, Forget(UUID, NEWER), None, NoAction()),
        # no entry, but a seen epoch
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
        # pings have no effect
        (NONE, Ping("r"), None, NoAction()),
        (RUNNING, Ping("r"), RUNNING, NoAction()),
        (ENDED, Ping("r"), ENDED, NoAction()),
    ],
)
def test_the_command_table(
    situation: Entry | str | None, command: Command, entry: Entry | None, action: Action
) -> None:
    after, next_action = apply_command(initial_state(situation), command, NOW_S)
    assert (after.entry(UUID), next_action) == (entry, action)
    assert after.taken == 1


COMMANDS: list[Command] = [Ping("r")]
for _epoch in (OLDER, SAME, NEWER):
    COMMANDS += [deploy(_epoch), StopWork(UUID, _epoch), Forget(UUID, _epoch)]


@pytest.mark.parametrize("situation", [NONE, SEEN, RUNNING, ENDED])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_repeated_command_has_no_further_effect(situation: Entry | str | None, command: Command) -> None:
    once, _ = apply_command(initial_state(situation), command, NOW_S)
    twice, next_action = apply_command(once, command, NOW_S)
    assert (twice.entries, twice.seen_epochs) == (once.entries, once.seen_epochs)
    assert isinstance(next_action, NoAction | Finish)


@pytest.mark.parametrize("command", [deploy(NEWER), StopWork(UUID, NEWER)])
def test_a_deploy_after_a_newer_command_is_outdated(command: Command) -> None:
    after, _ = apply_command(state_with(None), command, NOW_S)
    assert apply_command(after, deploy(SAME), NOW_S)[1] == NoAction()


def test_a_stop_of_a_newer_epoch_outdates_the_deploy_that_it_overtook() -> None:
    stopping, _ = apply_command(state_with(running(SAME)), StopWork(UUID, NEWER), NOW_S)
    assert apply_command(stopping, deploy(NEWER), NOW_S)[1] == NoAction()


@pytest.mark.parametrize(
    "full", [state_with(running(SAME, OTHER), capacity=1), state_with(None, draining=True), RunnerState(0)]
)
def test_a_runner_without_a_free_slot_refuses(full: RunnerState) -> None:
    after, next_action = apply_command(full, deploy(NEWER), NOW_S)
    assert after.entry(UUID) == Entry(UUID, NEWER, 7, reason=EndReason.REFUSED)
    assert next_action == NoAction()


def test_a_newer_epoch_takes_the_slot_of_the_one_that_it_replaces() -> None:
    after, next_action = apply_command(state_with(running(SAME), capacity=1), deploy(NEWER), NOW_S)
    assert next_action == Launch(deploy(NEWER), replaces_epoch=SAME)
    assert after.entries == (STARTED,)


def test_a_draining_runner_kills_an_older_epoch_and_refuses_the_newer_one() -> None:
    after, next_action = apply_command(state_with(running(SAME), draining=True), deploy(NEWER), NOW_S)
    assert next_action == Kill(UUID, SAME)
    assert after.entries == (Entry(UUID, NEWER, 7, reason=EndReason.REFUSED),)


@pytest.mark.parametrize(
    ("command", "entry", "action"),
    [
        (StopWork(UUID, SAME), running(SAME), Finish(UUID, SAME, EndReason.STOPPED)),
        (Forget(UUID, SAME), running(SAME), NoAction()),
        (deploy(SAME), running(SAME), NoAction()),
    ],
)
def test_a_draining_runner_still_handles_commands_for_its_entries(
    command: Command, entry: Entry, action: Action
) -> None:
    after, next_action = apply_command(state_with(running(SAME), draining=True), command, NOW_S)
    assert (after.entry(UUID), next_action) == (entry, action)


def test_a_draining_runner_forgets() -> None:
    after, _ = apply_command(state_with(ended(SAME), draining=True), Forget(UUID, SAME), NOW_S)
    assert is_empty(after)


def test_an_ended_entry_holds_no_slot() -> None:
    _, next_action = apply_command(state_with(ended(SAME), capacity=1), deploy(NEWER, OTHER), NOW_S)
    assert isinstance(next_action, Launch)


def test_entries_are_sorted_by_uuid() -> None:
    state = RunnerState(3)
    for uuid in (OTHER, UUID):
        state, _ = apply_command(state, deploy(1, uuid), NOW_S)
    assert [entry.scenario_uuid for entry in state.entries] == [UUID, OTHER]


def test_the_progress_of_a_worker_is_recorded() -> None:
    after = record_worker_progress(state_with(running(SAME)), UUID, SAME, 12, WorkerWait.INFERENCE)
    assert after.entry(UUID) == Entry(UUID, SAME, 12, waits_for=WorkerWait.INFERENCE)


@pytest.mark.parametrize("entry", [None, running(OLDER), running(NEWER), ended(SAME)])
def test_a_worker_of_another_epoch_is_ignored(entry: Entry | None) -> None:
    state = state_with(entry)
    assert record_worker_progress(state, UUID, SAME, 12, WorkerWait.KAFKA) == state
    assert record_worker_end(state, UUID, SAME, EndReason.CRASHED) == state


def test_an_ended_worker_stays_listed_with_its_error_and_what_it_waited_for() -> None:
    error = ErrorInfo("source_missing", "there is no such file", 3)
    after = record_worker_end(
        state_with(running(SAME)), UUID, SAME, EndReason.ERROR, error, fatal=True, detail="x" * 9000
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
    state = RunnerState(3, entries=(ended(SAME), running(NEWER, OTHER)))
    after, finishes = drain(state)
    assert after.draining
    assert finishes == (Finish(OTHER, NEWER, EndReason.HANDED_OVER),)


def test_seen_epochs_are_forgotten_after_an_hour_without_a_command() -> None:
    state = RunnerState(2, seen_epochs=(SeenEpoch(UUID, SAME, 0.0), SeenEpoch(OTHER, SAME, 1.0)))
    after = forget_old_epochs(state, REMEMBER_S)
    assert (after.highest_seen_epoch(UUID), after.highest_seen_epoch(OTHER)) == (-1, SAME)


def test_a_command_keeps_the_epoch_of_its_scenario_remembered() -> None:
    state, _ = apply_command(state_with(None, seen=SAME), deploy(OLDER), NOW_S)
    assert forget_old_epochs(state, REMEMBER_S + NOW_S / 2).highest_seen_epoch(UUID) == SAME


def test_the_epoch_of_an_entry_is_never_forgotten() -> None:
    assert forget_old_epochs(state_with(running(SAME)), 10 * REMEMBER_S).highest_seen_epoch(UUID) == SAME


def test_an_unreadable_command_is_only_counted() -> None:
    state = state_with(running(SAME))
    assert count_command(state) == msgspec.structs.replace(state, taken=1)


def test_a_report_contains_the_whole_state() -> None:
    report = build_report(state_with(running(SAME), draining=True), runner="r", pool="default", number=3, version="1")
    assert (report.runner, report.pool, report.number, report.capacity, report.draining, report.version) == (
        "r",
        "default",
        3,
        2,
        True,
        "1",
    )
    assert report.entries == (running(SAME),)


def test_an_end_needs_an_immediate_report_but_a_frame_does_not() -> None:
    state = state_with(running(SAME))
    assert not needs_immediate_report(state, record_worker_progress(state, UUID, SAME, 12, WorkerWait.INFERENCE))
    assert needs_immediate_report(state, record_worker_end(state, UUID, SAME, EndReason.CRASHED))
    assert needs_immediate_report(state, apply_command(state, Ping("r"), NOW_S)[0])
    assert needs_immediate_report(state, drain(state)[0])


def test_a_state_can_be_hashed() -> None:
    state, _ = apply_command(RunnerState(2), deploy(NEWER), NOW_S)
    assert len({state, apply_command(RunnerState(2), deploy(NEWER), NOW_S)[0]}) == 1
