"""Convert pictures ahead of the model: each one in the way in which the model asked for the one before it.

The reading thread converts, and the model finds the pixels ready. A model that asks for something else gets it too, only later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.errors import SourceError
from vidflow.infra.models.model import ChannelOrder, ResamplingFilter
from vidflow.infra.video import KeptFrame


class ImageRequest(NamedTuple):
    """The arguments of a call of `image`."""

    width: int | None
    height: int | None
    order: ChannelOrder
    resample: ResamplingFilter


class PicturePreparation:
    """Prepares the pictures of one video. `prepare` is for the reading thread, the pictures are for the model's thread."""

    def __init__(self) -> None:
        self.last_request: ImageRequest | None = None

    def prepare(self, frame: KeptFrame) -> PreparedPicture:
        """Return the frame as a picture, converted as the model is expected to ask for it."""
        request = self.last_request
        if request is None:
            return PreparedPicture(frame, self)
        try:
            pixels = frame.image(*request)
        except SourceError:
            return PreparedPicture(frame, self)  # raised again when the model asks
        return PreparedPicture(frame, self, request, pixels)


@dataclass(slots=True, eq=False)
class PreparedPicture:
    """A Picture with pixels that are ready for one request."""

    frame: KeptFrame
    preparation: PicturePreparation
    request: ImageRequest | None = None
    pixels: NDArray[np.uint8] | None = None

    @property
    def width(self) -> int:
        """Width of the displayed frame in pixels."""
        return self.frame.width

    @property
    def height(self) -> int:
        """Height of the displayed frame in pixels."""
        return self.frame.height

    @property
    def size_bytes(self) -> int:
        """The memory of the decoded frame and the pixels."""
        return self.frame.size_bytes + (0 if self.pixels is None else self.pixels.nbytes)

    def image(
        self,
        width: int | None = None,
        height: int | None = None,
        order: ChannelOrder = "rgb",
        resample: ResamplingFilter = "bilinear",
    ) -> NDArray[np.uint8]:
        """Return the picture as an array of its own, see KeptFrame."""
        request = ImageRequest(width, height, order, resample)
        pixels, self.pixels = self.pixels, None  # handed on once: a model may write into it
        if pixels is not None and request == self.request:
            return pixels
        self.preparation.last_request = request
        return self.frame.image(*request)
