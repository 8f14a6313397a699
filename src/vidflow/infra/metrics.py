"""The Prometheus metrics of the roles that move messages, by name, and the port that serves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge, start_http_server

from vidflow.domain.errors import SetupError

RELAY_PUBLISHED: Final = Counter(
    "vidflow_relay_published", "Messages that a broker acknowledged and the outbox marked."
)
RELAY_FAILED: Final = Counter("vidflow_relay_failed", "Deliveries that failed and are tried again.")
RELAY_SET_ASIDE: Final = Counter("vidflow_relay_set_aside", "Messages that no broker takes, kept in the outbox.")
OUTBOX_WAITING: Final = Gauge("vidflow_outbox_waiting", "Messages that wait in the outbox.")
OUTBOX_SET_ASIDE: Final = Gauge("vidflow_outbox_set_aside", "Messages in the outbox that no broker took.")
OUTBOX_OLDEST_S: Final = Gauge("vidflow_outbox_oldest_seconds", "Age of the oldest message that waits in the outbox.")

INBOX_MESSAGES: Final = Counter(
    "vidflow_inbox_messages", "Messages that the inbox took, by what became of them.", ["verdict"]
)
INBOX_DEAD_LETTERS: Final = Counter("vidflow_inbox_dead_letters", "Messages that the inbox could not take.")
INBOX_BEHIND: Final = Gauge("vidflow_inbox_behind", "Partitions whose end the inbox had not reached at its last look.")

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
