"""Measures a worker's steps and reports them to the runner, since a worker lives too briefly to be scraped itself."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Final

from vidflow.infra.telemetry.metrics import WORKER_BOUNDS_S
from vidflow.roles.worker.link import BUCKETS, Link, WorkerMeasurements

REPORT_S: Final = 1.0


class _Durations:
    """A histogram of durations: counts per bucket, and the sum."""

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(WORKER_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class StepTimer:
    """The measurements of one worker, reported over its link at most once a second. Not thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._reported_s = time.monotonic()
        self._reset()

    def add_reading(self, seconds: float) -> None:
        """Count the time that reading a step took."""
        self._decode.add(seconds)

    def add_inference(self, seconds: float, frames: int) -> None:
        """Count the time that the inference of a batch of `frames` frames took. Report if that is due."""
        self._inference.add(seconds)
        self._frames += frames
        if time.monotonic() - self._reported_s >= REPORT_S:
            self.report()

    def report(self) -> None:
        """Report the measurements since the last report."""
        self._link.report_measurements(
            WorkerMeasurements(
                tuple(self._decode.counts),
                self._decode.sum_s,
                tuple(self._inference.counts),
                self._inference.sum_s,
                self._frames,
            )
        )
        self._reported_s = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._decode, self._inference, self._frames = _Durations(), _Durations(), 0
