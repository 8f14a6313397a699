"""What a runner says: a report each second and at once on news; and how it notices that it is cut off from Kafka.

A report holds everything, so one that is late or lost only delays. A frozen broker raises no error: being cut off is told by
the age of the oldest report that nobody has acknowledged.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message

from vidflow import __version__
from vidflow.domain.errors import Unavailable
from vidflow.domain.messages import RUNNER_EVENTS
from vidflow.domain.report_size import REPORT_BYTES, encoded_within
from vidflow.domain.runner import Charge, is_empty, report
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import log

EVERY_S: Final = 1.0
PATIENCE_S: Final = 30.0
"""How long the workers of a runner that is cut off may go on."""
LEAST_BYTES: Final = 16_000
"""A report is made no smaller than this for a broker that takes no large ones."""
_UNANSWERED: Final = 5
"""No more reports than these are on their way: newer ones say it all again."""
_PURGED: Final = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # noqa: SLF001
_log = log("runner")


class Reports:
    """The reports of one runner, in order. Used by one thread."""

    def __init__(self, settings: KafkaSettings, pool: str, runner: str) -> None:
        self._pool = pool
        self._runner = runner
        self._producer = clients.producer(settings, client_id=f"vidflow-{runner}-reports")
        self._number = 0
        self._sent_s = float("-inf")
        self._owed = True
        self._unanswered: deque[tuple[int, float]] = deque()
        self._said_goodbye: set[int] = set()
        self.goodbye_heard = False
        """Whether the broker has acknowledged a report that lists nothing and says that the runner drains."""
        self._answered = 0
        self._budget_bytes = REPORT_BYTES

    def open(self) -> None:
        """Waits for the broker, so that the first report goes at once. Raises KafkaAway."""
        clients.know_topic(self._producer, RUNNER_EVENTS)

    def tell(self, charge: Charge, *, news: bool) -> None:
        """Sends a report where one is due: on news, on news that could not be sent before, or since a second is over."""
        self._producer.poll(0)
        self._owed = self._owed or news
        due = self._owed or time.monotonic() - self._sent_s >= EVERY_S
        if due and len(self._unanswered) < _UNANSWERED:
            self._send(charge)

    def due_in_s(self) -> float:
        """Seconds until the next report is due; while the broker answers none, only time brings the next one."""
        if len(self._unanswered) >= _UNANSWERED:
            return EVERY_S
        return max(self._sent_s + EVERY_S - time.monotonic(), 0.0)

    @property
    def all_answered(self) -> bool:
        """Whether the broker has acknowledged the last report, and so all before it."""
        return self._answered == self._number and not self._owed

    def cut_off_s(self) -> float:
        """For how long the oldest unacknowledged report has waited; 0 where there is none."""
        return time.monotonic() - self._unanswered[0][1] if self._unanswered else 0.0

    def purge(self) -> None:
        """Drops what could not be sent: newer reports say it all again."""
        self._producer.purge()
        self._producer.poll(0)

    def poll(self, seconds: float) -> None:
        """Waits for answers, for at most `seconds`."""
        self._producer.poll(seconds)

    def _send(self, charge: Charge) -> None:
        self._number += 1
        number = self._number
        said = report(charge, runner=self._runner, pool=self._pool, number=number, version=__version__)
        if charge.draining and is_empty(charge):
            self._said_goodbye.add(number)

        def answered(error: KafkaError | None, message: Message) -> None:
            self._on_answer(number, error, len(message.value() or b""))

        self._unanswered.append((number, time.monotonic()))
        self._sent_s, self._owed = time.monotonic(), False
        value = encoded_within(said, self._budget_bytes)
        try:
            self._producer.produce(RUNNER_EVENTS, value, key=self._runner, on_delivery=answered)
        except KafkaException as refused:
            self._on_answer(number, refused.args[0], len(value))
        self._producer.poll(0)

    def _on_answer(self, number: int, error: KafkaError | None, size_bytes: int) -> None:
        self._unanswered = deque(waiting for waiting in self._unanswered if waiting[0] != number)
        if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._shrink(size_bytes)
        elif error is None:
            self._answered = max(self._answered, number)
            self.goodbye_heard = self.goodbye_heard or number in self._said_goodbye
        elif error.code() not in _PURGED:
            raise Unavailable(
                f"Kafka does not take the reports of runner {self._runner}: {error.str()}; start it again"
            )

    def _shrink(self, size_bytes: int) -> None:
        """Make reports half as large as one that was refused: the broker, its topic or this client has a lower limit than usual."""
        smaller = max(size_bytes // 2, LEAST_BYTES)
        if smaller < self._budget_bytes:
            self._budget_bytes, self._owed = smaller, True
            _log.warning(
                "report_too_large",
                bytes=size_bytes,
                does=f"cuts the errors in its reports to {smaller} bytes in all",
                needs=f"a higher limit: set max.message.bytes of the topic {RUNNER_EVENTS} to 1048588",
            )
