"""Which frames are kept, and that a resumed run keeps exactly those of an undisturbed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.messages import ResumePoint
from vidflow.domain.sampling import (
    LONGEST_BROADCAST_PAUSE_S,
    LONGEST_PAUSE_S,
    DecodeFromStart,
    Sampler,
    SeekStatus,
    SeekToPts,
    Timeline,
    build_timeline,
    estimate_frame_count,
    format_time_base,
    plan_resume,
    track_seek,
)

MPEG = Fraction(1, 90_000)
MILLISECONDS = Fraction(1, 1_000)
NTSC = Fraction(30_000, 1_001)


@dataclass(frozen=True)
class SampledFrame:
    number: int
    index: int
    pts: int | None
    tick: int
    time_s: float


def start(
    time_base: Fraction = MILLISECONDS, rate: Fraction | None = None, nominal: Fraction | None = Fraction(25)
) -> Sampler:
    return Sampler(build_timeline(time_base, nominal), rate)


def run(sampler: Sampler, pts: Sequence[int | None], begin: int = 0) -> list[SampledFrame]:
    """Return the frames that `sampler` keeps from index `begin` on."""
    kept = []
    for index in range(begin, len(pts)):
        sampler, keeps = sampler.sample_frame(pts[index])
        if keeps:
            tick = sampler.timeline.tick
            assert tick is not None
            time_s = float(sampler.timeline.seconds_since_start(tick))
            kept.append(SampledFrame(sampler.next_frame - 1, index, pts[index], tick, time_s))
    return kept


def resume_point_after(frame: SampledFrame, sampler: Sampler, origin: int) -> ResumePoint:
    """Return the resume point once `frame` is stored."""
    pts = frame.tick if frame.pts is None else frame.pts
    return ResumePoint(frame.number + 1, origin, format_time_base(sampler.timeline.time_base), pts, frame.time_s)


def numbers(sampler: Sampler, pts: Sequence[int | None]) -> list[int]:
    return [frame.index for frame in run(sampler, pts)]


# --- the grid


def test_without_a_rate_every_decoded_frame_is_kept() -> None:
    assert numbers(start(), [0, 40, 80, 80, 75, 200]) == [0, 1, 2, 3, 4, 5]


def test_the_frame_nearest_to_each_grid_time_is_kept() -> None:
    assert numbers(start(rate=Fraction(5)), range(0, 1000, 40)) == [0, 5, 10, 15, 20]
    assert numbers(start(rate=Fraction(10)), range(0, 400, 40)) == [0, 2, 5, 7]  # at 0, 80, 200 and 280 ms


def test_the_first_frame_within_half_a_frame_of_a_grid_time_is_kept() -> None:
    assert numbers(start(rate=Fraction(1)), [0, 400, 979, 980, 1001, 2500, 2979, 2981]) == [0, 3, 5, 7]


@pytest.mark.parametrize("origin", [5_700, -1_500])
def test_the_grid_starts_at_the_first_frame_and_not_at_zero(origin: int) -> None:
    pts = [origin + after for after in (0, 300, 979, 981, 1_979, 1_980)]
    assert numbers(start(rate=Fraction(1)), pts) == [0, 3, 5]


def test_an_empty_cell_takes_no_number() -> None:
    kept = run(start(rate=Fraction(1)), [0, 5_000, 5_500, 9_000])
    assert [(frame.number, frame.pts) for frame in kept] == [(0, 0), (1, 5_000), (2, 9_000)]


@pytest.mark.parametrize("hours", [0, 1, 1_000])
def test_a_video_sampled_at_its_own_ntsc_rate_keeps_every_frame_even_after_hours(hours: int) -> None:
    # A frame lasts 3003 ticks of 1/90000 s, exactly one cell. With floats, some of these would be lost or duplicated.
    begun = start(MPEG, NTSC, NTSC).sample_frame(90_000)[0]
    centres = [90_000 + 3_003 * (hours * 107_892 + i) for i in range(1, 1_000)]
    begun = replace(begun, timeline=replace(begun.timeline, tick=centres[0] - 3_003))
    firsts = [centre - 1_501 for centre in centres]
    first_and_last_ticks_of_cells = [tick for centre in centres for tick in (centre - 1_501, centre + 1_501)]
    assert [frame.pts for frame in run(begun, first_and_last_ticks_of_cells)] == firsts


SOURCE_RATES = [
    Fraction(1),
    Fraction(10),
    Fraction(15),
    NTSC / 2,
    Fraction(24),
    Fraction(25),
    NTSC,
    Fraction(30),
    Fraction(50),
]


def jittered_pts(source_rate: Fraction, time_base: Fraction, jitter: Sequence[float], origin: int) -> list[int]:
    """Return the pts of a constant rate, each moved by a part of a frame duration and rounded to whole ticks."""
    return [
        origin + round((index + Fraction(part)) / source_rate / time_base) if index else origin
        for index, part in enumerate(jitter)
    ]


def jitters() -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-0.4, 0.4), min_size=2, max_size=80)


@given(
    st.sampled_from(SOURCE_RATES),
    st.sampled_from([MILLISECONDS, MPEG]),
    jitters(),
    st.integers(-(10**6), 10**6),
    st.fractions(1, 4, max_denominator=50),
)
def test_a_source_sampled_at_its_own_rate_or_a_higher_one_keeps_every_frame(
    source_rate: Fraction, time_base: Fraction, jitter: list[float], origin: int, factor: Fraction
) -> None:
    pts = jittered_pts(source_rate, time_base, jitter, origin)
    assert numbers(start(time_base, source_rate * factor, source_rate), pts) == list(range(len(pts)))


@given(
    st.sampled_from(SOURCE_RATES),
    st.sampled_from([MILLISECONDS, MPEG]),
    jitters(),
    st.integers(-(10**6), 10**6),
    st.integers(1, 12),
)
def test_a_source_sampled_at_an_integer_part_of_its_rate_keeps_every_nth_frame(
    source_rate: Fraction, time_base: Fraction, jitter: list[float], origin: int, divisor: int
) -> None:
    pts = jittered_pts(source_rate, time_base, jitter, origin)
    assert numbers(start(time_base, source_rate / divisor, source_rate), pts) == list(range(0, len(pts), divisor))


def nearest_index(times_s: Sequence[Fraction], grid_s: Fraction, about: int) -> int:
    """Return the index, near `about`, of the time nearest to `grid_s`."""
    candidates = range(max(0, about - 2), min(len(times_s), about + 3))
    return min(candidates, key=lambda index: abs(times_s[index] - grid_s))


@given(st.sampled_from(SOURCE_RATES), st.fractions(Fraction(1, 20), 1, max_denominator=100), st.integers(2, 80))
def test_at_a_lower_rate_the_kept_frames_are_those_nearest_to_the_grid_times(
    source_rate: Fraction, factor: Fraction, count: int
) -> None:
    rate = source_rate * factor
    pts = [round(index / source_rate / MPEG) for index in range(count)]
    times_s = [p * MPEG for p in pts]
    grid = range(int(times_s[-1] * rate) + 1)
    nearest = [nearest_index(times_s, k / rate, round(k / factor)) for k in grid]
    kept = numbers(start(MPEG, rate, source_rate), pts)
    distances = [
        abs(times_s[i] - k / rate) - abs(times_s[j] - k / rate) for k, i, j in zip(grid, kept, nearest, strict=False)
    ]
    assert len(kept) - len(nearest) in (0, 1)  # the last frame may be nearest to a grid time after it
    assert all(distance <= MPEG for distance in distances)  # rounding to ticks


def test_the_rate_30_of_a_video_with_times_in_milliseconds_keeps_every_frame() -> None:
    pts = [round(Fraction(1000 * index, 30)) for index in range(120)]
    assert len(run(start(rate=Fraction(30), nominal=Fraction(30)), pts)) == 120


def test_the_rate_29_97_of_an_ntsc_video_keeps_every_frame() -> None:
    assert len(run(start(Fraction(1, 30_000), Fraction(2997, 100), NTSC), range(0, 120 * 1001, 1001))) == 120


def test_a_pause_that_lowers_the_average_rate_costs_no_frame() -> None:
    pts = [*range(0, 4_000, 40), *range(14_000, 18_000, 40)]
    assert len(run(start(rate=Fraction(25), nominal=Fraction(200, 18)), pts)) == 200


# --- pts that do not increase


def test_frames_with_the_same_pts_share_a_cell() -> None:
    assert numbers(start(rate=Fraction(25)), [0, 0, 40, 40, 80]) == [0, 2, 4]


def test_a_frame_that_steps_back_a_little_is_in_no_new_cell() -> None:
    assert numbers(start(rate=Fraction(10)), [0, 100, 200, 150, 300]) == [0, 1, 2, 4]


def test_after_a_jump_back_the_clock_continues() -> None:
    kept = run(start(rate=Fraction(1)), [0, 1_000, 2_000, 0, 1_000, 2_000])
    assert [frame.pts for frame in kept] == [0, 1_000, 2_000, 1_000, 2_000]
    assert [frame.time_s for frame in kept] == [0.0, 1.0, 2.0, 3.04, 4.04]


def times_s(pts: Sequence[int | None], longest_pause_s: Fraction = LONGEST_PAUSE_S) -> list[float]:
    sampler = Sampler(build_timeline(MILLISECONDS, Fraction(25), longest_pause_s), None)
    return [round(frame.time_s, 3) for frame in run(sampler, pts)]


EVEN_S = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]


@pytest.mark.parametrize(
    "pts",
    [
        [0, 40, 80, 37_600_120, 160, 200],  # one wild pts in the future
        [0, 40, 80, -37_600_120, 160, 200],  # one in the past
        [0, 40, 80, -500, 160, 200],
        [37_600_000, 0, 40, 80, 120, 160],  # the first one
        [0, 37_600_000, 37_600_040, 37_600_080, 37_600_120, 37_600_160],
        [0, 40, 80, 95_443_718, 95_443_758, 95_443_798],  # 2^33 wraps
        [0, 40, 80, -300, -260, -220],  # the clock was set back by less than a second
        [0, 40, 80, -99_000, -98_960, -98_920],
        [0, 40, None, 120, None, None],
    ],
)
def test_when_the_clock_jumps_time_continues_by_a_frame_duration(pts: list[int | None]) -> None:
    assert times_s(pts) == EVEN_S


def test_a_pause_is_not_a_jump_of_the_clock_unless_the_format_may_restart_it() -> None:
    assert times_s([0, 40, 60_040, 60_080]) == [0.0, 0.04, 60.04, 60.08]
    assert times_s([0, 40, 60_040, 60_080], LONGEST_BROADCAST_PAUSE_S) == [0.0, 0.04, 0.08, 0.12]


def test_a_pause_after_a_jump_is_kept() -> None:
    assert times_s([100_000, 100_040, 0, 40, 5_040, 5_080]) == [0.0, 0.04, 0.08, 0.12, 5.12, 5.16]


def test_a_timeline_knows_whether_its_clock_jumped() -> None:
    timeline = build_timeline(MILLISECONDS, Fraction(25))
    for pts in (0, 40, 30, 5_000):
        timeline = timeline.place(pts)
    assert timeline.jumps == 0
    assert timeline.place(2**40).place(5_080).jumps == 1


def test_time_always_increases_whatever_the_pts_do() -> None:
    kept = run(start(), [0, 40, 40, 30, None, 90_000, 5, 2**62, -(2**62)])
    ticks = [frame.tick for frame in kept]
    assert len(ticks) == 9
    assert ticks == sorted(set(ticks))


def test_without_pts_frames_are_counted_at_the_nominal_rate() -> None:
    kept = run(start(Fraction(1, 1_200_000), Fraction(10), NTSC), [None] * 90)
    assert [frame.index for frame in kept][:4] == [0, 3, 6, 9]
    assert kept[-1].time_s == float(kept[-1].index / NTSC)


@pytest.mark.parametrize("nominal", [None, Fraction(0), Fraction(90_000), Fraction(-1)])
def test_without_a_credible_nominal_rate_frames_count_as_25_a_second(nominal: Fraction | None) -> None:
    assert run(start(nominal=nominal), [None] * 26)[-1].time_s == 1.0


# --- resuming


def streams() -> st.SearchStrategy[list[int]]:
    """Pts of regular streams: increasing, evenly or not, from any start."""
    steps = st.lists(st.integers(1, 5_000), min_size=0, max_size=60)
    return st.builds(
        lambda first, steps: [first + sum(steps[:k]) for k in range(len(steps) + 1)],
        st.integers(-(10**6), 10**6),
        steps,
    )


def rates() -> st.SearchStrategy[Fraction | None]:
    return st.none() | st.sampled_from([Fraction(1), Fraction(5), NTSC, Fraction(2997, 100), Fraction(1, 7)])


def time_bases() -> st.SearchStrategy[Fraction]:
    return st.sampled_from([MILLISECONDS, MPEG, Fraction(1, 11_456), Fraction(1, 25)])


@given(streams(), rates(), time_bases(), st.data())
def test_a_run_resumed_after_any_frame_keeps_what_an_undisturbed_one_keeps(
    pts: list[int], rate: Fraction | None, time_base: Fraction, data: st.DataObject
) -> None:
    begin = start(time_base, rate)
    undisturbed = run(begin, pts)
    for frame in undisturbed:
        point = plan_resume(resume_point_after(frame, begin, pts[0]), begin, seekable=True)
        assert isinstance(point, SeekToPts)
        assert point.last_pts == frame.pts
        landed_at = data.draw(st.integers(0, max(0, frame.index - 1)))
        assert resumed(point, pts, landed_at) == undisturbed[frame.number + 1 :]


@given(st.lists(st.none() | st.integers(-5_000, 5_000), min_size=1, max_size=40), rates())
def test_a_resumed_run_is_exact_even_if_pts_are_missing_repeated_or_step_back(
    pts: list[int | None], rate: Fraction | None
) -> None:
    begin = start(rate=rate)
    undisturbed = run(begin, pts)
    for frame in undisturbed:
        first = pts[0]
        resume = resume_point_after(frame, begin, 0 if first is None else first)
        point = plan_resume(resume, begin, seekable=first is not None)
        again = resumed(point, pts, keyframe_before(pts, frame)) if isinstance(point, SeekToPts) else None
        if again is None:
            again = [kept for kept in run(begin, pts) if kept.number > frame.number]
        assert again == undisturbed[frame.number + 1 :]


def resumed(point: SeekToPts, pts: Sequence[int | None], landed_at: int) -> list[SampledFrame] | None:
    """Return the frames kept by a run whose seek landed at this index, or None if the seek missed."""
    placed = point.sampler.timeline
    for index in range(landed_at, len(pts)):
        placed, state = track_seek(point, placed, pts[index])
        if state is SeekStatus.MISSED:
            return None
        if state is SeekStatus.ARRIVED:
            return run(replace(point.sampler, timeline=placed), pts, index + 1)
    return None


def keyframe_before(pts: Sequence[int | None], frame: SampledFrame) -> int:
    """Return the last index before `frame` at which a seek may land: every frame before it has a lower pts (0 if there is none)."""
    for index in range(frame.index - 1, -1, -1):
        landed = pts[index]
        earlier = [p for p in pts[:index] if p is not None]
        if landed is not None and all(p < landed for p in earlier) and None not in pts[: index + 1]:
            return index
    return 0


def test_without_stored_frames_a_run_begins_at_the_start() -> None:
    assert plan_resume(ResumePoint(), start(), seekable=True) == DecodeFromStart(0)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ([0, 40, 80], SeekStatus.ARRIVED),
        ([0, 40], SeekStatus.SEEKING),
        ([0, 40, 81], SeekStatus.MISSED),
        ([120], SeekStatus.MISSED),
        ([80], SeekStatus.MISSED),
        ([40, None], SeekStatus.MISSED),
    ],
)
def test_a_seek_has_arrived_once_the_stored_frame_is_decoded_again(seen: list[int | None], state: SeekStatus) -> None:
    point = plan_resume(ResumePoint(3, 0, "1/1000", 80, 0.08), start(), seekable=True)
    assert isinstance(point, SeekToPts)
    placed, reached = point.sampler.timeline, SeekStatus.SEEKING
    for pts in seen:
        placed, reached = track_seek(point, placed, pts)
    assert reached is state


def test_a_seek_to_the_videos_first_frame_arrives_at_once() -> None:
    point = plan_resume(ResumePoint(1, 80, "1/1000", 80, 0.0), start(), seekable=True)
    assert isinstance(point, SeekToPts)
    assert track_seek(point, point.sampler.timeline, 80)[1] is SeekStatus.ARRIVED


def test_a_source_that_is_not_seekable_is_decoded_from_the_start() -> None:
    resume = ResumePoint(7, 0, "1/1000", 240, 0.24)
    assert plan_resume(resume, start(), seekable=False) == DecodeFromStart(7)


def test_a_time_base_other_than_the_stored_one_is_not_trusted() -> None:
    resume = ResumePoint(7, 0, "1/90000", 240, 240 / 90_000)
    assert plan_resume(resume, start(MILLISECONDS), seekable=True) == DecodeFromStart(7)


def test_pts_that_disagree_with_the_stored_time_are_not_trusted() -> None:
    resume = ResumePoint(7, 0, "1/1000", 240, 0.241)
    assert plan_resume(resume, start(MILLISECONDS), seekable=True) == DecodeFromStart(7)


@pytest.mark.parametrize("time_s", [float("nan"), float("inf"), -1.0])
def test_an_impossible_stored_time_is_not_trusted(time_s: float) -> None:
    resume = ResumePoint(7, 0, "1/1000", 240, time_s)
    assert plan_resume(resume, start(MILLISECONDS), seekable=True) == DecodeFromStart(7)


# --- frames that need not be decoded


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=60),
    st.integers(-5_000, 5_000),
    st.fractions(Fraction(1, 4), Fraction(60)).filter(bool),
)
def test_no_frame_at_unwanted_pts_is_kept(steps: list[int], first: int, rate: Fraction) -> None:
    sampler, _ = start(rate=rate).sample_frame(first)
    pts = first
    for step in steps:
        pts += step
        unwanted = sampler.find_unwanted_pts()
        sampler, is_kept = sampler.sample_frame(pts)
        assert not (is_kept and pts in unwanted)


def test_unwanted_pts_are_the_rest_of_the_cell() -> None:
    """At 25 frames per second, the frame at 1,000 ms represents the time from 980 ms to 1,020 ms."""
    sampler, _ = start(rate=Fraction(1)).sample_frame(0)
    assert sampler.find_unwanted_pts() == range(1, 980)
    sampler, _ = sampler.sample_frame(1_000)
    assert sampler.find_unwanted_pts() == range(1_001, 1_980)


def test_no_pts_are_unwanted_if_every_frame_is_kept_or_the_clock_is_not_certain() -> None:
    for rate in (None, Fraction(25), Fraction(100)):
        assert not start(rate=rate).sample_frame(0)[0].find_unwanted_pts()
    assert not start(rate=Fraction(1)).find_unwanted_pts()
    assert not start(rate=Fraction(1)).sample_frame(None)[0].find_unwanted_pts()
    jumped, _ = start(rate=Fraction(1)).sample_frame(0)[0].sample_frame(-50_000)
    assert jumped.timeline.jumps == 1
    assert not jumped.find_unwanted_pts()


# --- frames of another duration


@pytest.mark.parametrize("rate", [Fraction(5), Fraction(60)])
def test_frames_of_another_duration_are_kept_at_the_same_rate(rate: Fraction) -> None:
    sampler = Sampler(Timeline(MILLISECONDS, Fraction(1, 25)), rate)
    kept = []
    for tick in [*range(0, 2000, 40), *range(2000, 4000, 100), *range(4000, 6000, 20)]:
        if tick in {2000, 4000}:
            sampler = sampler.change_interval(Fraction(1, 10) if tick == 2000 else Fraction(1, 50))
        sampler, is_kept = sampler.sample_frame(tick)
        kept += [tick] if is_kept else []
    every = [*range(0, 2000, 40), *range(2000, 4000, 100), *range(4000, 6000, 20)]
    assert kept == (every if rate == 60 else list(range(0, 6000, 200)))


# --- expected frames


@pytest.mark.parametrize(
    ("duration_s", "decoded", "rate", "expected"),
    [
        (10.0, 250, None, 250),
        (10.0, 250, Fraction(5), 50),
        (10.1, 250, Fraction(5), 51),
        (4.004, 120, Fraction(4), 16),  # the last frame begins at 3.97 s, before the seventeenth cell
        (10.0, 250, Fraction(25), 250),
        (10.0, 20, Fraction(5), 20),
        (None, 250, Fraction(5), None),
        (10.0, None, None, None),
        (0.04, 1, Fraction(1, 10), 1),
    ],
)
def test_the_number_of_expected_frames(
    duration_s: float | None, decoded: int | None, rate: Fraction | None, expected: int | None
) -> None:
    assert estimate_frame_count(duration_s, decoded, rate) == expected
