"""Runs batches of several clients' requests through one network, and gives each client its part of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.device import DeviceKind
from vidflow.infra.models.detector import Network
from vidflow.infra.models.tensors import Tensor

MAX_BATCH_FRAMES: Final = {DeviceKind.CPU: 1, DeviceKind.CUDA: 32}
"""Frames of several requests in one batch. On a CPU, larger batches gain less than batches side by side."""

Outputs = list[NDArray[Any]]


class BatchRunner:
    """Runs tensors of several requests together, while the network takes such batches and its outputs can be divided.

    Any thread may use it.
    """

    def __init__(self, network: Network, max_frames: int | None = None) -> None:
        self._network = network
        takes_any = network.form.has_batch_axis and network.fixed_batch is None and network.sizes is None
        self.max_frames = (max_frames or MAX_BATCH_FRAMES[network.device.kind]) if takes_any else 1
        """The largest number of frames of several requests in one batch."""

    def run(self, tensors: Sequence[Tensor]) -> list[Outputs | Exception]:
        """Return the outputs of each tensor, or the error with which the network failed on it."""
        if len(tensors) == 1:
            return [self._run_alone(tensors[0])]
        counts = [len(tensor) for tensor in tensors]
        try:
            outputs = self._network.run(np.concatenate(tensors))  # type: ignore[arg-type] # all have the form's type
        except Exception:  # noqa: BLE001 - what fails alone reports its own error
            results = [self._run_alone(tensor) for tensor in tensors]
            if not any(isinstance(result, Exception) for result in results):
                self.max_frames = max(1, sum(counts) // 2)  # the batch was too large, for the GPU's memory perhaps
            return results
        if any(output.ndim == 0 or len(output) != sum(counts) for output in outputs):
            self.max_frames = 1
            return [self._run_alone(tensor) for tensor in tensors]
        ends = np.cumsum(counts)[:-1]
        parts = [np.split(output, ends) for output in outputs]
        return [[part[index] for part in parts] for index in range(len(tensors))]

    def _run_alone(self, tensor: Tensor) -> Outputs | Exception:
        try:
            return list(self._network.run(tensor))
        except Exception as error:  # noqa: BLE001 - the client gets any error
            return error
