"""The Prometheus metrics of each role, and the port that serves them. docs/reference/metrics.md lists them.

A role exports its own registry and PROCESS_REGISTRY. Labels have few values: no scenario, runner, model or source is one.
The api's own metrics, which are read from the database, are in roles/api/metrics.py.
"""

from __future__ import annotations

import math
import platform
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from vidflow import __version__
from vidflow.domain.errors import SetupError

disable_created_metrics()  # type: ignore[no-untyped-call]

PROCESS_REGISTRY: Final = CollectorRegistry()
"""Exported by every role: its process and the outages of its servers."""
RELAY_REGISTRY: Final = CollectorRegistry()
INBOX_REGISTRY: Final = CollectorRegistry()
ORCHESTRATOR_REGISTRY: Final = CollectorRegistry()
RUNNER_REGISTRY: Final = CollectorRegistry()

ProcessCollector(registry=PROCESS_REGISTRY)
PlatformCollector(registry=PROCESS_REGISTRY)

_FAST_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)

RELAY_PUBLISHED: Final = Counter(
    "vidflow_relay_published", "Messages acknowledged by a broker and removed from the outbox.", registry=RELAY_REGISTRY
)
RELAY_FAILED: Final = Counter(
    "vidflow_relay_failed", "Deliveries that failed and are retried.", registry=RELAY_REGISTRY
)
RELAY_SET_ASIDE: Final = Counter(
    "vidflow_relay_set_aside", "Messages that Kafka refused permanently, kept in the outbox.", registry=RELAY_REGISTRY
)
RELAY_OUTBOX_WAITING: Final = Gauge(
    "vidflow_relay_outbox_waiting",
    "Messages that wait in this relay's shards (10000 means 10000 or more).",
    registry=RELAY_REGISTRY,
)
RELAY_OUTBOX_SET_ASIDE: Final = Gauge(
    "vidflow_relay_outbox_set_aside",
    "Messages in this relay's shards that Kafka refused permanently (10000 means 10000 or more).",
    registry=RELAY_REGISTRY,
)
RELAY_OUTBOX_OLDEST_S: Final = Gauge(
    "vidflow_relay_outbox_oldest_seconds",
    "Age of the oldest waiting message in this relay's shards.",
    registry=RELAY_REGISTRY,
)

INBOX_MESSAGES: Final = Counter(
    "vidflow_inbox_messages", "Messages processed, by verdict.", ["verdict"], registry=INBOX_REGISTRY
)
INBOX_DEAD_LETTERS: Final = Counter(
    "vidflow_inbox_dead_letters", "Messages that could not be stored and became dead letters.", registry=INBOX_REGISTRY
)
INBOX_BEHIND: Final = Gauge(
    "vidflow_inbox_behind", "Partitions that were not read to their end at the last check.", registry=INBOX_REGISTRY
)
INBOX_LAG: Final = Gauge(
    "vidflow_inbox_lag_messages",
    "Messages not stored yet, by partition that this inbox reads.",
    ["partition"],
    registry=INBOX_REGISTRY,
)
INBOX_STORE_SECONDS: Final = Histogram(
    "vidflow_inbox_store_seconds", "Time to store one batch.", buckets=_FAST_S, registry=INBOX_REGISTRY
)
INBOX_FIRST_FRAME_SECONDS: Final = Histogram(
    "vidflow_inbox_first_frame_seconds",
    "Time from POST to the first stored frame.",
    buckets=_SLOW_S,
    registry=INBOX_REGISTRY,
)

LEADS: Final = Gauge(
    "vidflow_orchestrator_leads",
    "1 while this orchestrator is the leader, otherwise 0.",
    registry=ORCHESTRATOR_REGISTRY,
)
TICK_SECONDS: Final = Histogram(
    "vidflow_orchestrator_tick_seconds",
    "Duration of one tick of the leader.",
    buckets=_FAST_S,
    registry=ORCHESTRATOR_REGISTRY,
)
MOVES: Final = Counter(
    "vidflow_orchestrator_moves",
    "State transitions by this leader, by new state.",
    ["to"],
    registry=ORCHESTRATOR_REGISTRY,
)
ENDED_SCENARIOS: Final = Counter(
    "vidflow_orchestrator_ended",
    "Scenarios that became inactive, by outcome.",
    ["outcome"],
    registry=ORCHESTRATOR_REGISTRY,
)
RETENTION_FAILURES: Final = Counter(
    "vidflow_orchestrator_retention_failures",
    "Rounds of housekeeping (partitions, retention) that failed and are retried.",
    registry=ORCHESTRATOR_REGISTRY,
)

SLOTS: Final = Gauge("vidflow_runner_slots", "Maximum number of scenarios processed at once.", registry=RUNNER_REGISTRY)
SLOTS_USED: Final = Gauge("vidflow_runner_slots_used", "Running workers.", registry=RUNNER_REGISTRY)
WORKER_ENDS: Final = Counter(
    "vidflow_runner_worker_ends", "Workers that ended, by reason.", ["reason"], registry=RUNNER_REGISTRY
)

