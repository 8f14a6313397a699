"""Convert a picture to a model's input tensor, and the model's boxes back to the picture."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.infra.models.model import Picture, Size
from vidflow.infra.models.spec import DEFAULT_CROP, InputSpec, Normalisation

FloatArray = NDArray[np.float32]
Tensor = NDArray[np.floating[Any]] | NDArray[np.uint8]
LETTERBOX: Final = "letterbox"
CROP: Final = "crop"
CENTRE: Final = "centre"
MAX_SCALED_PIXELS: Final = 2**26
"""Pixels of a picture before it is cropped: 200 MB. A picture of 16 x 65,535 pixels would need four times as many for a small net."""


class TensorForm(msgspec.Struct, frozen=True):
    """The form of a model's input: type of its numbers, order of its axes, and whether it has an axis for the batch."""

    dtype: Literal["float32", "float16", "uint8"] = "float32"
    layout: Literal["nchw", "nhwc"] = "nchw"
    has_batch_axis: bool = True

    def allocate(self, batch: int, size: tuple[int, int]) -> Tensor:
        """Return a tensor of zeros for `batch` pictures of `size` (height, width)."""
        shape = (3, *size) if self.layout == "nchw" else (*size, 3)
        return np.zeros((batch, *shape) if self.has_batch_axis else shape, dtype=self.dtype)

    def planes(self, tensor: Tensor, index: int) -> Tensor:
        """Return one picture of a tensor as a view (3, height, width)."""
        picture = tensor[index] if self.has_batch_axis else tensor
        return picture if self.layout == "nchw" else picture.transpose(2, 0, 1)


class PictureSizes(msgspec.Struct, frozen=True):
    """The sizes of pictures for a network that takes several: all the same, `fixed` (width, height), or in their own proportions.

    Then the shorter side has `short` pixels, or fewer if the longer one would have more than `long`.
    """

    short: int
    long: int
    fixed: Size | None = None

    def fit(self, picture: Size) -> Size:
        """Return the size for a picture of (width, height)."""
        if self.fixed is not None:
            return self.fixed
        width, height = picture
        ratio = min(self.short / min(picture), self.long / max(picture))
        return (max(round(width * ratio), 1), max(round(height * ratio), 1))

    def allows(self, size: Size) -> bool:
        """Return whether pictures may have this size."""
        return min(size) > 0 and max(size) <= self.long if self.fixed is None else size == self.fixed


class PictureFit(msgspec.Struct, frozen=True):
    """Where a picture lies in a tensor: stretched to `size` (width, height), with its corner at (`left`, `top`).

    A coordinate in the picture is (the one in the tensor - the corner) / the scale of that axis. The corner of a picture that is
    cropped lies outside the tensor.
    """

    size: Size
    left: int
    top: int
    scale_x: float
    scale_y: float


def fit_picture(picture: Size, spec: InputSpec) -> PictureFit:
    """Return where a picture of size (width, height) lies in the tensor of `spec`."""
    width, height = picture
    tensor_height, tensor_width = spec.size
    if spec.resize == CROP:
        return _crop_picture(picture, spec)
    if spec.resize != LETTERBOX:
        return PictureFit((tensor_width, tensor_height), 0, 0, tensor_width / width, tensor_height / height)
    ratio = min(tensor_width / width, tensor_height / height)
    inner = (max(int(width * ratio), 1), max(int(height * ratio), 1))
    left = (tensor_width - inner[0]) // 2 if spec.place == CENTRE else 0
    top = (tensor_height - inner[1]) // 2 if spec.place == CENTRE else 0
    return PictureFit(inner, left, top, inner[0] / width, inner[1] / height)


def _crop_picture(picture: Size, spec: InputSpec) -> PictureFit:
    width, height = picture
    tensor_height, tensor_width = spec.size
    ratio = max(tensor_width / width, tensor_height / height) / (spec.crop or DEFAULT_CROP)
    scaled = (max(round(width * ratio), tensor_width), max(round(height * ratio), tensor_height))
    if scaled[0] * scaled[1] > MAX_SCALED_PIXELS:
        raise InferenceError(
            f"A picture of {width} x {height} pixels cannot be cropped: it would have {scaled[0]} x {scaled[1]} pixels before. "
            "Use resize = 'letterbox' in the model's spec."
        )
    left, top = round((scaled[0] - tensor_width) / 2), round((scaled[1] - tensor_height) / 2)
    return PictureFit(scaled, -left, -top, scaled[0] / width, scaled[1] / height)


def fill_tensor(tensor: Tensor, picture: Picture, spec: InputSpec) -> PictureFit:
    """Write the picture into `tensor`, an array (3, height, width) of the spec's size. Return where it lies.

    Whole numbers are computed as float32 and rounded, half precision as float32 as well.
    """
    fit = fit_picture((picture.width, picture.height), spec)
    normalisation = spec.normalisation()
    direct = tensor.dtype == np.float32 or normalisation == Normalisation()
    values = tensor if direct else np.empty(tensor.shape, dtype=np.float32)
    pixels = picture.image(*fit.size, spec.channels, spec.resample)
    if fit.left < 0 or fit.top < 0:
        pixels = pixels[-fit.top : spec.size[0] - fit.top, -fit.left : spec.size[1] - fit.left]
    height, width = pixels.shape[:2]
    if (height, width) != spec.size:
        values[:] = spec.pad
    top, left = max(fit.top, 0), max(fit.left, 0)
    values[:, top : top + height, left : left + width] = pixels.transpose(2, 0, 1)
    _normalise(values, normalisation)
    if not direct:
        tensor[:] = values if tensor.dtype != np.uint8 else np.clip(np.rint(values), 0, 255)
    return fit


def map_to_picture(coordinates: FloatArray, fit: PictureFit) -> FloatArray:
    """Convert boxes (..., 4) or points (..., 2) from the tensor's coordinates to the picture's."""
    points = coordinates.shape[-1] // 2
    corner = np.array([fit.left, fit.top] * points, dtype=np.float32)
    scale = np.array([fit.scale_x, fit.scale_y] * points, dtype=np.float32)
    return (coordinates - corner) / scale


def _normalise(tensor: Tensor, spec: Normalisation) -> None:
    """Compute (pixel * scale - mean) / std in place, skipping steps without effect."""
    if spec.scale != 1.0:
        tensor *= np.float32(spec.scale)
    mean, std = _per_channel(spec.mean), _per_channel(spec.std)
    if mean.any():
        tensor -= mean
    if (std != 1.0).any():
        tensor /= std


def _per_channel(value: float | tuple[float, ...]) -> FloatArray:
    return np.broadcast_to(np.asarray(value, dtype=np.float32).reshape(-1, 1, 1), (3, 1, 1))
