"""How torch's models use their device: the choice of it, half precision, and the way back to numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from numpy.typing import NDArray

from vidflow.domain.device import CPU, Device, DeviceKind, resolve_device
from vidflow.domain.errors import ModelError
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.cuda import choose_device


class TorchDevice(msgspec.Struct, frozen=True):
    """A device that torch can use, and whether it computes in float16 there."""

    device: Device = CPU
    half: bool = False

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Run models without gradients, in the precision of the spec."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.kind.value, dtype=torch.float16, enabled=self.half),
        ):
            yield


def choose_torch_device(requested: Device, bundle: Bundle) -> TorchDevice:
    """Return the device for a model of torch.

    Raises DeviceUnavailable if CUDA is requested and cannot be used, and ModelError for half precision on the CPU.
    """
    device = choose_device(requested, "torch")
    if device.kind is DeviceKind.CUDA and not torch.cuda.is_available():
        fault = f"this torch needs CUDA {torch.version.cuda}, which the driver does not offer. Install a newer driver."
        device = resolve_device(requested, fault)
    half = bundle.spec.precision == "half"
    if half and device.kind is DeviceKind.CPU:
        raise ModelError(
            f"Model {bundle.name!r} has precision = 'half', which needs a GPU, and would run on the CPU. Run it with --device "
            "cuda:0, or remove `precision` from its spec.",
            code="model_refused",
        )
    if device.kind is DeviceKind.CUDA:
        torch.cuda.set_device(device.index)  # where no device is named, as in some programs
    return TorchDevice(device, half)


def to_array(tensor: Any) -> NDArray[Any]:  # noqa: ANN401 - torch is not typed here
    """Return a tensor of any device in the precision that decoders use."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()  # type: ignore[no-any-return]
