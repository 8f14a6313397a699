"""Cameras that are connected to the runner's machine, with a simulated driver: no test machine has a camera.

The driver is part of a process of its own, in which the functions without `test_` run.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from tests.integration.cli_process import running_command
from tests.integration.server_owner import wait_until
from tests.rtsp.reading import Steps, assert_accounted_for, frames, gaps, has_frames, has_gap, take_until
from tests.webcam.camera import FPS, HEIGHT, WIDTH, Mode, Webcam, build_webcam, process_with

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import CaptureClock, Deploy, GapReason
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.camera_devices import is_camera
from vidflow.infra.video import open_video
from vidflow.infra.video.live import LiveReader
from vidflow.roles.worker.read import open_live

LIMIT_S = 60.0
Run = Callable[[Callable[[Webcam], None]], None]


@pytest.fixture(scope="module")
def webcam(tmp_path_factory: pytest.TempPathFactory) -> Webcam:
    return build_webcam(tmp_path_factory.mktemp("webcam"))


@pytest.fixture(scope="module")
def process(webcam: Webcam) -> Iterator[ProcessPoolExecutor]:
    with process_with(webcam) as process:
        yield process


@pytest.fixture
def run(webcam: Webcam, process: ProcessPoolExecutor) -> Run:
    """Run a function in the process that has the camera, which is plugged in."""
    webcam.set_mode("")
    webcam.plug_in()
    return lambda function: process.submit(function, webcam).result(LIMIT_S)


def reader(webcam: Webcam, capacity: int = 10) -> LiveReader:
    """Return the reader that a worker uses."""
    return open_live(
        Deploy("", 1, webcam.path, "motion"), capacity, access=webcam.access, interruption=threading.Event()
    )


def numbers(taken: Steps) -> list[int]:
    """Return the numbers that the camera has given to its pictures."""
    pictures = [frame.decoded.to_ndarray() for frame in frames(taken)]
    return [int(picture[0, 0, 0]) + 256 * int(picture[-1, 0, 0]) for picture in pictures]


def wait_for_outage(live: LiveReader, code: str, taken: Steps) -> str:
    """Take frames until the camera is lost for this reason only. Return what its error says."""
    deadline_s = time.monotonic() + LIMIT_S
    while (outage := live.outage) is None:
        assert time.monotonic() < deadline_s
        taken += live.take(0.05)
    assert outage.code == code, outage.message
    return outage.message


def wait_until_closed() -> None:
    """Wait until no connection has the device any more."""
    wait_until(
        lambda: all(thread.name != "live connection" for thread in threading.enumerate()), "the device is closed"
    )


# --- pictures


def read_pictures(webcam: Webcam) -> None:
    with reader(webcam) as live:
        taken = take_until(live, has_frames(20))
        source = live.wait_for_source(0)
    assert source is not None
    assert (source.width, source.height, source.codec, source.live) == (WIDTH, HEIGHT, "rawvideo", True)
    wait_until_closed()
    assert numbers(taken) == list(range(len(taken)))  # the frames outlive the driver's memory
    kept = frames(taken)
    assert [frame.time_s for frame in kept] == pytest.approx([number / FPS for number in range(len(kept))], abs=0.001)
    captured = [frame.captured for frame in kept if frame.captured is not None]
    assert {time.clock for time in captured} == {CaptureClock.ARRIVAL}
    assert len(captured) == len(kept)


def read_mjpeg(webcam: Webcam) -> None:
    with reader(webcam) as live:
        taken = take_until(live, has_frames(10))
        source = live.wait_for_source(0)
    assert source is not None
    assert (source.width, source.height, source.codec) == (WIDTH, HEIGHT, "mjpeg")
    assert_accounted_for(taken, FPS)


def read_without_times(webcam: Webcam) -> None:
    webcam.set_mode("untimed")
    with reader(webcam) as live:
        taken = take_until(live, has_frames(10))
    times = [frame.time_s for frame in frames(taken)]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert times[9] == pytest.approx(9 / FPS, abs=0.3)


def read_damaged(webcam: Webcam) -> None:
    webcam.set_mode("damaged")
    with reader(webcam) as live:
        taken = take_until(live, has_frames(10))
    assert all(number % 5 != 4 for number in numbers(taken))
    assert_accounted_for(taken, FPS)


# --- outages


def read_unplugged(webcam: Webcam) -> None:
    taken: Steps = []
    with reader(webcam) as live:
        taken += take_until(live, has_frames(5))
        webcam.unplug()
        wait_until(lambda: live.outage is not None and live.outage.code == "source_not_found", "the camera is missed")
        webcam.plug_in()
        taken += take_until(live, lambda steps: has_gap(GapReason.RECONNECTING)(steps) and has_frames(8)(steps))
    assert len(gaps(taken, GapReason.RECONNECTING)) == 1
    assert_accounted_for(taken, FPS)


def read_silent(webcam: Webcam) -> None:
    taken: Steps = []
    with reader(webcam) as live:
        taken += take_until(live, has_frames(5))
        webcam.set_mode("silent")
        wait_for_outage(live, "source_timeout", taken)
        taken += live.take(0.6)
        wait_for_outage(live, "source_timeout", taken)  # the device is not busy with the connection before
        webcam.set_mode("")
        taken += take_until(live, lambda steps: has_gap(GapReason.STALLED)(steps) and has_frames(8)(steps))
    assert len(gaps(taken, GapReason.STALLED)) == 1
    assert_accounted_for(taken, FPS)


def read_busy(webcam: Webcam) -> None:
    webcam.set_mode("busy")
    with reader(webcam) as live:
        assert "used by another program" in wait_for_outage(live, "source_unreachable", [])
        webcam.set_mode("")
        take_until(live, has_frames(1))


def read_absent(webcam: Webcam) -> None:
    webcam.unplug()
    with reader(webcam) as live:
        assert "does not exist on the runner's machine" in wait_for_outage(live, "source_not_found", [])
        webcam.plug_in()
        take_until(live, has_frames(1))


def read_metadata(webcam: Webcam) -> None:
    webcam.set_mode("metadata")
    with reader(webcam) as live:
        assert "try the others" in wait_for_outage(live, "source_not_video", [])


def read_denied(webcam: Webcam) -> None:
    webcam.set_mode("denied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidflow.infra.video.webcam.PERMISSION_S", 0.3)
        with reader(webcam) as live, pytest.raises(SourceError, match="group, which is usually video") as raised:
            live.take(LIMIT_S)
    assert raised.value.code == "source_denied"


def read_denied_at_first(webcam: Webcam) -> None:
    webcam.set_mode("denied")
    with reader(webcam) as live:
        assert live.take(0.2) == []
        webcam.set_mode("")
        take_until(live, has_frames(1))


# --- the end


def stop_in_each_phase(webcam: Webcam) -> None:
    modes: tuple[Mode, ...] = ("", "silent", "busy", "denied")
    for mode, is_read in product(modes, (False, True)):
        webcam.set_mode("" if is_read else mode)
        with reader(webcam) as live:
            if is_read:
                take_until(live, has_frames(1))
                webcam.set_mode(mode)
            live.take(0.1)
            began_s = time.monotonic()
        wait_until_closed()
        assert time.monotonic() - began_s < 3.0, (mode, is_read)


def open_swapped(webcam: Webcam) -> None:
    """What a link led to when it was checked is opened, although it is swapped before."""
    link, file = webcam.folder / "by-id", webcam.folder / "file"
    access = SourceAccess(devices=(str(link),))
    link.symlink_to(webcam.path)
    file.write_text("not a camera")

    def swap_after_check(status: os.stat_result) -> bool:
        link.unlink()
        link.symlink_to(file)
        return is_camera(status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidflow.infra.video.webcam.is_camera", swap_after_check)
        with open_video(str(link), access=access) as video:
            assert (video.source.width, video.source.height) == (WIDTH, HEIGHT)
    with pytest.raises(SourceError, match="is not a camera"):
        open_video(str(link), access=access)


@pytest.mark.long
@pytest.mark.parametrize(
    "function",
    [
        read_pictures, read_without_times, read_damaged, read_unplugged, read_silent, read_busy, read_absent, read_metadata,
        read_denied, read_denied_at_first, stop_in_each_phase, open_swapped,
    ],
)  # fmt: skip
def test_a_camera(run: Run, function: Callable[[Webcam], None]) -> None:
    run(function)


@pytest.mark.long
def test_a_camera_that_sends_jpeg_pictures(webcam: Webcam, tmp_path: Path) -> None:
    encoder = VideoCodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = WIDTH, HEIGHT, "yuvj420p", Fraction(1, FPS)
    (tmp_path / "picture.jpg").write_bytes(bytes(encoder.encode(VideoFrame(WIDTH, HEIGHT, "yuvj420p"))[0]))
    webcam.set_mode("")
    webcam.plug_in()
    with process_with(replace(webcam, jpeg=tmp_path / "picture.jpg")) as process:
        process.submit(read_mjpeg, webcam).result(LIMIT_S)


@pytest.mark.long
def test_run_reads_the_camera_that_is_typed_until_ctrl_c(webcam: Webcam, tmp_path: Path) -> None:
    webcam.set_mode("")
    link = tmp_path / "video7"
    link.symlink_to(webcam.path)
    webcam.plug_in()
    # The simulated driver reads a variable and files that no worker needs.
    command = ["run", str(link), "--fps", "5", "--output", "ndjson", "--sandbox", "off"]
    with running_command(tmp_path, *command, variables=webcam.variables) as run:
        wait_until(lambda: run.stdout.count("\n") > 5 or not run.is_running(), "frames are printed", 2 * LIMIT_S)
        assert run.stop(signal.SIGINT, LIMIT_S) == 130, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["frame_number"] for row in rows] == list(range(len(rows)))
    assert {row["captured_by"] for row in rows} == {"arrival"}
