"""What each message makes of a scenario's progress: every relation of its epoch and number to what is stored."""

from __future__ import annotations

import msgspec
import pytest

from vidflow.domain.messages import End, EndReason, Frame, Gap, GapReason, Result, SourceOpened
from vidflow.domain.progress import Progress, Verdict, advance, has_end_marker, has_hole, is_complete

UUID = "01930000-0000-7000-8000-000000000001"
OLDER, CURRENT, NEWER = 4, 5, 6
NEXT = 10
BEFORE = Progress(
    epoch=CURRENT, next_frame=NEXT, origin_pts=0, time_base="1/10", last_pts=90, last_time_s=9.0, repeats=2
)


def frame(number: int, epoch: int = CURRENT) -> Frame:
    return Frame(UUID, epoch, number, number * 10, "1/10", 0, float(number), "2026-01-01T00:00:00Z", 640, 480)


def gap(after_frame: int, epoch: int = CURRENT) -> Gap:
    return Gap(UUID, epoch, after_frame, 1.0, 2.0, GapReason.CORRUPT, 3)


def end(last_frame: int, epoch: int = CURRENT, reason: EndReason = EndReason.FINISHED) -> End:
    return End(UUID, epoch, last_frame, reason)


def opened(epoch: int = CURRENT) -> SourceOpened:
    return SourceOpened(UUID, epoch, 640, 480)


def one_of_each_kind(epoch: int = CURRENT) -> list[Result]:
    """One message of each kind that would be stored if its epoch counted."""
    return [frame(NEXT, epoch), gap(NEXT - 1, epoch), end(NEXT - 1, epoch), opened(epoch)]


@pytest.mark.parametrize("message", [*one_of_each_kind(OLDER), *one_of_each_kind(CURRENT), *one_of_each_kind(NEWER)])
def test_a_closed_scenario_takes_nothing(message: Result) -> None:
    closed = msgspec.structs.replace(BEFORE, closed=True)
    assert advance(closed, message) == (closed, Verdict.IGNORED)


@pytest.mark.parametrize("message", one_of_each_kind(OLDER))
def test_an_older_epoch_stores_nothing_and_leaves_no_trace(message: Result) -> None:
    assert advance(BEFORE, message) == (BEFORE, Verdict.IGNORED)


@pytest.mark.parametrize("message", [frame(NEXT + 3, OLDER), gap(NEXT + 3, OLDER), end(NEXT + 3, OLDER)])
def test_a_hole_of_an_older_epoch_is_none(message: Result) -> None:
    assert advance(BEFORE, message) == (BEFORE, Verdict.IGNORED)


@pytest.mark.parametrize("message", [*one_of_each_kind(CURRENT), *one_of_each_kind(NEWER)])
def test_what_stands_next_is_stored_of_the_counting_epoch_and_of_a_newer_one(message: Result) -> None:
    assert advance(BEFORE, message)[1] is Verdict.STORED


@pytest.mark.parametrize("epoch", [CURRENT, NEWER])
def test_the_next_frame_moves_the_progress_to_itself(epoch: int) -> None:
    after, _ = advance(BEFORE, frame(NEXT, epoch))
    assert (after.next_frame, after.last_pts, after.last_time_s, after.last_at) == (
        11,
        100,
        10.0,
        "2026-01-01T00:00:00Z",
    )
    assert (after.origin_pts, after.time_base, after.epoch, after.repeats) == (0, "1/10", CURRENT, 2)


@pytest.mark.parametrize("message", [frame(NEXT - 1), frame(0), frame(NEXT - 1, NEWER), gap(NEXT - 2), gap(-1, NEWER)])
def test_what_stands_lower_is_a_repeat_and_only_counted(message: Result) -> None:
    assert advance(BEFORE, message) == (msgspec.structs.replace(BEFORE, repeats=3), Verdict.REPEAT)


@pytest.mark.parametrize("message", [frame(NEXT + 1), frame(2**53 - 1), gap(NEXT), end(NEXT), end(NEXT + 7)])
def test_what_stands_higher_is_a_hole_and_not_stored(message: Result) -> None:
    assert advance(BEFORE, message) == (msgspec.structs.replace(BEFORE, hole_epoch=CURRENT), Verdict.HOLE)


def test_the_newest_epoch_with_a_hole_is_kept() -> None:
    after, _ = advance(msgspec.structs.replace(BEFORE, hole_epoch=NEWER), frame(NEXT + 1))
    assert after.hole_epoch == NEWER


def test_a_gap_moves_nothing() -> None:
    assert advance(BEFORE, gap(NEXT - 1)) == (BEFORE, Verdict.STORED)


def test_a_gap_before_the_first_frame_is_stored_at_the_start() -> None:
    assert advance(Progress(), gap(-1, 0))[1] is Verdict.STORED


def test_an_end_behind_all_frames_is_noted() -> None:
    after, _ = advance(BEFORE, end(NEXT - 1, reason=EndReason.STOPPED))
    assert (after.end_epoch, after.end_last_frame, after.end_reason) == (CURRENT, NEXT - 1, EndReason.STOPPED)


def test_an_end_of_a_source_without_frames_is_noted() -> None:
    assert advance(Progress(), end(-1, 0))[1] is Verdict.STORED


def test_a_newer_end_wins() -> None:
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


def test_frames_that_come_twice_and_late_leave_dense_numbers() -> None:
    progress, stored = Progress(), []
    for number in (0, 0, 1, 0, 3, 1, 2, 3, 3, 5, 4):
        progress, verdict = advance(progress, frame(number, 0))
        stored += [number] if verdict is Verdict.STORED else []
    assert stored == [0, 1, 2, 3, 4]
    assert progress.next_frame == 5


# --- what progress tells


def finished(**changes: object) -> Progress:
    after = advance(BEFORE, end(NEXT - 1))[0]
    return msgspec.structs.replace(after, **changes)


def test_the_end_of_the_video_behind_all_frames_is_whole() -> None:
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
def test_nothing_less_is_whole(changes: dict[str, object]) -> None:
    assert not is_complete(finished(**changes))


def test_nothing_is_whole_from_the_start() -> None:
    assert not is_complete(Progress())


@pytest.mark.parametrize(("end_epoch", "is_ended"), [(None, False), (OLDER, False), (CURRENT, True), (NEWER, False)])
def test_ended_is_an_end_marker_of_the_counting_epoch(end_epoch: int | None, is_ended: bool) -> None:
    assert (
        has_end_marker(msgspec.structs.replace(BEFORE, end_epoch=end_epoch, end_reason=EndReason.STOPPED)) is is_ended
    )


@pytest.mark.parametrize(("hole_epoch", "is_hole"), [(None, False), (OLDER, False), (CURRENT, True), (NEWER, False)])
def test_a_hole_is_one_of_the_counting_epoch(hole_epoch: int | None, is_hole: bool) -> None:
    assert has_hole(msgspec.structs.replace(BEFORE, hole_epoch=hole_epoch)) is is_hole


def test_a_new_deployment_leaves_end_and_hole_of_the_last_behind() -> None:
    deployed = msgspec.structs.replace(BEFORE, end_epoch=CURRENT, hole_epoch=CURRENT, epoch=NEWER)
    assert (has_end_marker(deployed), has_hole(deployed), is_complete(deployed)) == (False, False, False)
