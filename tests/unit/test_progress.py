"""How each message changes the progress, for every relation of its epoch and number to the stored ones."""

from __future__ import annotations

import msgspec
import pytest

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import (
    CaptureClock,
    ClockChanges,
    End,
    EndReason,
    Frame,
    Gap,
    GapReason,
    Result,
    SourceLost,
    SourceOpened,
)
from vidflow.domain.progress import Progress, Verdict, advance, has_end_marker, has_hole, is_complete, select_gaps
from vidflow.domain.warnings import MAX_COUNT, ScenarioWarning, WarningCode, describe_warning

UUID = "01930000-0000-7000-8000-000000000001"
OLDER, CURRENT, NEWER = 4, 5, 6
NEXT = 10
BEFORE = Progress(
    epoch=CURRENT, next_frame=NEXT, origin_pts=0, time_base="1/10", last_pts=90, last_time_s=9.0, repeats=2
)


def frame(number: int, epoch: int = CURRENT) -> Frame:
    return Frame(UUID, epoch, number, number * 10, "1/10", 0, float(number), "2026-01-01T00:00:00Z", 640, 480)


GAP = Gap(1.0, 2.0, GapReason.CORRUPT, 3)


def after_gap(number: int, *gaps: Gap, epoch: int = CURRENT) -> Frame:
    """Return a frame with gaps before it."""
    return msgspec.structs.replace(frame(number, epoch), gaps=gaps or (GAP,))


def end(last_frame: int, epoch: int = CURRENT, reason: EndReason = EndReason.FINISHED) -> End:
    return End(UUID, epoch, last_frame, reason)


def late(changes: ClockChanges | None, *gaps: Gap, last_frame: int = NEXT - 1, epoch: int = CURRENT) -> End:
    """Return an end marker with what came after the last frame."""
    return End(UUID, epoch, last_frame, EndReason.STOPPED, gaps, changes)


def opened(epoch: int = CURRENT) -> SourceOpened:
    return SourceOpened(UUID, epoch, 640, 480)


def lost(epoch: int = CURRENT, code: str = "source_timeout") -> SourceLost:
    return SourceLost(UUID, epoch, ErrorInfo(code, "The camera sends nothing."))


def one_of_each_kind(epoch: int = CURRENT) -> list[Result]:
    """Return a message of each kind that would be stored if its epoch were the current one."""
    return [frame(NEXT, epoch), after_gap(NEXT, epoch=epoch), end(NEXT - 1, epoch), opened(epoch), lost(epoch)]


@pytest.mark.parametrize("message", [*one_of_each_kind(OLDER), *one_of_each_kind(CURRENT), *one_of_each_kind(NEWER)])
def test_a_closed_scenario_ignores_everything(message: Result) -> None:
    closed = msgspec.structs.replace(BEFORE, closed=True)
    assert advance(closed, message) == (closed, Verdict.IGNORED)


@pytest.mark.parametrize("message", one_of_each_kind(OLDER))
def test_a_message_of_an_older_epoch_is_ignored(message: Result) -> None:
    assert advance(BEFORE, message) == (BEFORE, Verdict.IGNORED)


@pytest.mark.parametrize("message", [frame(NEXT + 3, OLDER), end(NEXT + 3, OLDER)])
def test_a_hole_in_an_older_epoch_is_ignored(message: Result) -> None:
    assert advance(BEFORE, message) == (BEFORE, Verdict.IGNORED)


@pytest.mark.parametrize("message", [*one_of_each_kind(CURRENT), *one_of_each_kind(NEWER)])
def test_the_next_message_of_the_current_or_a_newer_epoch_is_stored(message: Result) -> None:
    assert advance(BEFORE, message)[1] is Verdict.STORED


@pytest.mark.parametrize("epoch", [CURRENT, NEWER])
def test_the_next_frame_advances_the_progress(epoch: int) -> None:
    after, _ = advance(BEFORE, frame(NEXT, epoch))
    assert (after.next_frame, after.last_pts, after.last_time_s) == (11, 100, 10.0)
    assert (after.origin_pts, after.time_base, after.epoch, after.repeats) == (0, "1/10", CURRENT, 2)


