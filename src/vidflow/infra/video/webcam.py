"""Open cameras that are connected to this machine (video4linux) with FFmpeg, and read their pictures.

FFmpeg would wait for the next picture without end, also if the camera was unplugged or is frozen. So it does not wait at all, and this
module asks it again until there is a picture.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import Final, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.infra.camera_devices import is_camera
from vidflow.infra.video.ffmpeg import open_with_ffmpeg
from vidflow.infra.video.packets import LostPacket
from vidflow.infra.video.source_connection import Interruption, ReadingStopped, require_running

OPEN_TIMEOUT_S: Final = 10.0
"""How long FFmpeg waits for the first picture if it needs one to know the format (MJPEG). It keeps a core busy meanwhile."""
POLL_S: Final = 0.005
PERMISSION_S: Final = 2.0
"""A device that was just plugged in belongs to root until udev has given it to its group."""
OLDEST_PICTURE_US: Final = 10_000_000
EARLIEST_PICTURE_US: Final = -1_000_000
"""A time of a picture that is further from now is by neither clock of this machine."""
_OPTIONS: Final = {
    "format_whitelist": "video4linux2,v4l2",
    "protocol_whitelist": "none",
    "fflags": "+4",  # AVFMT_FLAG_NONBLOCK, which has no name as an option
    # The driver states the format. FFmpeg would read the first pictures to find their rate and the start of their clock.
    "probesize": "32",
    "fpsprobesize": "0",
    "max_ts_probe": "0",
}
_NOT_A_CAMERA: Final = frozenset({errno.EINVAL, errno.ENOTTY, errno.ENOSYS})


def open_webcam(path: str, interruption: Interruption) -> InputContainer:
    """Open a camera with the size and rate that it is set to. Raises SourceError, Unavailable or ReadingStopped."""
    deadline_s = time.monotonic() + PERMISSION_S
    while True:
        try:
            return _open(path)
        except PermissionError as error:
            if time.monotonic() > deadline_s:
                raise SourceError(
                    f"{path} may not be opened by the runner's user. Add that user to the device's group, which is usually video.",
                    code="source_denied",
                ) from error
        except (av.error.FFmpegError, OSError) as error:
            raise _build_error(path, error) from error
        if interruption.wait(POLL_S):
            raise ReadingStopped


def read_pictures(
    container: InputContainer, stream: VideoStream, display_name: str, interruption: Interruption
) -> Iterator[Packet[VideoStream] | LostPacket]:
    """Yield the pictures as they come, without an end. Their pts are the driver's times, or those of arrival if it has none.

    Raises Unavailable if the camera is lost, or ReadingStopped.
    """
    has_times: bool | None = None
    while True:
        require_running(interruption)
        try:
            shared = next(container.demux(stream))
        except av.error.BlockingIOError:
            interruption.wait(POLL_S)
            continue
        except av.error.FFmpegError as error:
            raise _build_error(display_name, error) from error
        if has_times is None:
            has_times = _has_time_of_this_machine(shared)
        pts = shared.pts if has_times else time.time_ns() // 1000
        if not shared.size:
            yield LostPacket(pts)
            continue
        # The picture lies in memory of the driver, which is unmapped with the device, while frames may refer to it for longer.
        picture = cast("Packet[VideoStream]", Packet(bytes(shared)))
        picture.stream, picture.time_base, picture.pts, picture.dts = stream, shared.time_base, pts, pts
        picture.is_keyframe = True
        del shared
        yield picture


def _open(path: str) -> InputContainer:
    """Open the device that the path leads to, once. What is checked is what is opened, whatever becomes of the path."""
    device = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not is_camera(os.fstat(device)):
            raise SourceError(f"{path} is not a camera (a device of video4linux).", code="source_forbidden")
        return open_with_ffmpeg(
            f"/proc/self/fd/{device}", _OPTIONS, timeout=(OPEN_TIMEOUT_S, OPEN_TIMEOUT_S), format_name="v4l2"
        )
    finally:
        os.close(device)


def _has_time_of_this_machine(picture: Packet[VideoStream]) -> bool:
    """Return whether the time of a picture that was just read is by the monotonic clock or the time of day."""
    if picture.pts is None:
        return False
    ages_us = (time.monotonic_ns() // 1000 - picture.pts, time.time_ns() // 1000 - picture.pts)
    return any(EARLIEST_PICTURE_US <= age_us <= OLDEST_PICTURE_US for age_us in ages_us)


def _build_error(name: str, error: av.error.FFmpegError | OSError) -> Unavailable:
    """Return the error to raise for a camera that cannot be opened or read now."""
    code = error.errno
    if code in {errno.ENOENT, errno.ENOTDIR}:
        return Unavailable(
            f"{name} does not exist on the runner's machine. Plug the camera in. If it is connected to another machine, choose the pool of"
            " a runner there.",
            code="source_not_found",
        )
    if code == errno.EBUSY:
        return Unavailable(f"{name} is used by another program. Close that program.", code="source_unreachable")
    if code in _NOT_A_CAMERA:
        return Unavailable(
            f"{name} sends no pictures ({error.strerror}). A camera may have several devices: try the others.",
            code="source_not_video",
        )
    return Unavailable(
        f"{name} cannot be read ({error.strerror}). Check that the camera is plugged in.", code="source_unreachable"
    )
