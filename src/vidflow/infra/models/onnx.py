"""Run ONNX models with onnxruntime. Models are untrusted: they are loaded from bytes, and never read other files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.detector import InferenceFunction, TensorDetector, first_line
from vidflow.infra.models.ort import onnxruntime as ort
from vidflow.infra.models.spec import InputSpec
from vidflow.infra.models.tensors import FloatArray

THREADS: Final = 1
"""Workers share the cores, and a second thread in each makes all of them slower."""
PREFERRED_PROVIDERS: Final = ("CUDAExecutionProvider", "CPUExecutionProvider")
NO_EXTERNAL_WEIGHTS_PATH: Final = "/dev/null/no-external-weights"
"""A path below a device cannot exist, so weights in external files are refused, wherever they are."""
LOG_SEVERITY_FATAL: Final = 4


def load_onnx(bundle: Bundle, parameters: Parameters) -> TensorDetector:
    """Return the model of a spec of kind `onnx`.

    Raises ModelError (model_refused) if it is damaged, needs other files, or does not fit its spec.
    """
    session = open_session(bundle.require_weights(), bundle.origin)
    inputs, _ = bundle.spec.tensor_specs()
    fixed_batch = _check_input(session, inputs, bundle.origin)
    return TensorDetector(_build_inference_function(session), bundle, parameters, fixed_batch)


def open_session(content: bytes, origin: str) -> ort.InferenceSession:
    """Return an onnxruntime session on the best available provider. Raises ModelError (model_refused)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = THREADS
    options.log_severity_level = LOG_SEVERITY_FATAL  # errors are raised; logging them would report them twice
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NO_EXTERNAL_WEIGHTS_PATH)
    available = ort.get_available_providers()
    try:
        return ort.InferenceSession(
            content, options, providers=[name for name in PREFERRED_PROVIDERS if name in available]
        )
    except Exception as error:  # onnxruntime's errors have no common base class but Exception
        if "external data" in str(error).lower():
            fault = "it keeps weights in other files, which are never read. Save it with all weights in one file."
        else:
            fault = f"onnxruntime rejects it ({first_line(error)}). Export it again."
        raise ModelError(f"Cannot load {origin}: {fault}", code="model_refused") from error


def _build_inference_function(session: ort.InferenceSession) -> InferenceFunction:
    name = session.get_inputs()[0].name

    def run(tensor: FloatArray) -> Sequence[NDArray[Any]]:
        try:
            outputs = session.run(None, {name: tensor})
        except Exception as error:  # onnxruntime's errors have no common base class but Exception
            raise InferenceError(f"onnxruntime failed on a frame ({first_line(error)}).") from error
        return [np.asarray(output) for output in outputs]

    return run


def _check_input(session: ort.InferenceSession, spec: InputSpec, origin: str) -> int | None:
    """Return the model's fixed batch size, or None if it takes any. Raises ModelError if its input does not fit the spec."""
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if inputs else []
    expected = [None, 3, *spec.size]
    fits = (
        len(inputs) == 1
        and inputs[0].type == "tensor(float)"
        and len(shape) == len(expected)
        and all(
            not isinstance(actual_length, int) or length in {None, actual_length}
            for actual_length, length in zip(shape, expected, strict=True)
        )
    )
    if not fits:
        actual = [(value.type, value.shape) for value in inputs]
        raise ModelError(
            f"The inputs of {origin} are {actual}; by its spec it has one tensor(float) of [batch, 3, {spec.size[0]}, "
            f"{spec.size[1]}]. Correct [input] size in the spec.",
            code="model_refused",
        )
    return shape[0] if isinstance(shape[0], int) else None
