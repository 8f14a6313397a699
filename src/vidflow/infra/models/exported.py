"""Runs programs saved by torch.export (.pt2) whose spec vouches for them by sha256. Nothing else here may load a .pt2.

Loading such a file can run code that it carries: torch falls back to full unpickling, and evaluates the file's symbols. So
the digest in the spec is a must, the bytes are hashed before torch sees them, and whoever writes the spec answers for them.
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
    content: bytes, spec: ModelSpec, labels: tuple[str, ...], keep: DetectionFilter, origin: Path
) -> TensorDetector:
    """The program that these bytes hold; they must be those whose sha256 the spec names. `origin` names it in errors.

    Raises ModelError (model_refused) where torch cannot read it.
    """
    if spec.input is None or spec.output is None or spec.sha256 is None:
        raise spec_error(str(origin), "kind 'exported' needs sha256, [input] and [output]")
    torch.set_num_threads(THREADS)
    try:
        program = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise ModelError(
            f"{origin} cannot be used: torch.export cannot load it ({first_line(error)}); export it again with this torch",
            code="model_refused",
        ) from error
    return TensorDetector(
        _build_inference_function(program),
        labels,
        spec.input,
        spec.output,
        spec.thresholds,
        keep,
        fixed_batch=spec.input.batch,
    )


def _build_inference_function(program: Any) -> InferenceFunction:  # noqa: ANN401  (torch is not typed here)
    def run(tensor: FloatArray) -> Sequence[NDArray[Any]]:
        try:
            with torch.inference_mode():
                outputs = program(torch.from_numpy(tensor))
        except (RuntimeError, AssertionError) as error:
            raise InferenceError(f"the exported program failed on a frame ({first_line(error)})") from error
        return [value.cpu().numpy() for value in _flatten(outputs)]

    return run


def _flatten(outputs: Any) -> list[Any]:  # noqa: ANN401  (a tensor, or tensors in lists, tuples and dicts)
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _flatten(value)]
