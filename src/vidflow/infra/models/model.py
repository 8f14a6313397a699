"""What every model and every picture given to one can do: the two protocols between a worker and its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from vidflow.domain.detections import Detection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ChannelOrder = Literal["rgb", "bgr"]
Size = tuple[int, int]
"""(width, height) in pixels."""


class Picture(Protocol):
    """A kept frame as a model sees it: displayed orientation, resized only when asked."""

    @property
    def width(self) -> int:
        """Pixels of the displayed frame."""

    @property
    def height(self) -> int:
        """Pixels of the displayed frame."""

    def image(
        self, width: int | None = None, height: int | None = None, order: ChannelOrder = "rgb"
    ) -> NDArray[np.uint8]:
        """An array (height, width, 3), stretched to `width` x `height` where they are given."""


class Model(Protocol):
    """A loaded model, used by one thread of one worker."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that it may give."""

    @property
    def input_size(self) -> Size | None:
        """(width, height) that it asks of pictures, None where that follows the picture."""

    @property
    def warmup_frames(self) -> int:
        """W: a result depends on the frame and on the W kept frames before it, and on nothing else; 0 for most."""

    @property
    def batch(self) -> int:
        """How many pictures it is best given at once; fewer and more are right too."""

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """What it sees on each, in order. A stateful model takes them as the next kept frames of one video.

        Raises InferenceError where it fails on these pictures.
        """
