"""Run ONNX models with onnxruntime. Models are untrusted: they are loaded from bytes, and never read other files."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.domain.device import CPU, Device, DeviceKind, resolve_device
from vidflow.domain.errors import ModelError
from vidflow.domain.escaping import escape_unprintable
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.cuda import choose_device, raise_gpu_failure
from vidflow.infra.models.detector import InferenceFunction, Network
from vidflow.infra.models.onnx_functions import check_functions
from vidflow.infra.models.onnx_inputs import ModelInputs, find_inputs
from vidflow.infra.models.ort import onnxruntime as ort
from vidflow.infra.models.tensors import Tensor

CPU_PROVIDER: Final = "CPUExecutionProvider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
NO_EXTERNAL_WEIGHTS_PATH: Final = "/dev/null/no-external-weights"
"""A path below a device cannot exist, so weights in external files are refused, wherever they are."""
LOG_SEVERITY_FATAL: Final = 4
NUMBERS: Final = re.compile(r"tensor\((float|float16|double|u?int\d+|bool)\)")
"""Types of outputs that decoders can use. Sequences and texts are left out."""
ERROR_NUMBER: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
SOURCE_LOCATION: Final = re.compile(r"/\S+\.(?:cc|h|cpp|hpp):\d+ [^()]*\([^()]*\)(?: const)?(?: \[with [^\]]*\])? ")
EXTERNAL_DATA: Final = re.compile(r"(?<!use )external data", re.IGNORECASE)
"""In the reason for weights in another file. A claim of more than 2 GB has the advice to "use external data"."""
MAX_REASON_CHARACTERS: Final = 2000
"""Longer than any reason seen, and bounded, as a model chooses the names in it."""


def open_network(bundle: Bundle, requested: Device = CPU) -> Network:
    """Return the network of a spec of kind `onnx`. On the CPU, each call runs on the thread that calls it, and on no other.

    Raises ModelError (model_refused) if it is damaged, needs other files, or does not fit its spec, and DeviceUnavailable.
    """
    session = open_session(bundle.require_weights(), bundle.origin, requested)
    spec, _ = bundle.spec.tensor_specs()
    inputs = find_inputs(session.get_inputs(), spec, bundle.origin)
    outputs = [output.name for output in session.get_outputs() if NUMBERS.fullmatch(output.type)]
    if not outputs:
        raise ModelError(f"{bundle.origin} returns no tensor of numbers. Export a detector.", code="model_refused")
    device = find_device(session, requested)
    run = _build_inference_function(session, device, inputs, outputs)
    return Network(run, inputs.form, inputs.fixed_batch, tuple(outputs), device, runs_in_threads=True)


def open_session(content: bytes, origin: str, requested: Device = CPU) -> ort.InferenceSession:
    """Return an onnxruntime session. `find_device` says what it runs on.

    Raises ModelError (model_refused), DeviceUnavailable if CUDA is requested and cannot be used, and Unavailable if it fails.
    """
    device = choose_device(requested, "onnxruntime")
    check_functions(content, origin)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # several frames side by side use the cores better
    options.log_severity_level = LOG_SEVERITY_FATAL  # errors are raised; logging them would report them twice
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NO_EXTERNAL_WEIGHTS_PATH)
    providers: list[Any] = [CPU_PROVIDER]
    if device.kind is DeviceKind.CUDA:
        with redirect_stdout(sys.stderr):  # where it names the libraries that are missing
            ort.preload_dlls()
        providers.insert(0, (CUDA_PROVIDER, {"device_id": device.index}))
    try:
        # Without its fallback: it would go on with the CPU after an error of CUDA, also in the middle of a video.
        session = ort.InferenceSession(content, options, providers=providers, enable_fallback=False)
    except Exception as error:  # onnxruntime's errors have no common base class but Exception
        raise_gpu_failure(device, error, runtime_reason(error))
        if EXTERNAL_DATA.search(str(error)):
            fault = "it keeps weights in other files, which are never read. Save it with all weights in one file."
        else:
            fault = f"onnxruntime rejects it ({runtime_reason(error)}). Export it again."
        raise ModelError(f"Cannot load {origin}: {fault}", code="model_refused") from error
    session._model_bytes = None  # noqa: SLF001 - the whole file, which it keeps for its fallback
    find_device(session, requested)
    return session


def find_device(session: ort.InferenceSession, requested: Device) -> Device:
    """Return the device that a session runs on. Without an error, onnxruntime leaves CUDA out if it cannot start it.

    Raises DeviceUnavailable if CUDA was requested and is left out.
    """
    fault = None
    if session.get_providers()[0] != CUDA_PROVIDER:
        fault = (
            f"onnxruntime {ort.__version__} cannot start CUDA {ort.cuda_version}. Install the extra 'cuda', which brings its "
            "libraries, and a driver for this version."
        )
    return resolve_device(requested, fault)


def _build_inference_function(
    session: ort.InferenceSession, device: Device, inputs: ModelInputs, names: list[str]
) -> InferenceFunction:
    def run(tensor: Tensor) -> Sequence[NDArray[Any]]:
        try:
            outputs = session.run(names, inputs.feed(tensor))
        except Exception as error:  # onnxruntime's errors have no common base class but Exception
            raise_gpu_failure(device, error, runtime_reason(error))
            raise InferenceError(f"onnxruntime failed on a frame ({runtime_reason(error)}).") from error
        return [np.asarray(output) for output in outputs]

    return run


def runtime_reason(error: Exception) -> str:
    """Return onnxruntime's reason for an error in one line, without its error number and the place in its source."""
    text = SOURCE_LOCATION.sub("", ERROR_NUMBER.sub("", str(error)))
    return escape_unprintable(" ".join(text.split())[:MAX_REASON_CHARACTERS].rstrip(".")) or type(error).__name__
