"""Each way to lose a camera, all at once: the scenario goes on, the gap is reported, and the next frame comes soon after the return.

Times are printed and never fail the test: run it with `-s` to see them.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from tests.faults.proxy import Proxy
from tests.integration.api_server import free_port
from tests.rtsp import outages
from tests.rtsp.camera import Camera, Picture
from tests.rtsp.outages import Outage, Site
from tests.rtsp.reading import Steps, assert_accounted_for, frames, gaps, has_frames, reader, take_until

from vidflow.domain.messages import GapReason
from vidflow.infra.video import FrameGap, KeptFrame
from vidflow.infra.video.live import LiveReader

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("rtsp_server"), pytest.mark.timeout(300)]
FPS = 10
GOP_S = 0.5
PICTURE = Picture(fps=str(FPS), gop=round(FPS * GOP_S))
RETURN_LIMIT_S = 30.0
"""Far more than a return takes, for machines that are busy. Only a reader that hangs takes longer."""
RECONNECTING, STALLED = GapReason.RECONNECTING, GapReason.STALLED


@dataclass(frozen=True)
class OutageCase:
    """A way to lose the camera, for how long, and the gap to expect."""

    name: str
    outage: Outage
    lasts_s: float
    reasons: frozenset[GapReason] = frozenset({RECONNECTING, STALLED})


@dataclass(frozen=True)
class Observation:
    """What became of a case. `return_s`: from the camera's return to the next frame that is taken."""

    case: OutageCase
    codes: frozenset[str]
    steps: Steps
    lost_s: float
    return_s: float


EITHER = frozenset({RECONNECTING, STALLED})
CASES = [
    OutageCase("end (FIN), back at once", outages.hung_up, 0.0),
    OutageCase("reset (RST), back at once", outages.reset, 0.0),
    OutageCase("SIGTERM, absent for 3 s", outages.ended, 3.0),
    OutageCase("kill -9, absent for 3 s", outages.killed, 3.0),
    OutageCase("kill -9, absent for 30 s", outages.killed, 30.0),
    *(OutageCase(f"frozen for {s:.0f} s", outages.frozen, s, frozenset({STALLED})) for s in (3.0, 5.0, 20.0, 30.0)),
    OutageCase("network cut for 10 s", outages.cut, 10.0, EITHER),
    OutageCase("404 for 5 s", outages.not_found, 5.0),
    OutageCase("503 for 5 s", outages.unavailable, 5.0),
    OutageCase("accepts and closes for 5 s", outages.curt, 5.0),
    OutageCase("accepts and is silent for 5 s", outages.silent, 5.0),
    OutageCase("connections closed by a proxy for 5 s", outages.refused, 5.0),
]
LONGEST_CASE = OutageCase("kill -9, absent for 120 s", outages.killed, 120.0)


def observe(case: OutageCase) -> Observation:
    """Lose the camera of this case, let it return, and read some more frames."""
    camera = Camera(free_port(), picture=PICTURE)
    with Proxy(lambda: camera.port) as proxy, camera:
        site = Site(camera, proxy)
        with reader(site.find_url(case.outage)) as live:
            steps = take_until(live, has_frames(15))
            lost_s = time.time()
            with case.outage(site):
                more, seen = _take_for(live, case.lasts_s)
            steps += more
            returned_s = time.monotonic()
            steps += take_until(
                live, lambda more: _has_returned([*steps, *more], lost_s + case.lasts_s), RETURN_LIMIT_S
            )
            return_s = time.monotonic() - returned_s
            steps += take_until(live, has_frames(15))
    return Observation(case, seen, steps, lost_s, return_s)


def _has_returned(steps: Steps, until_s: float) -> bool:
    """Return whether the outage is over for the reader. Some frames of before it may come when it has begun."""
    return isinstance(steps[-1], KeptFrame) and _find_gap(steps, until_s) is not None


def _find_gap(steps: Steps, until_s: float) -> FrameGap | None:
    """Return the gap of the outage that lasted until this time. A busy machine may be silent for a while at other times too."""
    origin_s = frames(steps)[0].origin_pts / 1e6
    found = [gap for reason in EITHER for gap in gaps(steps, reason) if gap.to_s + origin_s > until_s - 0.5]
    return min(found, key=lambda gap: gap.from_s, default=None)


def _take_for(live: LiveReader, duration_s: float) -> tuple[Steps, frozenset[str]]:
    """Return what comes in this time, and the codes of the errors that the reader reported."""
    steps: Steps = []
    codes: set[str] = set()
    deadline_s = time.monotonic() + duration_s
    while (remaining_s := deadline_s - time.monotonic()) > 0:
        steps += live.take(min(0.25, remaining_s))
        if live.outage is not None:
            codes.add(live.outage.code)
    return steps, frozenset(codes)


@pytest.mark.parametrize(
    "cases", [CASES, pytest.param([LONGEST_CASE], marks=pytest.mark.whole)], ids=["up to 30 s", "120 s"]
)
def test_a_camera_that_is_lost_in_any_way_leaves_a_gap_and_is_read_on_once_it_is_back(cases: list[OutageCase]) -> None:
    with ThreadPoolExecutor(len(cases)) as threads:
        observations = list(threads.map(observe, cases))
    for seen in observations:
        found = [gap for reason in GapReason for gap in gaps(seen.steps, reason) if reason is not GapReason.DROPPED]
        shown = ", ".join(f"{gap.reason} {gap.from_s:.1f}-{gap.to_s:.1f} s ({gap.frames} frames)" for gap in found)
        print(f"{seen.case.name:40} next frame after {seen.return_s:5.2f} s; {shown}; {sorted(seen.codes)}")  # noqa: T201
    for seen in observations:
        assert_accounted_for(seen.steps, FPS)
        gap = _find_gap(seen.steps, seen.lost_s + seen.case.lasts_s)
        assert gap is not None
        assert gap.reason in seen.case.reasons
        after = next(frame for frame in frames(seen.steps) if frame.time_s >= gap.to_s)
        assert after.pts / 1e6 >= seen.lost_s + seen.case.lasts_s - 0.5
