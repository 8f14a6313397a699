"""Run programs saved by torch.export (.pt2) whose sha256 the spec contains. No other module may load a .pt2 file.

Loading such a file can run code in it: torch falls back to full unpickling and evaluates the file's symbols. Therefore the
digest in the spec is required, the bytes are hashed before torch sees them, and the spec's author is responsible for them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError
from vidflow.infra.models.detector import DetectionFilter, InferenceFunction, TensorDetector, first_line
from vidflow.infra.models.spec import ModelSpec, spec_error
from vidflow.infra.models.tensors import FloatArray

THREADS: Final = 1


def load_exported(
    content: bytes, spec: ModelSpec, labels: tuple[str, ...], detection_filter: DetectionFilter, origin: Path
) -> TensorDetector:
    """Return the program in `content`. The caller has compared its sha256 with the spec's. `origin` names it in errors.

    Raises ModelError (model_refused) if torch cannot load it.
    """
    if spec.input is None or spec.output is None or spec.sha256 is None:
        raise spec_error(str(origin), "kind 'exported' needs sha256, [input] and [output]")
    torch.set_num_threads(THREADS)
    try:
        program = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # for damaged archives torch raises errors of many types
        raise ModelError(
            f"Cannot load {origin}: torch.export cannot read it ({first_line(error)}). Export it again with this version of torch.",
            code="model_refused",
        ) from error
    return TensorDetector(
        _build_inference_function(program),
        labels,
        spec.input,
        spec.output,
        spec.thresholds,
        detection_filter,
        fixed_batch=spec.input.batch,
    )


def _build_inference_function(program: Any) -> InferenceFunction:  # noqa: ANN401  (torch is not typed here)
    def run(tensor: FloatArray) -> Sequence[NDArray[Any]]:
        try:
            with torch.inference_mode():
                outputs = program(torch.from_numpy(tensor))
        except (RuntimeError, AssertionError) as error:
            raise InferenceError(f"The exported program failed on a frame ({first_line(error)}).") from error
        return [value.cpu().numpy() for value in _flatten(outputs)]

    return run


def _flatten(outputs: Any) -> list[Any]:  # noqa: ANN401  (a tensor, or tensors in lists, tuples and dicts)
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _flatten(value)]
