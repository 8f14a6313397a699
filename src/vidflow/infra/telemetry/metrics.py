"""The Prometheus metrics of each role, and the port that serves them. docs/metrics.md explains each; a test compares the two.

A role exports its own registry and PROCESS, nothing of another role. Labels have few values: no scenario, runner, model or source
is one. The api's metrics, which are read from its database, are in roles/api/metrics.py.
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
"""What every role exports: its process and its servers' outages."""
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
    "vidflow_relay_failed", "Deliveries that failed and are tried again.", registry=RELAY_REGISTRY
)
RELAY_SET_ASIDE: Final = Counter(
    "vidflow_relay_set_aside", "Messages that no broker takes, kept in the outbox.", registry=RELAY_REGISTRY
)
RELAY_OUTBOX_WAITING: Final = Gauge(
    "vidflow_relay_outbox_waiting",
    "Messages that wait in this relay's shards (10000: at least as many).",
    registry=RELAY_REGISTRY,
)
RELAY_OUTBOX_SET_ASIDE: Final = Gauge(
    "vidflow_relay_outbox_set_aside",
    "Messages in this relay's shards that no broker took (10000: at least as many).",
    registry=RELAY_REGISTRY,
)
RELAY_OUTBOX_OLDEST_S: Final = Gauge(
    "vidflow_relay_outbox_oldest_seconds",
    "Age of the oldest message that waits in this relay's shards.",
    registry=RELAY_REGISTRY,
)

INBOX_MESSAGES: Final = Counter(
    "vidflow_inbox_messages", "Messages taken, by what became of them.", ["verdict"], registry=INBOX_REGISTRY
)
INBOX_DEAD_LETTERS: Final = Counter(
    "vidflow_inbox_dead_letters", "Messages that could not be taken.", registry=INBOX_REGISTRY
)
INBOX_BEHIND: Final = Gauge(
    "vidflow_inbox_behind", "Partitions whose end was not reached at the last look.", registry=INBOX_REGISTRY
)
INBOX_LAG: Final = Gauge(
    "vidflow_inbox_lag_messages",
    "Messages not stored yet, of each partition read here.",
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
    "1 while this orchestrator leads, 0 while it stands by.",
    registry=ORCHESTRATOR_REGISTRY,
)
TICK_SECONDS: Final = Histogram(
    "vidflow_orchestrator_tick_seconds",
    "Time of one of the leader's ticks.",
    buckets=_FAST_S,
    registry=ORCHESTRATOR_REGISTRY,
)
MOVES: Final = Counter(
    "vidflow_orchestrator_moves",
    "Transitions made by this leader, by the new state.",
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
    "Rounds of housekeeping (partitions, retention) that failed and are tried again.",
    registry=ORCHESTRATOR_REGISTRY,
)

SLOTS: Final = Gauge("vidflow_runner_slots", "Scenarios this runner works on at most.", registry=RUNNER_REGISTRY)
SLOTS_USED: Final = Gauge("vidflow_runner_slots_used", "Workers that run.", registry=RUNNER_REGISTRY)
WORKER_ENDS: Final = Counter(
    "vidflow_runner_worker_ends", "Workers that ended, by reason.", ["reason"], registry=RUNNER_REGISTRY
)

UNKNOWN_SCENARIO: Final = "unknown"
"""The verdict on a message of a scenario that has no progress row: dropped."""


class MergedHistogram(Collector):
    """A histogram whose observations are made in other processes, which report them as counts a bucket."""

    def __init__(self, name: str, documentation: str, bounds_s: Sequence[float], registry: CollectorRegistry) -> None:
        self.bounds_s = tuple(bounds_s)
        self._name = name
        self._documentation = documentation
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.bounds_s) + 1)
        self._sum_s = 0.0
        registry.register(self)

    def add(self, counts: Sequence[int], sum_s: float) -> None:
        """Add observations: how many lie in each bucket (the last one: above all bounds), and their sum."""
        with self._lock:
            self._counts = [have + more for have, more in zip(self._counts, counts, strict=True)]
            self._sum_s += sum_s

    def collect(self) -> Iterable[Metric]:
        """Return the histogram as Prometheus has it: each bucket counts what lies in those below it too."""
        with self._lock:
            counts, sum_s = list(self._counts), self._sum_s
        total, buckets = 0, []
        for bound_s, count in zip((*self.bounds_s, math.inf), counts, strict=True):
            total += count
            buckets.append(("+Inf" if math.isinf(bound_s) else str(bound_s), float(total)))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, sum_s)


WORKER_BOUNDS_S: Final = _FAST_S
"""The buckets of what workers measure."""
WORKER_DECODE_SECONDS: Final = MergedHistogram(
    "vidflow_worker_decode_seconds", "Time to read and decode one batch of frames.", WORKER_BOUNDS_S, RUNNER_REGISTRY
)
WORKER_INFERENCE_SECONDS: Final = MergedHistogram(
    "vidflow_worker_inference_seconds", "Time of the model for one batch of frames.", WORKER_BOUNDS_S, RUNNER_REGISTRY
)
WORKER_FRAMES: Final = Counter("vidflow_worker_frames", "Frames inferred.", registry=RUNNER_REGISTRY)


class RegistryCollector(Collector):
    """The metrics of a registry as a part of another one."""

    def __init__(self, part: CollectorRegistry) -> None:
        self._part = part

    def collect(self) -> Iterable[Metric]:
        """Return the families of the part."""
        return self._part.collect()

    def describe(self) -> Iterable[Metric]:
        """Return the families too: a scrape may ask for some by name."""
        return self._part.collect()


def build_role_registry(role: str, *parts: CollectorRegistry) -> CollectorRegistry:
    """Return what a role exports: its build, its process, and the given parts."""
    joined = CollectorRegistry()
    labels = ["version", "role", "python"]
    build = Gauge("vidflow_build_info", "1; its labels say what runs here.", labels, registry=joined)
    build.labels(__version__, role, platform.python_version()).set(1)
    for part in (PROCESS_REGISTRY, *parts):
        joined.register(RegistryCollector(part))
    return joined


_exported_partitions: Final = set[int]()


def export_lag(ends: Mapping[int, int], behind: Mapping[int, int]) -> None:
    """Export the lag of the partitions read here: their ends, and the positions of those that are not at their ends."""
    INBOX_BEHIND.set(len(behind))
    for gone in _exported_partitions - ends.keys():
        INBOX_LAG.remove(gone)
    _exported_partitions.intersection_update(ends)
    _exported_partitions.update(ends)
    for partition, end in ends.items():
        INBOX_LAG.labels(partition).set(max(end - behind.get(partition, end), 0))


_WITH_A_TIME: Final = 7


def observe_first_frame(scenario_uuid: str, now_s: float) -> None:
    """Export how long ago the scenario was created, at the moment its first frame is stored.

    Its uuid (version 7) tells the time of its creation on the database's clock; `now_s` is of the same clock.
    """
    number = uuid.UUID(scenario_uuid)
    if number.version == _WITH_A_TIME:
        INBOX_FIRST_FRAME_SECONDS.observe(max(now_s - (number.int >> 80) / 1000, 0.0))


@contextmanager
def served(registry: CollectorRegistry, port: int | None, host: str) -> Iterator[None]:
    """Serve the registry on `host` and `port` while the body runs; None: not at all. Raises SetupError if it cannot listen."""
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise SetupError(
            f"the metrics cannot be served at {host}:{port} ({error.strerror}); choose another --metrics-port or --metrics-host"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