def warnings_after(*messages: Result) -> list[tuple[str, int, int, float, int, float]]:
    progress = BEFORE
    for message in messages:
        progress, _ = advance(progress, message)
    return [msgspec.structs.astuple(warning)[:6] for warning in progress.warnings]


def test_damaged_and_missing_frames_are_counted_in_one_warning() -> None:
    damaged = msgspec.structs.replace(frame(NEXT + 1), corrupt=True)
    expected = ("frames_damaged", 4, NEXT, 1.0, NEXT + 1, 11.0)
    assert warnings_after(after_gap(NEXT), damaged, frame(NEXT + 2)) == [expected]


def test_a_gap_that_is_reported_again_is_counted_once() -> None:
    """A worker that is stopped reports what is missing after its last frame. The next one finds it again."""
    later = Gap(3.0, 4.0, GapReason.CORRUPT, 3)
    again = after_gap(NEXT, GAP, later, epoch=NEWER)
    assert warnings_after(late(None, GAP, later), again) == [("frames_damaged", 6, NEXT, 1.0, NEXT, 3.0)]


def test_a_gap_for_another_reason_is_no_warning() -> None:
    assert warnings_after(after_gap(NEXT, Gap(1.0, 2.0, GapReason.SKIPPED, 3))) == []


def test_changes_of_the_clock_after_the_last_frame_are_counted() -> None:
    changes = ClockChanges(9.5, jumps=2, drifts=1, offset_s=-3.0)
    after, _ = advance(BEFORE, late(changes))
    assert after.warnings == (
        ScenarioWarning(WarningCode.TIME_ADJUSTED, 2, NEXT, 9.5, NEXT, 9.5),
        ScenarioWarning(WarningCode.CLOCK_DRIFT, 1, NEXT, 9.5, NEXT, 9.5, -3.0),
    )


def test_changes_of_the_clock_that_are_reported_again_are_counted_once() -> None:
    changes = ClockChanges(9.5, jumps=2)
    messages = late(changes), late(changes), late(changes, epoch=NEWER)
    assert warnings_after(*messages) == [("time_adjusted", 2, NEXT, 9.5, NEXT, 9.5)]


def test_changes_of_the_clock_go_on_in_the_next_deployment() -> None:
    following = msgspec.structs.replace(frame(NEXT, NEWER), clock_jumps=1)
    assert warnings_after(late(ClockChanges(9.5, jumps=2)), following) == [("time_adjusted", 3, NEXT, 9.5, NEXT, 10.0)]


def test_an_end_that_another_epoch_has_passed_reports_nothing() -> None:
    message = late(ClockChanges(8.5, jumps=2), GAP, last_frame=NEXT - 2)
    assert select_gaps(BEFORE, message) == ()
    assert warnings_after(message) == []


def test_an_end_after_a_hole_reports_nothing() -> None:
    assert warnings_after(late(ClockChanges(8.5, jumps=2), GAP, last_frame=NEXT)) == []


def test_the_gaps_of_the_next_message_are_selected() -> None:
    assert select_gaps(BEFORE, after_gap(NEXT)) == (GAP,)
    assert select_gaps(BEFORE, late(None, GAP)) == (GAP,)


def test_jumps_of_the_clock_are_counted_from_stored_frames_only() -> None:
    jumping = [msgspec.structs.replace(frame(number), clock_jumps=2) for number in (NEXT, NEXT + 3)]
    older, repeated = msgspec.structs.replace(jumping[0], epoch=OLDER), jumping[0]
    messages = [older, jumping[0], repeated, jumping[1], frame(NEXT + 1), frame(NEXT + 2), jumping[1]]
    assert warnings_after(*messages) == [("time_adjusted", 4, NEXT, 10.0, NEXT + 3, 13.0)]


