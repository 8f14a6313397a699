"""Devices: their names, and what a request becomes."""

from __future__ import annotations

import pytest

from vidflow.domain.device import AUTO, CPU, Device, DeviceKind, parse_device, resolve_device
from vidflow.domain.errors import DeviceUnavailable, ParameterError

FAULT = "there is no driver. Install it."
SECOND_GPU = Device(DeviceKind.CUDA, 1)


@pytest.mark.parametrize(
    ("text", "device"), [("auto", AUTO), ("cpu", CPU), ("cuda:0", Device(DeviceKind.CUDA)), ("cuda:1", SECOND_GPU)]
)
def test_a_device_has_one_name(text: str, device: Device) -> None:
    assert parse_device(text) == device
    assert str(device) == text


@pytest.mark.parametrize(
    "text", ["", "gpu", "CPU", "cuda", "cuda:", "cuda:-1", "cuda:01", "cuda:1000", "cuda:\u0661", " cpu", "cuda:0\n"]
)
def test_another_name_is_refused_with_the_possible_ones(text: str) -> None:
    with pytest.raises(ParameterError, match=r"Invalid device .* Use cpu, cuda:N .* or auto\."):
        parse_device(text)


def test_a_long_name_is_shortened_in_its_error() -> None:
    with pytest.raises(ParameterError) as refused:
        parse_device("x" * 10_000)
    assert len(refused.value.message) < 200


def test_auto_is_the_first_gpu_if_it_can_be_used_and_otherwise_the_cpu() -> None:
    assert str(resolve_device(AUTO, None)) == "cuda:0"
    assert str(resolve_device(AUTO, FAULT)) == "cpu"


def test_a_requested_gpu_is_used_or_refused_with_the_reason() -> None:
    assert resolve_device(SECOND_GPU, None) == SECOND_GPU
    with pytest.raises(DeviceUnavailable, match="Device cuda:1 cannot be used: there is no driver"):
        resolve_device(SECOND_GPU, FAULT)


def test_the_cpu_is_used_whatever_gpus_there_are() -> None:
    assert resolve_device(CPU, None) == resolve_device(CPU, FAULT) == CPU
