"""Batches of several requests: each gets its own outputs, or its own error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vidflow.domain.detections import InferenceError
from vidflow.domain.device import CPU, Device, DeviceKind
from vidflow.infra.models.detector import Network
from vidflow.infra.models.tensors import Tensor, TensorForm
from vidflow.roles.inference.batches import MAX_BATCH_FRAMES, BatchRunner

Run = Callable[[Tensor], Sequence[NDArray[Any]]]


def tensors(*values: int, frames: int = 1) -> list[Tensor]:
    return [np.full((frames, 3, 2, 2), value, np.float32) for value in values]


def means(tensor: Tensor) -> list[NDArray[Any]]:
    return [tensor.mean(axis=(1, 2, 3)), np.arange(len(tensor))]


def values_of(results: Sequence[Sequence[NDArray[Any]] | Exception]) -> list[list[float]]:
    assert not any(isinstance(result, Exception) for result in results)
    return [result[0].tolist() for result in results if not isinstance(result, Exception)]


def test_outputs_are_divided_as_the_frames_were() -> None:
    batch = BatchRunner(Network(means), 4)
    assert values_of(batch.run([*tensors(7), *tensors(8, frames=2), *tensors(9)])) == [[7], [8, 8], [9]]


def test_the_error_of_a_request_does_not_reach_the_others() -> None:
    def fails_on_8(tensor: Tensor) -> list[NDArray[Any]]:
        if (tensor == 8).any():
            raise InferenceError("an eight")
        return means(tensor)

    first, second, third = BatchRunner(Network(fails_on_8), 4).run(tensors(7, 8, 9))
    assert isinstance(second, InferenceError)
    assert values_of([first, third]) == [[7], [9]]


def test_a_batch_that_is_too_large_is_divided_and_the_next_ones_are_smaller() -> None:
    sizes: list[int] = []

    def takes_two(tensor: Tensor) -> list[NDArray[Any]]:
        sizes.append(len(tensor))
        if len(tensor) > 2:
            raise MemoryError
        return means(tensor)

    batch = BatchRunner(Network(takes_two), 4)
    assert values_of(batch.run(tensors(1, 2, 3, 4))) == [[1], [2], [3], [4]]
    assert batch.max_frames == 2
    assert sizes == [4, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "run", [lambda tensor: [np.float32(tensor.sum())], lambda _: [np.zeros((1, 7))], lambda _: [np.zeros(3)]]
)
def test_outputs_that_cannot_be_divided_are_computed_one_by_one(run: Run) -> None:
    alone: list[int] = []

    def counted(tensor: Tensor) -> Sequence[NDArray[Any]]:
        alone.append(len(tensor))
        return [np.asarray(output) for output in run(tensor)]

    batch = BatchRunner(Network(counted), 4)
    assert len(batch.run(tensors(1, 2))) == 2
    assert (alone, batch.max_frames) == ([2, 1, 1], 1)


@pytest.mark.parametrize("network", [Network(means, fixed_batch=1), Network(means, TensorForm(has_batch_axis=False))])
def test_a_network_with_a_fixed_batch_takes_no_others(network: Network) -> None:
    assert BatchRunner(network, 4).max_frames == 1


@pytest.mark.parametrize("device", [CPU, Device(DeviceKind.CUDA)])
def test_the_largest_batch_depends_on_the_device(device: Device) -> None:
    assert BatchRunner(Network(means, device=device)).max_frames == MAX_BATCH_FRAMES[device.kind]