@pytest.mark.parametrize(
    ("captured_us", "clock", "offset_s"),
    [
        (5_000_100, CaptureClock.RTCP, 5.0),
        (1_000_100, CaptureClock.RTCP, None),  # the timestamps drift, but the camera's time of day is right
        (100, CaptureClock.ARRIVAL, None),
        (9_000_000, CaptureClock.PLAYLIST, None),  # it says nothing of when frames arrive
    ],
)
def test_drifts_of_the_clock_are_counted_in_one_warning_with_the_last_offset(
    captured_us: int, clock: CaptureClock, offset_s: float | None
) -> None:
    first = msgspec.structs.replace(
        frame(NEXT), pts=3_000_000, clock_drifts=1, captured_us=0, captured_by=CaptureClock.RTCP
    )
    last = msgspec.structs.replace(frame(NEXT + 1), pts=100, clock_drifts=1, captured_us=captured_us, captured_by=clock)
    before, _ = advance(BEFORE, first)
    assert before.warnings == (ScenarioWarning(WarningCode.CLOCK_DRIFT, 1, NEXT, 10.0, NEXT, 10.0, -3.0),)
    after, _ = advance(before, last)
    assert after.warnings == (ScenarioWarning(WarningCode.CLOCK_DRIFT, 2, NEXT, 10.0, NEXT + 1, 11.0, offset_s),)
    assert describe_warning(after.warnings[0]).startswith("The clock of the source ")


def test_a_count_has_a_limit() -> None:
    many, more = (Gap(from_s, 2.0, GapReason.CORRUPT, MAX_COUNT) for from_s in (1.0, 1.5))
    assert warnings_after(after_gap(NEXT, many, more))[0][1] == MAX_COUNT


@pytest.mark.parametrize(
    "message", [frame(NEXT - 1), frame(0), frame(NEXT - 1, NEWER), after_gap(NEXT - 1), after_gap(0, epoch=NEWER)]
)
def test_a_lower_number_is_a_repeat_and_only_counted(message: Result) -> None:
    assert advance(BEFORE, message) == (msgspec.structs.replace(BEFORE, repeats=3), Verdict.REPEAT)


@pytest.mark.parametrize("message", [frame(NEXT + 1), frame(2**53 - 1), after_gap(NEXT + 1), end(NEXT), end(NEXT + 7)])
def test_a_higher_number_is_a_hole_and_not_stored(message: Result) -> None:
    assert advance(BEFORE, message) == (msgspec.structs.replace(BEFORE, hole_epoch=CURRENT), Verdict.HOLE)


def test_the_newest_epoch_with_a_hole_is_kept() -> None:
    after, _ = advance(msgspec.structs.replace(BEFORE, hole_epoch=NEWER), frame(NEXT + 1))
    assert after.hole_epoch == NEWER


def test_an_end_after_all_frames_is_stored() -> None:
    after, _ = advance(BEFORE, end(NEXT - 1, reason=EndReason.STOPPED))
    assert (after.end_epoch, after.end_last_frame, after.end_reason) == (CURRENT, NEXT - 1, EndReason.STOPPED)


def test_an_end_of_a_source_without_frames_is_stored() -> None:
    assert advance(Progress(), end(-1, 0))[1] is Verdict.STORED


def test_a_newer_end_replaces_the_older() -> None:
    after, _ = advance(BEFORE, end(NEXT - 1))
    after, verdict = advance(after, end(NEXT - 1, NEWER, EndReason.STOPPED))
    assert (after.end_epoch, after.end_reason, verdict) == (NEWER, EndReason.STOPPED, Verdict.STORED)


@pytest.mark.parametrize("epoch", [CURRENT, NEWER])
def test_an_end_that_is_not_newer_is_a_repeat(epoch: int) -> None:
    before = msgspec.structs.replace(BEFORE, end_epoch=epoch, end_last_frame=NEXT - 1, end_reason=EndReason.STOPPED)
    assert advance(before, end(NEXT - 1)) == (msgspec.structs.replace(before, repeats=3), Verdict.REPEAT)


