"""A slow model gets the newest frames of a live source, and what it passed over is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.messages import GapReason
from vidflow.domain.newest_frames import MAX_GAPS, LiveGap, NewestFrames


def dropped(from_s: float, to_s: float, frames: int) -> LiveGap:
    return LiveGap(from_s, to_s, frames, GapReason.DROPPED)


def filled(capacity: int, count: int) -> NewestFrames[int]:
    frames = NewestFrames[int](capacity)
    for number in range(count):
        frames.add(number, float(number))
    return frames


def test_a_model_that_keeps_up_gets_every_frame() -> None:
    frames = NewestFrames[int](1)
    for number in range(3):
        frames.add(number, float(number))
        assert frames.take() == [number]
    assert frames.take() == []


def test_a_slow_model_gets_the_newest_frame_and_one_gap_for_all_it_missed() -> None:
    assert filled(capacity=1, count=5).take() == [dropped(0.0, 4.0, 4), 4]
    assert filled(capacity=3, count=5).take() == [dropped(0.0, 2.0, 2), 2, 3, 4]


def test_a_gap_lasts_until_the_next_frame() -> None:
    frames = filled(capacity=1, count=1)
    assert frames.take() == [0]
    frames.add_gap(1.0, 7, GapReason.RECONNECTING)
    assert frames.take() == []
    frames.add(8, 8.0)
    assert frames.take() == [LiveGap(1.0, 8.0, 7, GapReason.RECONNECTING), 8]


def test_gaps_of_different_reasons_keep_their_order() -> None:
    frames = filled(capacity=1, count=2)
    frames.add_gap(2.0, 3, GapReason.STALLED)
    frames.add_gap(5.0, 2, GapReason.RECONNECTING)
    frames.add(7, 7.0)
    assert frames.take() == [
        dropped(0.0, 2.0, 2),
        LiveGap(2.0, 5.0, 3, GapReason.STALLED),
        LiveGap(5.0, 7.0, 2, GapReason.RECONNECTING),
        7,
    ]


Step = tuple[str, int]


@given(
    st.integers(1, 4),
    st.lists(
        st.one_of(
            st.just(("frame", 1)),
            st.just(("take", 0)),
            st.tuples(st.sampled_from(["stalled", "reconnecting", "redeployed"]), st.integers(1, 9)),
        ),
        max_size=400,
    ),
)
def test_frames_and_gaps_together_are_what_was_added(capacity: int, steps: list[Step]) -> None:
    frames, time_s, added, taken, last_s = NewestFrames[float](capacity), 0.0, 0, 0, -1.0
    for kind, count in [*steps, ("frame", 1), ("take", 0)]:
        if kind == "frame":
            frames.add(time_s, time_s)
        elif kind != "take":
            frames.add_gap(time_s, count, GapReason(kind))
        else:
            items = frames.take()
            assert sum(isinstance(item, float) for item in items) <= capacity
            assert sum(isinstance(item, LiveGap) for item in items) <= capacity * (MAX_GAPS + 1)
            for item in items:
                from_s, to_s = (item.from_s, item.to_s) if isinstance(item, LiveGap) else (item, item)
                assert last_s <= from_s <= to_s
                last_s = to_s if isinstance(item, LiveGap) else from_s
                taken += (item.frames or 0) if isinstance(item, LiveGap) else 1
        added += count
        time_s += count
    assert taken == added


def test_what_waits_at_the_end_is_dropped_and_counted() -> None:
    frames = filled(capacity=3, count=5)
    assert frames.drop_all(5.0) == (dropped(0.0, 5.0, 5),)
    assert frames.drop_all(5.0) == ()
    frames.add(5, 5.0)
    frames.add_gap(6.0, 2, GapReason.RECONNECTING)
    frames.add(8, 8.0)
    assert frames.drop_all(9.0) == (
        dropped(5.0, 6.0, 1),
        LiveGap(6.0, 8.0, 2, GapReason.RECONNECTING),
        dropped(8.0, 9.0, 1),
    )
