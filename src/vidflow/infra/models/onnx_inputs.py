"""The inputs of an ONNX model: which one takes the pictures and in what form, and what fills the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.errors import ModelError
from vidflow.domain.escaping import escape_unprintable
from vidflow.infra.models.spec import InputSpec
from vidflow.infra.models.tensors import TensorForm

Shape = Sequence[int | str | None]
"""Lengths of axes. A length that the file leaves open is its name, or None."""

PICTURE_TYPES: Final[Mapping[str, Literal["float32", "float16", "uint8"]]] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
}
NUMBER_TYPES: Final = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
CHANNELS: Final = 3
MAX_DESCRIBED: Final = 10
MAX_NAME_CHARACTERS: Final = 100
"""Bounds for an error's length, as a model chooses the names and the number of its inputs and of their axes."""


class NodeArg(Protocol):
    """An input as onnxruntime describes it."""

    name: str
    type: str
    shape: Shape


class ModelInputs(msgspec.Struct, frozen=True):
    """The inputs of a model: `picture` is the name of the one that takes pictures, in the form `form`.

    `fixed_batch` is the only number of pictures that the model accepts, None if it accepts any.
    """

    picture: str
    form: TensorForm
    fixed_batch: int | None
    others: Mapping[str, Callable[[int], NDArray[Any]]]

    def feed(self, tensor: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the values of all inputs for a tensor of pictures."""
        batch = len(tensor) if self.form.has_batch_axis else 1
        return {self.picture: tensor, **{name: fill(batch) for name, fill in self.others.items()}}


def find_inputs(inputs: Sequence[NodeArg], spec: InputSpec, origin: str) -> ModelInputs:
    """Return how the inputs of a model are filled. Raises ModelError (model_refused) if they do not fit the spec."""
    pictures = [value for value in inputs if value.name not in OTHER_INPUTS]
    if len(pictures) != 1:
        names = ", ".join(repr(value.name[:MAX_NAME_CHARACTERS]) for value in inputs[:MAX_DESCRIBED]) or "none"
        raise _refusal(
            f"The inputs of {origin} are {names}. A model needs one input for pictures; besides it, only "
            f"{' and '.join(OTHER_INPUTS)} can be filled. Export it without other inputs."
        )
    (picture,) = pictures
    form, fixed_batch = _picture_form(picture, spec, origin)
    others = {value.name: _filler(value, spec, origin) for value in inputs if value is not picture}
    return ModelInputs(picture.name, form, fixed_batch, others)


def _picture_form(value: NodeArg, spec: InputSpec, origin: str) -> tuple[TensorForm, int | None]:
    """Return the form of the input for pictures, and its fixed batch size."""
    found = f"Input {_describe(value)} of {origin}"
    dtype = PICTURE_TYPES.get(value.type)
    if dtype is None:
        raise _refusal(f"{found} has another type than {', '.join(PICTURE_TYPES)}. Export it with one of them.")
    shape = list(value.shape)
    if len(shape) not in {CHANNELS, CHANNELS + 1}:
        raise _refusal(
            f"{found} has {len(shape)} axes. Pictures need [batch, 3, height, width] or [batch, height, width, 3]."
        )
    layout = spec.layout or _guess_layout(shape)
    channels, height, width = shape[-3:] if layout == "nchw" else (shape[-1], *shape[-3:-1])
    if isinstance(channels, int) and channels != CHANNELS:
        problem = (
            f"is not {spec.layout.upper()}, as [input] layout says" if spec.layout else "has no axis of 3 channels"
        )
        raise _refusal(f"{found} {problem}. Pictures need [batch, 3, height, width] or [batch, height, width, 3].")
    if any(
        isinstance(actual, int) and actual != length for actual, length in zip((height, width), spec.size, strict=True)
    ):
        raise _refusal(
            f"{found} takes pictures of height {height} and width {width}, the spec's size is {list(spec.size)}. "
            "Correct [input] size in the spec."
        )
    has_batch_axis = len(shape) > CHANNELS
    batch = shape[0] if has_batch_axis else 1
    return TensorForm(dtype, layout, has_batch_axis), batch if isinstance(batch, int) else None


def _guess_layout(shape: Shape) -> Literal["nchw", "nhwc"]:
    """Return the layout with three channels. Where both are possible, it is NCHW, as most exporters write it."""
    return "nhwc" if shape[-1] == CHANNELS and shape[-3] != CHANNELS else "nchw"


def _target_sizes(value: NodeArg, spec: InputSpec) -> Callable[[int], NDArray[Any]] | None:
    """Fill (batch, 2) with the tensor's width and height, in which RT-DETR and D-FINE then return their boxes."""
    dtype = NUMBER_TYPES.get(value.type)
    if (
        dtype is None
        or len(value.shape) != 2
        or (value.shape[1] not in {2, None} and not isinstance(value.shape[1], str))
    ):
        return None
    height, width = spec.size
    return lambda batch: np.tile(np.array([width, height], dtype=dtype), (batch, 1))


def _pixel_mask(value: NodeArg, spec: InputSpec) -> Callable[[int], NDArray[Any]] | None:
    """Fill (batch, height, width) with ones: all pixels belong to the picture. Exports may have fixed the mask's size at 64."""
    dtype = NUMBER_TYPES.get(value.type)
    if dtype is None or len(value.shape) != 3:
        return None
    size = [
        actual if isinstance(actual, int) else length for actual, length in zip(value.shape[1:], spec.size, strict=True)
    ]
    return lambda batch: np.ones((batch, *size), dtype=dtype)


OTHER_INPUTS: Final = {"orig_target_sizes": _target_sizes, "pixel_mask": _pixel_mask}
"""Functions that return how an input besides the pictures is filled, None if its type or shape is not the expected one."""


def _filler(value: NodeArg, spec: InputSpec, origin: str) -> Callable[[int], NDArray[Any]]:
    fill = OTHER_INPUTS[value.name](value, spec)
    if fill is None:
        raise _refusal(
            f"Input {_describe(value)} of {origin} has another type or shape than exporters give to {value.name}. "
            "Export it again, without this input."
        )
    return fill


def _describe(value: NodeArg) -> str:
    """Return an input as text, such as "'images' (tensor(float) [batch, 3, 640, 640])"."""
    lengths = ", ".join(
        "?" if length is None else str(length)[:MAX_NAME_CHARACTERS] for length in value.shape[:MAX_DESCRIBED]
    )
    return escape_unprintable(f"{value.name[:MAX_NAME_CHARACTERS]!r} ({value.type} [{lengths}])")


def _refusal(text: str) -> ModelError:
    return ModelError(text, code="model_refused")
