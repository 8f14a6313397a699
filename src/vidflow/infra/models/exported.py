"""Run programs saved by torch.export (.pt2) whose sha256 the spec contains. No other module may load a .pt2 file.

Loading such a file can run code in it: torch falls back to full unpickling and evaluates the file's symbols. Therefore the
digest in the spec is required, the bytes are hashed before torch sees them, and the spec's author is responsible for them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch.export.passes import move_to_device_pass

from vidflow.domain.detections import InferenceError
from vidflow.domain.device import CPU, Device
from vidflow.domain.errors import ModelError
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.cuda import raise_gpu_failure
from vidflow.infra.models.detector import InferenceFunction, Network, first_line
from vidflow.infra.models.tensors import Tensor
from vidflow.infra.models.torch_device import TorchDevice, choose_torch_device, to_array

THREADS: Final = 1


def open_program(bundle: Bundle, requested: Device = CPU) -> Network:
    """Return the program of a spec of kind `exported`. Its bytes have the sha256 in the spec.

    Raises ModelError (model_refused) if torch cannot load it, and what `choose_torch_device` raises.
    """
    torch.set_num_threads(THREADS)
    target = choose_torch_device(requested, bundle)
    try:
        exported = torch.export.load(io.BytesIO(bundle.require_weights()))
        program = move_to_device_pass(exported, str(target.device)).module()
    except Exception as error:  # for damaged archives torch raises errors of many types
        raise_gpu_failure(target.device, error, first_line(error))
        raise ModelError(
            f"Cannot load {bundle.origin}: torch.export cannot read it ({first_line(error)}). Export it again with this version "
            "of torch.",
            code="model_refused",
        ) from error
    inputs, _ = bundle.spec.tensor_specs()
    run = _build_inference_function(program, target)
    return Network(run, fixed_batch=inputs.batch, device=target.device)


def _build_inference_function(program: Any, target: TorchDevice) -> InferenceFunction:  # noqa: ANN401  (torch is not typed here)
    def run(tensor: Tensor) -> Sequence[NDArray[Any]]:
        try:
            with target.inference():
                outputs = program(torch.from_numpy(tensor).to(str(target.device)))
            return [to_array(value) for value in _flatten(outputs)]  # waits for the GPU, whose errors arrive here
        except (RuntimeError, AssertionError) as error:
            raise_gpu_failure(target.device, error, first_line(error))
            raise InferenceError(f"The exported program failed on a frame ({first_line(error)}).") from error

    return run


def _flatten(outputs: Any) -> list[Any]:  # noqa: ANN401  (a tensor, or tensors in lists, tuples and dicts)
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _flatten(value)]