SANDBOX: Final = Gauge(
    "vidflow_runner_sandbox", "1 if this feature of the system confines the workers, otherwise 0.", ["feature"],
    registry=RUNNER_REGISTRY,
)  # fmt: skip

UNKNOWN_SCENARIO: Final = "unknown"
"""The verdict for a message of a scenario without a progress row, which is dropped."""


class MergedHistogram(Collector):
    """A histogram of observations from other processes, which report counts per bucket."""

    def __init__(self, name: str, documentation: str, bounds_s: Sequence[float], registry: CollectorRegistry) -> None:
        self.bounds_s = tuple(bounds_s)
        self._name = name
        self._documentation = documentation
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.bounds_s) + 1)
        self._sum_s = 0.0
        registry.register(self)

    def add(self, counts: Sequence[int], sum_s: float) -> None:
        """Add observations: their number in each bucket (the last one is above all bounds), and their sum."""
        with self._lock:
            self._counts = [total + count for total, count in zip(self._counts, counts, strict=True)]
            self._sum_s += sum_s

    def collect(self) -> Iterable[Metric]:
        """Yield the histogram in Prometheus' form, with cumulative buckets."""
        with self._lock:
            counts, sum_s = list(self._counts), self._sum_s
        total, buckets = 0, []
        for bound_s, count in zip((*self.bounds_s, math.inf), counts, strict=True):
            total += count
            buckets.append(("+Inf" if math.isinf(bound_s) else str(bound_s), float(total)))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, sum_s)


WORKER_BOUNDS_S: Final = _FAST_S
"""The buckets of the workers' histograms."""
WORKER_DECODE_SECONDS: Final = MergedHistogram(
    "vidflow_worker_decode_seconds",
    "Time to read, decode and convert one batch of frames.",
    WORKER_BOUNDS_S,
    RUNNER_REGISTRY,
)
WORKER_INFERENCE_SECONDS: Final = MergedHistogram(
    "vidflow_worker_inference_seconds", "Time to infer one batch of frames.", WORKER_BOUNDS_S, RUNNER_REGISTRY
)
WORKER_FRAMES: Final = Counter("vidflow_worker_frames", "Frames inferred.", registry=RUNNER_REGISTRY)
INFERENCE_BATCHES: Final = Counter(
    "vidflow_inference_batches", "Batches run by shared inference processes.", registry=RUNNER_REGISTRY
)
INFERENCE_FRAMES: Final = Counter(
    "vidflow_inference_frames", "Frames run by shared inference processes.", registry=RUNNER_REGISTRY
)
INFERENCE_PROCESS_ENDS: Final = Counter(
    "vidflow_inference_process_ends", "Shared inference processes that ended, by reason.", ["reason"],
    registry=RUNNER_REGISTRY,
)  # fmt: skip


class RegistryCollector(Collector):
    """Includes the metrics of one registry in another."""

    def __init__(self, part: CollectorRegistry) -> None:
        self._part = part

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the registry."""
        return self._part.collect()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics of the registry, because a scrape may request some by name."""
        return self._part.collect()


def build_role_registry(role: str, *parts: CollectorRegistry) -> CollectorRegistry:
    """Return the registry that a role exports: its build info, PROCESS_REGISTRY and `parts`."""
    registry = CollectorRegistry()
    labels = ["version", "role", "python"]
    build = Gauge(
        "vidflow_build_info", "1, with version, role and Python version as labels.", labels, registry=registry
    )
    build.labels(__version__, role, platform.python_version()).set(1)
    for part in (PROCESS_REGISTRY, *parts):
        registry.register(RegistryCollector(part))
    return registry


_exported_partitions: Final = set[int]()


def export_lag(ends: Mapping[int, int], lagging: Mapping[int, int]) -> None:
    """Export the lag of this inbox's partitions. `ends`: their end offsets; `lagging`: the positions short of them."""
    INBOX_BEHIND.set(len(lagging))
    for partition in _exported_partitions - ends.keys():
        INBOX_LAG.remove(partition)
    _exported_partitions.intersection_update(ends)
    _exported_partitions.update(ends)
    for partition, end in ends.items():
        INBOX_LAG.labels(partition).set(max(end - lagging.get(partition, end), 0))


_UUID_WITH_TIME: Final = 7


def observe_first_frame(scenario_uuid: str, now_s: float) -> None:
    """Record the time from a scenario's creation to its first stored frame.

    A version 7 UUID contains the creation time by the database's clock. `now_s` is the time by the same clock.
    """
    parsed = uuid.UUID(scenario_uuid)
    if parsed.version == _UUID_WITH_TIME:
        INBOX_FIRST_FRAME_SECONDS.observe(max(now_s - (parsed.int >> 80) / 1000, 0.0))


@contextmanager
def served(registry: CollectorRegistry, port: int | None, host: str) -> Iterator[None]:
    """Serve the registry on `host` and `port` while the block runs. Does nothing if `port` is None.

    Raises SetupError if the port cannot be opened.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise SetupError(
            f"Metrics cannot be served at {host}:{port} ({error.strerror}). Choose another --metrics-port or --metrics-host."
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