def test_a_newer_opening_replaces_the_older_and_the_same_is_a_repeat() -> None:
    first, verdict = advance(BEFORE, opened())
    assert (first.opened, verdict) == (opened(), Verdict.STORED)
    assert advance(first, opened()) == (first, Verdict.REPEAT)
    assert advance(first, opened(NEWER))[0].opened == opened(NEWER)


@pytest.mark.parametrize("epoch", [CURRENT, NEWER])
def test_a_lost_source_changes_nothing_but_is_remembered(epoch: int) -> None:
    after, _ = advance(BEFORE, lost(epoch))
    assert after == msgspec.structs.replace(BEFORE, lost=lost(epoch))


def test_the_newest_reason_of_a_lost_source_is_kept() -> None:
    after, verdict = advance(advance(BEFORE, lost())[0], lost(code="source_unreachable"))
    assert (after.lost, verdict) == (lost(code="source_unreachable"), Verdict.STORED)


@pytest.mark.parametrize("epoch", [CURRENT, NEWER])
def test_the_next_frame_shows_that_the_source_is_back(epoch: int) -> None:
    assert advance(advance(BEFORE, lost())[0], frame(NEXT, epoch))[0].lost is None


@pytest.mark.parametrize(
    "message",
    [frame(NEXT - 1), frame(NEXT + 1), frame(NEXT, OLDER), late(None, GAP), end(NEXT - 1), opened(), lost(OLDER)],
)
def test_a_source_stays_lost_until_a_frame_is_stored(message: Result) -> None:
    assert advance(advance(BEFORE, lost())[0], message)[0].lost == lost()


def test_repeated_and_late_frames_leave_no_hole() -> None:
    progress, stored = Progress(), []
    for number in (0, 0, 1, 0, 3, 1, 2, 3, 3, 5, 4):
        progress, verdict = advance(progress, frame(number, 0))
        stored += [number] if verdict is Verdict.STORED else []
    assert stored == [0, 1, 2, 3, 4]
    assert progress.next_frame == 5


# --- facts derived from progress


def finished(**changes: object) -> Progress:
    after = advance(BEFORE, end(NEXT - 1))[0]
    return msgspec.structs.replace(after, **changes)


def test_progress_is_complete_at_the_end_of_the_video_with_all_frames() -> None:
    assert is_complete(finished())


@pytest.mark.parametrize(
    "changes",
    [
        {"end_reason": EndReason.STOPPED},
        {"end_reason": EndReason.HANDED_OVER},
        {"end_reason": None},
        {"end_epoch": OLDER},
        {"end_epoch": NEWER},
        {"end_epoch": None},
        {"end_last_frame": NEXT},
        {"end_last_frame": NEXT - 2},
        {"end_last_frame": None},
        {"next_frame": NEXT - 1},
        {"epoch": NEWER},
    ],
)
def test_progress_is_not_complete_otherwise(changes: dict[str, object]) -> None:
    assert not is_complete(finished(**changes))


def test_initial_progress_is_not_complete() -> None:
    assert not is_complete(Progress())


@pytest.mark.parametrize(("end_epoch", "is_ended"), [(None, False), (OLDER, False), (CURRENT, True), (NEWER, False)])
def test_only_an_end_marker_of_the_current_epoch_counts(end_epoch: int | None, is_ended: bool) -> None:
    assert (
        has_end_marker(msgspec.structs.replace(BEFORE, end_epoch=end_epoch, end_reason=EndReason.STOPPED)) is is_ended
    )


@pytest.mark.parametrize(("hole_epoch", "is_hole"), [(None, False), (OLDER, False), (CURRENT, True), (NEWER, False)])
def test_only_a_hole_in_the_current_epoch_counts(hole_epoch: int | None, is_hole: bool) -> None:
    assert has_hole(msgspec.structs.replace(BEFORE, hole_epoch=hole_epoch)) is is_hole


def test_a_new_epoch_has_neither_end_marker_nor_hole() -> None:
    deployed = msgspec.structs.replace(BEFORE, end_epoch=CURRENT, hole_epoch=CURRENT, epoch=NEWER)
    assert (has_end_marker(deployed), has_hole(deployed), is_complete(deployed)) == (False, False, False)
