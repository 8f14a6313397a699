"""Measure how long an ONNX model takes for a frame, with its preparation and its decoding, by threads and by batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from vidflow.domain.detections import InferenceError
from vidflow.domain.device import CPU, Device
from vidflow.domain.errors import ModelError
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.detector import Network, TensorDetector
from vidflow.infra.models.model import Picture
from vidflow.infra.models.onnx import open_network
from vidflow.infra.process.cores import available_cores

BATCHES: Final = (1, 4, 16)
MEASURED_S: Final = 1.0
MAX_CALLS: Final = 50


def describe_speeds(bundle: Bundle, picture: Picture, device: Device) -> Iterator[str]:
    """Yield a line for each number of threads and batch size: the median time of a frame. Raises ModelError."""
    network = open_network(bundle, device)
    for threads in sorted({1, available_cores()}):
        runs_on = f"{threads} thread{'s' if threads > 1 else ''}" if network.device == CPU else str(network.device)
        for batch in BATCHES if network.fixed_batch is None else (network.fixed_batch,):
            name = f"{runs_on}, batch {batch}"
            try:
                seconds = _measure(bundle, network, picture, batch, threads)
            except (InferenceError, ModelError) as error:
                if batch == 1:
                    raise
                yield f"{name}: refused ({error.message})"
                break
            yield f"{name}: {seconds * 1000:.1f} ms a frame, {1 / seconds:.3g} frames/s"
        if network.device != CPU:
            return


def _measure(bundle: Bundle, network: Network, picture: Picture, batch: int, threads: int) -> float:
    """Return the time of a frame in seconds, after one call that does not count: that of a call, divided by the frames meanwhile.

    The calls run side by side on so many threads, as in a worker. Of a thread's calls, the median counts.
    """
    inputs, _ = bundle.spec.tensor_specs()
    spec = msgspec.structs.replace(bundle.spec, input=msgspec.structs.replace(inputs, batch=batch))
    model = TensorDetector(network, msgspec.structs.replace(bundle, spec=spec), Parameters())
    pictures = [picture] * batch
    model.infer(pictures)

    def time_calls() -> float:
        times_s: list[float] = []
        while len(times_s) < MAX_CALLS and sum(times_s) < MEASURED_S:
            started_s = time.perf_counter()
            model.infer(pictures)
            times_s.append(time.perf_counter() - started_s)
        return statistics.median(times_s)

    with ThreadPoolExecutor(threads) as pool:
        medians_s = [call.result() for call in [pool.submit(time_calls) for _ in range(threads)]]
    return statistics.mean(medians_s) / (batch * threads)
