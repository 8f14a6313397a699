"""Convert a decoded frame to an array of pixels as displayed."""

from __future__ import annotations

import struct
import threading
from fractions import Fraction
from typing import Final, Literal, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidflow.domain.errors import SourceError

ChannelOrder = Literal["rgb", "bgr", "grey"]
ResamplingFilter = Literal["bilinear", "area", "bicubic"]
_FORMATS: Final[dict[ChannelOrder, str]] = {"rgb": "rgb24", "bgr": "bgr24", "grey": "gray"}
_FILTERS: Final[dict[ResamplingFilter, Interpolation]] = {
    "bilinear": Interpolation.BILINEAR, "area": Interpolation.AREA, "bicubic": Interpolation.BICUBIC,
}  # fmt: skip
"""swscale's filters. When a picture is reduced, all of them widen with the ratio, so that every pixel counts: a triangle over two
pixels of the result, the mean of exactly one, and a cubic (B = 0, C = 0.6) over four. `area` enlarges like `bilinear`."""
_MATRIX: Final = struct.Struct("=9i")


class _Scalers(threading.local):
    """A scaler for each thread, since one must not be used by several. It keeps its tables while the sizes stay the same."""

    def __init__(self) -> None:
        self.own = VideoReformatter()


_scalers: Final = _Scalers()


class Orientation(NamedTuple):
    """How to turn the decoded picture into the displayed one: swap rows and columns first, then flip the axes."""

    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False


class Crop(NamedTuple):
    """Margins of the decoded picture that are not displayed, in decoded pixels, before the picture is turned."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def crop_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that remain of a picture; all of it if the margins cover it (its size may change midway)."""
        cropped = width - self.left - self.right, height - self.top - self.bottom
        return cropped if min(cropped) > 0 else (width, height)


UPRIGHT: Final = Orientation()
NO_CROP: Final = Crop()
SQUARE: Final = Fraction(1)


def read_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation in the frame's display matrix: a multiple of 90 degrees, possibly mirrored. Ignore other angles."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(side_data, SideData) or side_data.buffer_size != _MATRIX.size:
        return UPRIGHT
    # x' = a x + c y, y' = b x + d y, with x to the right and y downwards.
    a, b, _, c, d, *_ = _MATRIX.unpack(bytes(side_data))
    if a and d and not b and not c:
        return Orientation(transposed=False, flip_x=a < 0, flip_y=d < 0)
    if b and c and not a and not d:
        return Orientation(transposed=True, flip_x=c < 0, flip_y=b < 0)
    return UPRIGHT


def displayed_size(
    frame: VideoFrame, orientation: Orientation, pixel_aspect: Fraction = SQUARE, crop: Crop = NO_CROP
) -> tuple[int, int]:
    """Return the width and height of the frame as displayed, in square pixels. `pixel_aspect`: width / height of a stored pixel.

    Like players, it keeps the number of rows and scales their length.
    """
    columns, height = crop.crop_size(frame.width, frame.height)
    width = max(1, round(columns * pixel_aspect))
    return (height, width) if orientation.transposed else (width, height)


def to_array(
    frame: VideoFrame,
    orientation: Orientation,
    size: tuple[int, int],
    order: ChannelOrder,
    crop: Crop = NO_CROP,
    resample: ResamplingFilter = "bilinear",
) -> NDArray[np.uint8]:
    """Return the frame as displayed, scaled to `size` (width, height): uint8, contiguous, shape (height, width, 3).

    In "grey", it is the brightness from 0 to 255, of shape (height, width). Of most videos, swscale then reads only that plane.
    swscale scales it before it is turned, which is far cheaper than scaling tensors.
    Raises SourceError for a pixel format that cannot be converted.
    """
    width, height = size
    if orientation.transposed:
        width, height = height, width
    try:
        scaled = _scalers.own.reformat(
            _crop(frame, crop, order), width, height, _FORMATS[order], interpolation=_FILTERS[resample], threads=1,
            dst_color_range=ColorRange.JPEG if order == "grey" else None,
        )  # fmt: skip
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(
            f"Frames in pixel format {frame.format.name} cannot be converted to {order}. Convert the video first,"
            " for example with `ffmpeg -i VIDEO -pix_fmt yuv420p OUT.mp4`.",
            code="source_not_video",
        ) from error
    return np.ascontiguousarray(_orient(np.asarray(scaled.to_ndarray(), dtype=np.uint8), orientation))


def _crop(frame: VideoFrame, crop: Crop, order: ChannelOrder) -> VideoFrame:
    """Return the displayed part of the frame, as RGB or BGR if there are margins: cropping YUV pictures would round odd margins."""
    width, height = crop.crop_size(frame.width, frame.height)
    if (width, height) == (frame.width, frame.height):
        return frame
    pixel_format = _FORMATS["rgb" if order == "grey" else order]  # an array of grey values has no colour range
    pixels = np.asarray(_scalers.own.reformat(frame, format=pixel_format, threads=1).to_ndarray(), dtype=np.uint8)
    return VideoFrame.from_ndarray(
        np.ascontiguousarray(pixels[crop.top : crop.top + height, crop.left : crop.left + width]), format=pixel_format
    )


def _orient(pixels: NDArray[np.uint8], orientation: Orientation) -> NDArray[np.uint8]:
    if orientation.transposed:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation.flip_y else 1, :: -1 if orientation.flip_x else 1]
