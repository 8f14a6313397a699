"""Pictures for a check: read from a file, or generated; and written with the boxes of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ParameterError, SourceError
from vidflow.infra.models.model import ChannelOrder, Picture, ResamplingFilter
from vidflow.infra.video import KeptFrame, open_video, read_kept_frames
from vidflow.infra.video.pixels import displayed_size, read_orientation, to_array
from vidflow.infra.video.source import MAX_PIXELS

CODECS: Final = ((b"\xff\xd8\xff", "mjpeg"), (b"\x89PNG\r\n\x1a\n", "png"))
"""How pictures start, and what decodes them. Everything else is read as a video."""
MAX_PICTURE_BYTES: Final = 256 * 1024**2
GENERATED_SIZE: Final = (1280, 720)
COLOURS: Final = ((255, 212, 0), (0, 200, 255), (255, 80, 80), (90, 230, 90), (230, 110, 255), (255, 150, 30))
DIGITS: Final = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111",
)  # fmt: skip
"""The digits from 0 to 9, in five rows of three points."""

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


def draw_boxes(picture: Picture, detections: Sequence[Detection]) -> Pixels:
    """Return the picture with a box around each detection, and its number in the list, from 1, in the box's corner."""
    pixels = picture.image().copy()
    height, width = pixels.shape[:2]
    line = max(2, min(width, height) // 300)
    colours: dict[str, tuple[int, int, int]] = {}
    for number, detection in reversed(list(enumerate(detections, 1))):  # the best one is on top
        colour = colours.setdefault(detection.label, COLOURS[len(colours) % len(COLOURS)])
        x1, y1, x2, y2 = (round(value) for value in detection.box)
        x1, y1 = min(x1, width - line), min(y1, height - line)
        x2, y2 = max(x2, x1 + line), max(y2, y1 + line)
        for rows, columns in (
            (slice(y1, y1 + line), slice(x1, x2)), (slice(max(y2 - line, 0), y2), slice(x1, x2)),
            (slice(y1, y2), slice(x1, x1 + line)), (slice(y1, y2), slice(max(x2 - line, 0), x2)),
        ):  # fmt: skip
            pixels[rows, columns] = colour
        _draw_number(pixels, number, x1 + line, y1 + line, 2 * line, colour)
    return pixels


def _draw_number(pixels: Pixels, number: int, x: int, y: int, scale: int, colour: tuple[int, int, int]) -> None:
    """Draw a number in black on a field of `colour`, as far as it lies in the picture. A point is `scale` / 2 pixels wide."""
    point = max(scale // 2, 1) + 1
    glyphs = [np.array([int(point) for point in DIGITS[int(digit)]], dtype=bool).reshape(5, 3) for digit in str(number)]
    points = np.pad(np.concatenate([np.pad(glyph, ((0, 0), (0, 1))) for glyph in glyphs], axis=1), ((1, 1), (1, 0)))
    mask = points.repeat(point, axis=0).repeat(point, axis=1)
    field = pixels[y : y + mask.shape[0], x : x + mask.shape[1]]
    mask = mask[: field.shape[0], : field.shape[1]]
    field[:] = colour
    field[mask] = 0


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
