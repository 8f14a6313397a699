"""Runs ONNX models by onnxruntime. The file is hostile: it comes as bytes, and no other file is read for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError
from vidflow.infra.models.detector import DetectionFilter, InferenceFunction, TensorDetector, first_line
from vidflow.infra.models.ort import onnxruntime as ort
from vidflow.infra.models.spec import InputSpec, ModelSpec, spec_error
from vidflow.infra.models.tensors import FloatArray

THREADS: Final = 1
"""Workers share the cores: a second thread in each makes all of them slower."""
PREFERRED_PROVIDERS: Final = ("CUDAExecutionProvider", "CPUExecutionProvider")
NO_EXTERNAL_WEIGHTS_PATH: Final = "/dev/null/no-external-weights"
"""No file can be below a device: weights that a model wants from other files are refused, wherever they are."""
LOG_SEVERITY_FATAL: Final = 4


def load_onnx(
    content: bytes, spec: ModelSpec, labels: tuple[str, ...], keep: DetectionFilter, origin: Path
) -> TensorDetector:
    """The model that these bytes hold. `origin` names it in errors.

    Raises ModelError (model_refused) where it is damaged, wants other files, or does not fit its spec.
    """
    if spec.input is None or spec.output is None:
        raise spec_error(str(origin), "it has no [input] or no [output]")
    session = open_session(content, origin)
    fixed_batch = _check_input(session, spec.input, origin)
    return TensorDetector(
        _build_inference_function(session), labels, spec.input, spec.output, spec.thresholds, keep, fixed_batch
    )


def open_session(content: bytes, origin: Path) -> ort.InferenceSession:
    """An onnxruntime session on the best provider here. Raises ModelError (model_refused)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = THREADS
    options.log_severity_level = LOG_SEVERITY_FATAL  # what goes wrong is raised, and told once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NO_EXTERNAL_WEIGHTS_PATH)
    available = ort.get_available_providers()
    try:
        return ort.InferenceSession(
            content, options, providers=[name for name in PREFERRED_PROVIDERS if name in available]
        )
    except Exception as error:  # its errors share no base but Exception
        if "external data" in str(error).lower():
            what = "it keeps weights in other files, which are never read; save it with all weights in one file"
        else:
            what = f"onnxruntime refuses it ({first_line(error)}); export it again"
        raise ModelError(f"{origin} cannot be used: {what}", code="model_refused") from error


def _build_inference_function(session: ort.InferenceSession) -> InferenceFunction:
    name = session.get_inputs()[0].name

    def run(tensor: FloatArray) -> Sequence[NDArray[Any]]:
        try:
            outputs = session.run(None, {name: tensor})
        except Exception as error:  # its errors share no base but Exception
            raise InferenceError(f"onnxruntime failed on a frame ({first_line(error)})") from error
        return [np.asarray(output) for output in outputs]

    return run


def _check_input(session: ort.InferenceSession, spec: InputSpec, origin: Path) -> int | None:
    """The batch size that the model is bound to, None for any. Raises ModelError where its input is not the spec's."""
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if inputs else []
    wanted = [None, 3, *spec.size]
    fits = (
        len(inputs) == 1
        and inputs[0].type == "tensor(float)"
        and len(shape) == len(wanted)
        and all(not isinstance(have, int) or want in {None, have} for have, want in zip(shape, wanted, strict=True))
    )
    if not fits:
        found = [(value.type, value.shape) for value in inputs]
        raise ModelError(
            f"{origin} wants {found}, its spec gives one tensor(float) of [batch, 3, {spec.size[0]}, {spec.size[1]}]; "
            "correct [input] size",
            code="model_refused",
        )
    return shape[0] if isinstance(shape[0], int) else None
