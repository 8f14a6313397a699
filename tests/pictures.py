"""Pictures for models in tests, from frames of a clip decoded by PyAV or from arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vidflow.infra.video.pixels import UPRIGHT, ChannelOrder, ResamplingFilter, to_array


class FramePicture:
    """A decoded frame of a clip that is not rotated."""

    def __init__(self, frame: av.VideoFrame) -> None:
        self.width, self.height = frame.width, frame.height
        self._frame = frame

    def image(
        self,
        width: int | None = None,
        height: int | None = None,
        order: ChannelOrder = "rgb",
        resample: ResamplingFilter = "bilinear",
    ) -> NDArray[np.uint8]:
        size = (width or self.width, height or self.height)
        return to_array(self._frame, UPRIGHT, size, order, resample=resample)


def picture_of(pixels: NDArray[np.uint8]) -> FramePicture:
    """Return an RGB array (height, width, 3) as a picture."""
    return FramePicture(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))


def pictures(path: Path, numbers: Collection[int]) -> Iterator[FramePicture]:
    """Yield the frames of these numbers in order. Numbers count all decoded frames from 0."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in numbers:
                yield FramePicture(frame)
            if number >= max(numbers):
                return
