"""The Prometheus metrics of the roles but the api, by name, and the port that serves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from vidflow.domain.errors import SetupError

RELAY_PUBLISHED: Final = Counter(
    "vidflow_relay_published", "Messages that a broker acknowledged and the outbox marked."
)
RELAY_FAILED: Final = Counter("vidflow_relay_failed", "Deliveries that failed and are tried again.")
RELAY_SET_ASIDE: Final = Counter("vidflow_relay_set_aside", "Messages that no broker takes, kept in the outbox.")
OUTBOX_WAITING: Final = Gauge("vidflow_outbox_waiting", "Messages that wait in the outbox (10000: at least as many).")
OUTBOX_SET_ASIDE: Final = Gauge(
    "vidflow_outbox_set_aside", "Messages in the outbox that no broker took (10000: at least as many)."
)
OUTBOX_OLDEST_S: Final = Gauge("vidflow_outbox_oldest_seconds", "Age of the oldest message that waits in the outbox.")

INBOX_MESSAGES: Final = Counter(
    "vidflow_inbox_messages", "Messages that the inbox took, by what became of them.", ["verdict"]
)
INBOX_DEAD_LETTERS: Final = Counter("vidflow_inbox_dead_letters", "Messages that the inbox could not take.")
INBOX_BEHIND: Final = Gauge("vidflow_inbox_behind", "Partitions whose end the inbox had not reached at its last look.")

LEADS: Final = Gauge("vidflow_orchestrator_leads", "1 while this orchestrator leads, 0 while it stands by.")
TICK_SECONDS: Final = Histogram("vidflow_orchestrator_tick_seconds", "How long the leader's looks and writes take.")
MOVES: Final = Counter(
    "vidflow_orchestrator_moves", "Steps of scenarios that this leader made, by the new state.", ["to"]
)
RETENTION_FAILURES: Final = Counter(
    "vidflow_retention_failures", "Rounds of housekeeping (partitions, retention) that failed and are tried again."
)

SLOTS: Final = Gauge("vidflow_runner_slots", "How many scenarios this runner works on at most.")
WORKERS: Final = Gauge("vidflow_runner_workers", "Workers that run.")
WORKER_ENDS: Final = Counter("vidflow_runner_worker_ends", "Workers that have ended, by the reason.", ["reason"])

UNKNOWN: Final = "unknown"
"""The verdict on a message of a scenario that has no progress row: dropped."""


@contextmanager
def served(port: int | None) -> Iterator[None]:
    """Serves the metrics on `port` while the body runs; None: not at all. Raises SetupError where the port is taken."""
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port)
    except OSError as error:
        raise SetupError(
            f"the metrics cannot be served on port {port} ({error.strerror}); choose another --metrics-port"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
