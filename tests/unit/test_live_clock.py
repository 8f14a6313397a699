"""Capture times of live frames: exact within a connection, going on across connections."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.live_clock import CLOCK_SET_US, MAX_UNTIMED_FRAMES, CaptureTime, LiveClock
from vidflow.domain.messages import MAX_MICROSECONDS, CaptureClock

NOW_US = 1_800_000_000_000_000
RTP = Fraction(1, 90_000)
SECOND_US = 1_000_000


def place_all(clock: LiveClock, frames: Iterable[tuple[int | None, int]]) -> tuple[LiveClock, list[int]]:
    """Return the clock after the frames (pts and arrival), and the capture times since NOW_US of those that have one."""
    times = []
    for pts, arrived_us in frames:
        clock, is_placed = clock.place(pts, NOW_US + arrived_us)
        if is_placed:
            assert clock.captured_us is not None
            times.append(clock.captured_us - NOW_US)
    return clock, times


@given(st.lists(st.integers(0, 400_000), min_size=1, max_size=50))
def test_times_within_a_connection_are_those_of_the_camera_whatever_the_network_delays(delays_us: list[int]) -> None:
    frames = [(500 + 3600 * index, 40_000 * index + delay) for index, delay in enumerate(delays_us)]
    _, times = place_all(LiveClock().connect(RTP), frames)
    assert times == [delays_us[0] + 40_000 * index for index in range(len(delays_us))]


def test_frames_that_were_stored_before_the_connection_have_the_times_at_which_they_were_captured() -> None:
    frames = [(None, 890_000), (3600, 900_000), (7200, 901_000), (10_800, 902_000), (14_400, 942_000)]
    clock = LiveClock().connect(RTP, [(pts, NOW_US + arrived_us) for pts, arrived_us in frames])
    _, times = place_all(clock, frames)
    assert times == [822_000, 862_000, 902_000, 942_000]


def test_time_goes_on_across_a_reconnect() -> None:
    clock, _ = place_all(LiveClock().connect(RTP), [(0, 0), (3600, 40_000)])
    clock, times = place_all(clock.connect(RTP), [(7_777, 8 * SECOND_US), (11_377, 8 * SECOND_US + 90_000)])
    assert times == [8_000_000, 8_040_000]
    assert (clock.jumps, clock.drifts) == (0, 0)


def test_frames_that_a_server_repeats_after_a_reconnect_are_recognized() -> None:
    clock, _ = place_all(LiveClock().connect(RTP), [(0, 0), (3600, 40_000)])
    first = [(7_200, 120_000), (10_800, 120_000), (14_400, 120_000)]  # captured 40, 80 and 120 ms after the start
    clock = clock.connect(RTP, [(pts, NOW_US + arrived_us) for pts, arrived_us in first])
    assert [clock.is_repeated(pts) for pts, _ in first] == [True, False, False]
    clock, times = place_all(clock, first[1:])
    assert times == [80_000, 120_000]
    assert not clock.is_repeated(7_200)


def test_time_goes_on_after_the_last_stored_frame_of_an_earlier_runner_whose_clock_was_ahead() -> None:
    _, times = place_all(LiveClock(NOW_US + 5).connect(RTP), [(0, 0), (3600, 40_000)])
    assert times == [6, 40_006]


def test_first_frames_without_pts_are_waited_out() -> None:
    _, times = place_all(LiveClock().connect(RTP), [(None, 0), (3600, 40_000), (7200, 80_000)])
    assert times == [40_000, 80_000]


def test_a_source_without_any_pts_has_the_times_of_arrival() -> None:
    frames = [(None, 40_000 * index) for index in range(MAX_UNTIMED_FRAMES + 2)]
    _, times = place_all(LiveClock().connect(RTP), frames)
    assert times == [40_000 * MAX_UNTIMED_FRAMES, 40_000 * (MAX_UNTIMED_FRAMES + 1)]


def test_pts_that_are_not_to_be_trusted_are_ignored() -> None:
    _, times = place_all(LiveClock().connect(None), [(0, 0), (3600, 200_000)])
    assert times == [0, 200_000]


def test_a_frame_without_pts_among_others_has_its_time_of_arrival() -> None:
    _, times = place_all(LiveClock().connect(RTP), [(0, 0), (None, 45_000), (7200, 80_000)])
    assert times == [0, 45_000, 80_000]


def test_a_jump_of_pts_leaves_time_as_it_is() -> None:
    frames = [(2**33 - 3600, 0), (0, 40_000), (3600, 80_000), (900_000_000, 120_000), (900_003_600, 160_000)]
    clock, times = place_all(LiveClock().connect(RTP), frames)
    assert times == [0, 40_000, 80_000, 120_000, 160_000]
    assert (clock.jumps, clock.drifts) == (2, 0)


def test_a_step_back_is_a_jump_however_small_it_is() -> None:
    frames = [(90_000, 0), (93_600, 40_000), (0, 80_000), (3600, 120_000)]
    clock, times = place_all(LiveClock().connect(RTP), frames)
    assert times == [0, 40_000, 80_000, 120_000]
    assert (clock.jumps, clock.drifts) == (1, 0)


@pytest.mark.parametrize("ticks_per_s", [91_000, 89_000])
def test_a_camera_clock_that_drifts_is_corrected_without_a_step(ticks_per_s: int) -> None:
    # 1.1 % fast or slow: 2 s after 180 s, then 1.5 s corrected in 38 s, and again 2 s after another 135 s.
    frames = [(ticks_per_s * index // 25, 40_000 * index) for index in range(25 * 400)]
    clock, times = place_all(LiveClock().connect(RTP), frames)
    assert (clock.jumps, clock.drifts) == (0, 2)
    assert all(abs(time - 40_000 * index) <= 2_010_000 for index, time in enumerate(times))
    assert all(37_000 <= later - time <= 43_000 for time, later in pairwise(times))


def rtcp(at_us: int) -> CaptureTime:
    return CaptureTime(NOW_US + at_us, CaptureClock.RTCP)


def test_a_camera_whose_time_of_day_is_off_is_counted_once_until_it_agrees_again() -> None:
    clock, drifts = LiveClock().connect(RTP), []
    offsets_us = [0, 2_000_000, -2_000_001, -1_500_000, 2_100_000, 500_001, 500_000, 1_900_000, 3_600_000_000]
    for index, offset_us in enumerate(offsets_us):
        if index == 5:
            clock = clock.connect(RTP)
        clock, _ = clock.place(3600 * index, NOW_US + 40_000 * index)
        clock = clock.compare(rtcp(40_000 * index + offset_us))
        drifts.append(clock.drifts)
    assert drifts == [0, 0, 1, 1, 1, 1, 1, 1, 2]
    assert clock.captured_us == NOW_US + 40_000 * (len(offsets_us) - 1)


@pytest.mark.parametrize("clock", [CaptureClock.PLAYLIST, CaptureClock.PRODUCER])
def test_times_of_playlists_and_producers_may_be_earlier(clock: CaptureClock) -> None:
    placed, _ = LiveClock().connect(RTP).place(0, NOW_US)
    assert placed.compare(CaptureTime(NOW_US - 20 * SECOND_US, clock)) == placed.compare(None) == placed


@pytest.mark.parametrize(
    ("at_us", "is_credible"),
    [
        (-2_208_988_800_000_000, False),  # a sender report of 0
        (3_600_000_000, False),
        (CLOCK_SET_US - 1, False),
        (CLOCK_SET_US, True),
        (NOW_US, True),
        (MAX_MICROSECONDS + 1, False),
    ],
)
def test_a_clock_that_was_never_set_is_not_credible(at_us: int, is_credible: bool) -> None:
    assert CaptureTime(at_us, CaptureClock.RTCP).is_credible is is_credible


def test_a_pause_of_the_camera_is_a_pause_in_time() -> None:
    frames = [(0, 0), (3600, 40_000), (90_000 * 60, 60 * SECOND_US), (90_000 * 60 + 3600, 60 * SECOND_US + 40_000)]
    clock, times = place_all(LiveClock().connect(RTP), frames)
    assert times == [0, 40_000, 60_000_000, 60_040_000]
    assert clock.jumps == 0


def test_frames_that_a_stopped_reader_finds_in_its_buffers_keep_their_times() -> None:
    before = [(3600 * index, 40_000 * index) for index in range(50)]
    buffered = [(3600 * index, 32 * SECOND_US + 5_000 * index) for index in range(50, 250)]
    lost_by_the_server = [(3600 * index, 40_000 * index) for index in range(850, 900)]
    clock, times = place_all(LiveClock().connect(RTP), [*before, *buffered, *lost_by_the_server])
    assert times == [40_000 * index for index in [*range(250), *range(850, 900)]]
    assert (clock.jumps, clock.drifts) == (0, 0)


def test_a_clock_that_stood_still_has_jumped_once_its_frames_do_not_catch_up() -> None:
    frames = [(3600 * index, 40_000 * index + (30 * SECOND_US if index >= 50 else 0)) for index in range(200)]
    clock, times = place_all(LiveClock().connect(RTP), frames)
    assert times[:75] == [40_000 * index for index in range(75)]
    assert times[75:] == [40_000 * index + 30 * SECOND_US for index in range(75, 200)]
    assert (clock.jumps, clock.drifts) == (1, 0)


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(-(2**40), 2**40)), st.integers(0, 10**7), st.booleans()), max_size=60
    )
)
def test_times_strictly_increase_whatever_the_source_sends(steps: list[tuple[int | None, int, bool]]) -> None:
    clock, arrived_us, times = LiveClock().connect(RTP), 0, list[int]()
    for pts, later_us, reconnects in steps:
        arrived_us += later_us
        if reconnects:
            clock = clock.connect(RTP)
        clock, placed = place_all(clock, [(pts, arrived_us)])
        times += placed
    assert times == sorted(set(times))
