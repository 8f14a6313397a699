"""Pictures for a check: read from a file or generated, and written to a file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vidflow.domain.errors import ParameterError, SourceError
from vidflow.infra.models.model import ChannelOrder, Picture, ResamplingFilter
from vidflow.infra.video import KeptFrame, open_video, read_kept_frames
from vidflow.infra.video.pixels import displayed_size, read_orientation, to_array
from vidflow.infra.video.source import MAX_PIXELS

CODECS: Final = ((b"\xff\xd8\xff", "mjpeg"), (b"\x89PNG\r\n\x1a\n", "png"))
"""How pictures start, and what decodes them. Everything else is read as a video."""
MAX_PICTURE_BYTES: Final = 256 * 1024**2
GENERATED_SIZE: Final = (1280, 720)

Pixels = NDArray[np.uint8]


class StillPicture:
    """A decoded picture, in the form that models take."""

    def __init__(self, frame: VideoFrame) -> None:
        self._frame, self._orientation = frame, read_orientation(frame)
        self.width, self.height = displayed_size(frame, self._orientation)

    def image(
        self,
        width: int | None = None,
        height: int | None = None,
        order: ChannelOrder = "rgb",
        resample: ResamplingFilter = "bilinear",
    ) -> Pixels:
        """Return the pixels, see `Picture`."""
        size = (width or self.width, height or self.height)
        return to_array(self._frame, self._orientation, size, order, resample=resample)


def generate_picture() -> Picture:
    """Return a picture of colours and noise, the same each time, in which models find little."""
    width, height = GENERATED_SIZE
    rows, columns = np.mgrid[:height, :width]
    colours = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=2)
    noise = np.random.default_rng(0).integers(-20, 20, colours.shape)
    pixels = np.clip(colours + noise, 0, 255).astype(np.uint8)
    return StillPicture(VideoFrame.from_ndarray(pixels, format="rgb24"))


def read_picture(path: str) -> Picture:
    """Return a picture (JPEG, PNG), or the first frame of a video. Raises SourceError if it is neither, or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(max(len(magic) for magic, _ in CODECS))
            codec = next((codec for magic, codec in CODECS if start.startswith(magic)), None)
            content = start + file.read(MAX_PICTURE_BYTES) if codec is not None else b""
    except OSError as error:
        raise SourceError(
            f"Cannot read {path} ({error.strerror}). Check its permissions.", code="source_missing"
        ) from error
    return _read_first_frame(path) if codec is None else StillPicture(_decode(content, codec, path))


def _decode(content: bytes, codec: str, path: str) -> VideoFrame:
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    try:
        frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
    except (av.error.FFmpegError, ValueError) as error:
        raise _damaged(path) from error
    if not frames:
        raise _damaged(path)
    frame: VideoFrame = frames[0]
    return frame


def _damaged(path: str) -> SourceError:
    return SourceError(
        f"{path} is damaged, or has more than {MAX_PIXELS} pixels. Save it again, or give another one.",
        code="source_not_video",
    )


def _read_first_frame(path: str) -> KeptFrame:
    with open_video(path) as video:
        for event in read_kept_frames(video):
            if isinstance(event, KeptFrame):
                return event
    raise SourceError(f"{path} has no frame. Give another file.", code="no_frames")


def write_png(path: Path, pixels: Pixels) -> None:
    """Write an RGB picture. Raises ParameterError if the file cannot be written."""
    height, width = pixels.shape[:2]
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "rgb24", Fraction(1)
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    content = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ParameterError(
            f"Cannot write {path} ({error.strerror}). Copy the picture into a folder of yours and check again."
        ) from error
