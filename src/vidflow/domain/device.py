"""The device that models run on: what an operator requests, and what a model gets."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

import msgspec

from vidflow.domain.errors import DeviceUnavailable, ParameterError

_CUDA: Final = re.compile(r"cuda:(0|[1-9][0-9]{0,2})", re.ASCII)


class DeviceKind(StrEnum):
    """`auto`: CUDA if the model can use it, otherwise the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Device(msgspec.Struct, frozen=True):
    """A device, or with the kind `auto` the request to choose one. `index`: which of the CUDA devices."""

    kind: DeviceKind
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.kind is DeviceKind.CUDA else self.kind.value


AUTO: Final = Device(DeviceKind.AUTO)
CPU: Final = Device(DeviceKind.CPU)


def parse_device(text: str) -> Device:
    """Return the device with this name. Raises ParameterError for any other text."""
    if text in (DeviceKind.AUTO, DeviceKind.CPU):
        return Device(DeviceKind(text))
    if (match := _CUDA.fullmatch(text)) is not None:
        return Device(DeviceKind.CUDA, int(match.group(1)))
    raise ParameterError(f"Invalid device {text[:80]!r}. Use cpu, cuda:N (cuda:0 is the first GPU) or auto.")


def resolve_device(requested: Device, cuda_fault: str | None) -> Device:
    """Return the device to use. `cuda_fault`: why CUDA cannot be used, with the next step; None if it can.

    Raises DeviceUnavailable if CUDA is requested and cannot be used. Only `auto` becomes the CPU then.
    """
    if requested.kind is DeviceKind.CPU:
        return CPU
    if cuda_fault is None:
        return Device(DeviceKind.CUDA, requested.index)
    if requested.kind is DeviceKind.AUTO:
        return CPU
    raise DeviceUnavailable(f"Device {requested} cannot be used: {cuda_fault} To run on the CPU, set --device cpu.")
