"""The protocols between a worker and its model: Model, and the Picture that it receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from vidflow.domain.detections import Detection
from vidflow.domain.device import Device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ChannelOrder = Literal["rgb", "bgr", "grey"]
ResamplingFilter = Literal["bilinear", "area", "bicubic"]
Size = tuple[int, int]
"""(width, height) in pixels."""


class Picture(Protocol):
    """A kept frame as a model sees it: oriented as displayed, and resized only on request."""

    @property
    def width(self) -> int:
        """Width of the displayed frame in pixels."""

    @property
    def height(self) -> int:
        """Height of the displayed frame in pixels."""

    def image(
        self,
        width: int | None = None,
        height: int | None = None,
        order: ChannelOrder = "rgb",
        resample: ResamplingFilter = "bilinear",
    ) -> NDArray[np.uint8]:
        """Return an array of shape (height, width, 3), stretched to `width` x `height` if given, with the filter `resample`.

        In "grey", it is the brightness alone, of shape (height, width), which takes a third of the time.
        """


class Model(Protocol):
    """A loaded model. It is used by one thread of one worker, or by several if it runs in threads."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels that detections may have."""

    @property
    def input_size(self) -> Size | None:
        """(width, height) to which pictures are resized; None if that depends on the picture."""

    @property
    def device(self) -> Device | None:
        """The device that it runs on; None if it does not say."""

    @property
    def warmup_frames(self) -> int:
        """Number of earlier kept frames on which a result depends, besides its own frame. 0 for stateless models."""

    @property
    def batch(self) -> int:
        """The most efficient number of pictures per call. Any number gives correct results."""

    @property
    def runs_in_threads(self) -> bool:
        """Whether several threads may call `infer` at once, with the results of calls one after the other."""

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return the detections of each picture, in order. For a stateful model they are the next kept frames of one video.

        Raises InferenceError if the model fails on these pictures, and Unavailable if its device fails.
        """
