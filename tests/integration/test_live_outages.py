"""Each way to lose a camera, all at once: the scenario goes on, the gap is reported, and the next frame comes soon after the return.

Times are printed and never fail the test: run it with `-s` to see them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest
from tests.faults.proxy import Proxy
from tests.integration.api_server import free_port
from tests.rtsp.camera import Camera, Picture
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
class Site:
    """A camera, and the proxy through which it is read."""

    camera: Camera
    proxy: Proxy


Outage = Callable[[Site], AbstractContextManager[None]]


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
    outages: frozenset[str]
    steps: Steps
    lost_s: float
    return_s: float


@contextmanager
def killed(site: Site) -> Iterator[None]:
    site.camera.kill()
    yield
    site.camera.start()


@contextmanager
def ended(site: Site) -> Iterator[None]:
    site.camera.end()
    yield
    site.camera.start()


@contextmanager
def frozen(site: Site) -> Iterator[None]:
    site.camera.freeze()
    yield
    site.camera.thaw()


@contextmanager
def reset(site: Site) -> Iterator[None]:
    site.proxy.reset()
    yield


@contextmanager
def hung_up(site: Site) -> Iterator[None]:
    site.proxy.hang_up()
    yield


@contextmanager
def refused(site: Site) -> Iterator[None]:
    with site.proxy.refusing():
        yield


@contextmanager
def cut(site: Site) -> Iterator[None]:
    """No packet comes through, and the connections of before stay dead."""
    with site.proxy.cut():
        yield
        site.proxy.drop()


@contextmanager
def not_found(site: Site) -> Iterator[None]:
    site.camera.kill()
    site.camera.start(path="elsewhere")
    yield
    site.camera.kill()
    site.camera.start()


@contextmanager
def unavailable(site: Site) -> Iterator[None]:
    site.camera.kill()
    site.camera.start(launch="filesrc location=/missing ! h264parse ! rtph264pay name=pay0")
    yield
    site.camera.kill()
    site.camera.start()


@contextmanager
def silent(site: Site) -> Iterator[None]:
    """The camera's machine accepts connections but says nothing. Connections made meanwhile stay so."""
    site.camera.kill()
    with _listening(site.camera.port, lambda _: None):
        yield
    site.camera.start()


@contextmanager
def curt(site: Site) -> Iterator[None]:
    """The camera's machine accepts connections and closes them."""
    site.camera.kill()
    with _listening(site.camera.port, socket.socket.close):
        yield
    site.camera.start()


@contextmanager
def _listening(port: int, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    accepted: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            accepted.append(caller)
            answer(caller)

    listener = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=accept, name="listener")
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    _HELD.extend(accepted)


_HELD: list[socket.socket] = []
"""Connections that stay open and silent until the tests are over."""

EITHER = frozenset({RECONNECTING, STALLED})
CASES = [
    OutageCase("end (FIN), back at once", hung_up, 0.0),
    OutageCase("reset (RST), back at once", reset, 0.0),
    OutageCase("SIGTERM, absent for 3 s", ended, 3.0),
    OutageCase("kill -9, absent for 3 s", killed, 3.0),
    OutageCase("kill -9, absent for 30 s", killed, 30.0),
    *(OutageCase(f"frozen for {s:.0f} s", frozen, s, frozenset({STALLED})) for s in (3.0, 5.0, 20.0, 30.0)),
    OutageCase("network cut for 10 s", cut, 10.0, EITHER),
    OutageCase("404 for 5 s", not_found, 5.0),
    OutageCase("503 for 5 s", unavailable, 5.0),
    OutageCase("accepts and closes for 5 s", curt, 5.0),
    OutageCase("accepts and is silent for 5 s", silent, 5.0),
    OutageCase("connections closed by a proxy for 5 s", refused, 5.0),
]
LONGEST_CASE = OutageCase("kill -9, absent for 120 s", killed, 120.0)


def observe(case: OutageCase) -> Observation:
    """Lose the camera of this case, let it return, and read some more frames."""
    camera = Camera(free_port(), picture=PICTURE)
    with Proxy(lambda: camera.port) as proxy, camera:
        direct = case.outage not in {reset, hung_up, refused, cut}
        url = camera.url if direct else camera.url.replace(str(camera.port), str(proxy.port))
        with reader(url) as live:
            steps = take_until(live, has_frames(15))
            lost_s = time.time()
            with case.outage(Site(camera, proxy)):
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
        print(f"{seen.case.name:40} next frame after {seen.return_s:5.2f} s; {shown}; {sorted(seen.outages)}")  # noqa: T201
    for seen in observations:
        assert_accounted_for(seen.steps, FPS)
        gap = _find_gap(seen.steps, seen.lost_s + seen.case.lasts_s)
        assert gap is not None
        assert gap.reason in seen.case.reasons
        after = next(frame for frame in frames(seen.steps) if frame.time_s >= gap.to_s)
        assert after.pts / 1e6 >= seen.lost_s + seen.case.lasts_s - 0.5
