"""The frames of a live source on one time line: those that are kept, and the gaps between them."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import accumulate, cycle, islice

import pytest

from vidflow.domain.live_clock import CaptureTime
from vidflow.domain.live_end import LiveLimits
from vidflow.domain.live_stream import Arrival, LiveFrame, LiveStream
from vidflow.domain.messages import CaptureClock, GapReason, ResumePoint
from vidflow.domain.newest_frames import LiveGap

FPS = 25
TICKS = 90_000 // FPS
NOW_US = 1_800_000_000_000_000
Steps = list[LiveFrame[int] | LiveGap]


def connected(rate: Fraction | None = None, capacity: int = 1000) -> LiveStream[int]:
    stream: LiveStream[int] = LiveStream(rate, ResumePoint(), capacity, LiveLimits())
    stream.connect(Fraction(1, 90_000), Fraction(FPS))
    return stream


def send(stream: LiveStream[int], numbers: Iterable[int], first: int = 0) -> None:
    """Add these frames of a camera. They arrive when they are captured. Their pts count from frame `first`."""
    for number in numbers:
        arrived_us = NOW_US + number * 1_000_000 // FPS
        stream.add(Arrival(number, (number - first) * TICKS, arrived_us), burst_limit=64)


def variable_rate(frames: int) -> Iterable[int]:
    """Return the numbers of frames whose distances are 1, 2 and 3."""
    return accumulate(islice(cycle([1, 1, 2, 1, 1, 1, 3]), frames), initial=0)


def items(steps: Steps) -> list[int]:
    return [step.item for step in steps if isinstance(step, LiveFrame)]


def gaps(steps: Steps) -> list[tuple[GapReason, int | None]]:
    return [(step.reason, step.frames) for step in steps if isinstance(step, LiveGap)]


def test_a_pause_of_a_connected_source_is_a_gap() -> None:
    stream = connected()
    send(stream, [*range(50), *range(75, 100)])
    steps = stream.take()
    assert items(steps) == [*range(50), *range(75, 100)]
    assert gaps(steps) == [(GapReason.STALLED, 25)]
    [gap] = [step for step in steps if isinstance(step, LiveGap)]
    assert (gap.from_s, gap.to_s) == pytest.approx((2.0, 3.0), abs=0.001)


def test_a_pause_that_hides_no_sampled_frame_is_no_gap() -> None:
    stream = connected(Fraction(1))
    send(stream, [*range(50), *range(60, 100)])  # the frames at 0, 1, 2.4 (nearest to 2) and 3 s
    assert gaps(stream.take()) == []


def test_a_frame_that_is_missing_in_a_constant_rate_is_a_gap() -> None:
    stream = connected()
    send(stream, [*range(50), *range(51, 100)])
    assert gaps(stream.take()) == [(GapReason.STALLED, 1)]


def test_longer_steps_of_a_variable_rate_are_no_gaps() -> None:
    stream = connected()
    send(stream, variable_rate(100))
    assert gaps(stream.take()) == []


def test_frames_without_times_are_only_missing_after_a_pause_that_is_no_delay() -> None:
    stream: LiveStream[int] = LiveStream(None, ResumePoint(), 1000, LiveLimits())
    stream.connect(None, None)

    def receive(numbers: Iterable[int], *, late: int = 0) -> None:
        for number in numbers:
            stream.add(Arrival(number, 0, NOW_US + (number + late) * 1_000_000 // FPS), burst_limit=64)

    receive(range(50))
    receive(range(50, 60), late=10)  # a busy machine takes ten at once
    receive(range(70, 100))
    stream.disconnect(GapReason.RECONNECTING)
    receive([*[150] * 30, *range(151, 200)])  # the first ones were stored for this connection
    steps = stream.take()
    assert items(steps) == [*range(60), *range(70, 100), *range(150, 200)]
    assert gaps(steps) == [(GapReason.RECONNECTING, 50)]


def test_packets_that_could_not_be_decoded_are_the_reason_of_the_hole() -> None:
    stream = connected()
    send(stream, range(50))
    for _ in range(25):
        stream.lose_packet()
    send(stream, range(75, 100))
    assert gaps(stream.take()) == [(GapReason.CORRUPT, 25)]


def test_frames_and_gaps_go_on_across_connections() -> None:
    stream = connected(Fraction(5))
    send(stream, range(50))
    stream.disconnect(GapReason.RECONNECTING)
    stream.connect(Fraction(1, 90_000), Fraction(FPS))
    send(stream, range(150, 200), first=150)
    steps = stream.take()
    assert items(steps) == [*range(0, 50, 5), *range(150, 200, 5)]
    assert gaps(steps) == [(GapReason.RECONNECTING, 20)]
    times = [step.time_s for step in steps if isinstance(step, LiveFrame)]
    assert times == pytest.approx([number / FPS for number in items(steps)], abs=0.001)


def test_a_hole_keeps_its_first_reason_until_a_frame_comes() -> None:
    stream = connected()
    send(stream, range(50))
    stream.disconnect(GapReason.RECONNECTING)
    stream.connect(Fraction(1, 90_000), Fraction(FPS))
    stream.lose_packet()
    stream.disconnect(GapReason.STALLED)
    stream.connect(Fraction(1, 90_000), Fraction(FPS))
    send(stream, range(75, 100), first=75)
    assert gaps(stream.take()) == [(GapReason.RECONNECTING, 25)]


def test_frames_of_a_connection_that_ends_at_once_are_kept() -> None:
    stream = connected()
    for number in range(3):
        stream.add(Arrival(number, number * TICKS, NOW_US), burst_limit=64)
    assert stream.take() == []
    assert stream.has_burst
    stream.disconnect(GapReason.RECONNECTING)
    assert items(stream.take()) == [0, 1, 2]


def test_the_hole_at_the_end_has_the_reason_of_the_outage() -> None:
    stream = connected()
    send(stream, range(50))
    stream.take()
    stream.disconnect(GapReason.STALLED)
    assert gaps([*stream.end(NOW_US + 3_000_000, is_receiving=False, reason=GapReason.RECONNECTING)]) == [
        (GapReason.STALLED, 25)
    ]


def test_changes_of_the_clock_since_the_last_frame_taken_are_described() -> None:
    stream = connected(Fraction(1))
    send(stream, range(30))
    [*_, last] = stream.take()
    assert isinstance(last, LiveFrame)
    assert stream.describe_clock_changes(last.clock) is None
    send(stream, range(30, 40), first=1_000)  # its pts go back
    camera_s = NOW_US + 39_000_000 // FPS + 60_000_000
    stated = CaptureTime(camera_s, CaptureClock.RTCP)
    stream.add(Arrival(40, (40 - 1_000) * TICKS, NOW_US + 40_000_000 // FPS, stated), burst_limit=64)
    assert stream.take() == []
    changes = stream.describe_clock_changes(last.clock)
    assert changes is not None
    assert (changes.time_s, changes.offset_s) == pytest.approx((1.6, 59.96), abs=0.001)
    assert (changes.jumps, changes.drifts) == (1, 1)


def test_what_the_clock_does_after_the_end_is_not_described() -> None:
    stream: LiveStream[int] = LiveStream(Fraction(1), ResumePoint(), 1000, LiveLimits(duration_us=1_500_000))
    stream.connect(Fraction(1, 90_000), Fraction(FPS))
    send(stream, range(40))
    send(stream, range(40, 50), first=1_000)
    [*_, last] = stream.take()
    assert isinstance(last, LiveFrame)
    assert stream.describe_clock_changes(last.clock) is None


def test_a_model_that_is_slower_gets_the_newest_frames_and_the_others_are_counted() -> None:
    stream = connected(capacity=4)
    send(stream, range(50))
    steps = stream.take()
    assert items(steps) == [46, 47, 48, 49]
    assert gaps(steps) == [(GapReason.DROPPED, 46)]
