"""Decode a model's output tensors into boxes, scores and classes. It needs only numpy.

A decoder takes the outputs of one batch and returns one Candidates per picture, with boxes (x1, y1, x2, y2) in pixels of the
tensor and at least the given score. It raises OutputMismatchError if the outputs do not have the decoder's shape, and
InferenceError if a score is not a finite number.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError
from vidflow.domain.escaping import escape_unprintable
from vidflow.infra.models.decoders.candidates import (
    Candidates,
    Decoder,
    Layout,
    OutputMismatchError,
    Outputs,
    describe_shape,
)
from vidflow.infra.models.decoders.classes import decode_classes
from vidflow.infra.models.decoders.detr import decode_detr
from vidflow.infra.models.decoders.lists import decode_ssd, decode_torchvision
from vidflow.infra.models.decoders.nms import apply_nms
from vidflow.infra.models.decoders.yolo import (
    decode_fastestdet,
    decode_yolo_end2end,
    decode_yolov5,
    decode_yolov8,
    decode_yolox,
)
from vidflow.infra.models.spec import TASK_DECODERS

__all__ = ["DECODERS", "Candidates", "Layout", "apply_nms", "decode", "find_fitting_decoders"]

DECODERS: Final = {
    "yolox": Decoder(decode_yolox),
    "yolov5": Decoder(decode_yolov5),
    "yolov8": Decoder(decode_yolov8),
    "yolo_end2end": Decoder(decode_yolo_end2end, needs_nms=False),
    "detr": Decoder(decode_detr, needs_nms=False),
    "ssd": Decoder(decode_ssd, needs_nms=False),
    "tf": Decoder(decode_ssd, needs_nms=False),
    "torchvision": Decoder(decode_torchvision, needs_nms=False, one_picture=True),
    "fastestdet": Decoder(decode_fastestdet),
    "classes": Decoder(decode_classes, needs_nms=False, has_boxes=False),
}
"""The decoders by the name in a spec's [output]. `tf` is another name of `ssd`."""

MAX_DESCRIBED: Final = 10
MAX_NAME_CHARACTERS: Final = 100
"""Bounds for an error's length, as a model chooses the number and the names of its outputs."""


@np.errstate(all="ignore")  # values that are not finite are refused by checks
def decode(outputs: Outputs, layout: Layout, score: float) -> list[Candidates]:
    """Return the candidates of each picture. Raises ModelError (model_refused) if the outputs do not fit the spec's decoder."""
    try:
        return DECODERS[layout.output.decoder].decode(outputs, layout, score)
    except OutputMismatchError as mismatch:
        raise _refusal(outputs, layout, str(mismatch)) from mismatch


@np.errstate(all="ignore")
def find_fitting_decoders(outputs: Outputs, layout: Layout) -> list[str]:
    """Return the layout's task's decoders that take outputs of these shapes, types and names, whatever the layout's decoder is."""
    return [name for name in TASK_DECODERS[layout.task] if name != "tf" and _fits(name, outputs, layout)]


def _refusal(outputs: Outputs, layout: Layout, needs: str) -> ModelError:
    names = layout.names or ("",) * len(outputs)
    described = [
        escape_unprintable(f"{name[:MAX_NAME_CHARACTERS]} {describe_shape(output.shape)} {output.dtype}".lstrip())
        for name, output in zip(names, outputs, strict=True)
    ]
    actual = ", ".join(described[:MAX_DESCRIBED]) + (", ..." if len(described) > MAX_DESCRIBED else "")
    fitting = [
        repr(name) if task == layout.task else f"{name!r} with task {task!r}"
        for task in sorted(TASK_DECODERS, key=lambda task: task != layout.task)
        for name in find_fitting_decoders(outputs, msgspec.structs.replace(layout, task=task))
    ]
    hint = f" These outputs fit {' or '.join(fitting)}." if fitting else ""
    return ModelError(
        f"The model's outputs are {actual}; decoder {layout.output.decoder!r} needs {needs}. "
        f"Check the spec's decoder, strides, size and labels.{hint}",
        code="model_refused",
    )


def _fits(name: str, outputs: Outputs, layout: Layout) -> bool:
    try:
        DECODERS[name].decode(outputs, layout, 1.0)
    except (OutputMismatchError, InferenceError):
        return False
    return True
