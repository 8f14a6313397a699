"""The runner's reports: one each second, and one at once on an important change. Also detects that the runner is cut off from Kafka.

A report is complete, so a late or lost one only delays the leader. A frozen broker raises no error; the age of the oldest
unacknowledged report shows that the runner is cut off.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message

from vidflow import __version__
from vidflow.domain.errors import Unavailable
from vidflow.domain.report_size import REPORT_BYTES, encode_report
from vidflow.domain.runner import RunnerState, build_report, is_empty
from vidflow.domain.topics import RUNNER_EVENTS
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import log

REPORT_INTERVAL_S: Final = 1.0
CUT_OFF_AFTER_S: Final = 30.0
"""Time after which a runner that is cut off ends its workers."""
MIN_REPORT_BYTES: Final = 16_000
"""Lower bound when reports are made smaller for a broker with a low message size limit."""
_IN_FLIGHT_REPORTS: Final = 5
"""Reports in flight at most. Each newer report repeats everything."""
_PURGE_ERRORS: Final = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # noqa: SLF001
_log = log("runner")


class ReportSender:
    """Sends the reports of one runner, in order. Not thread-safe."""

    def __init__(self, settings: KafkaSettings, pool: str, runner: str) -> None:
        self._pool = pool
        self._runner = runner
        self._producer = clients.create_producer(settings, client_id=f"vidflow-{runner}-reports")
        self._number = 0
        self._sent_s = float("-inf")
        self._urgent = True
        self._in_flight: deque[tuple[int, float]] = deque()
        self._final_reports: set[int] = set()
        self.final_report_acknowledged = False
        """Whether the broker has acknowledged a report that is draining and has no entries."""
        self._last_acknowledged = 0
        self._budget_bytes = REPORT_BYTES

    def open(self) -> None:
        """Wait for the broker, so that the first report is sent without delay. Raises KafkaAway."""
        clients.fetch_topic_metadata(self._producer, RUNNER_EVENTS)

    def send_if_due(self, state: RunnerState, *, urgent: bool) -> None:
        """Send a report if one is due: `urgent`, an earlier urgent one could not be sent, or a second has passed since the last."""
        self._producer.poll(0)
        self._urgent = self._urgent or urgent
        due = self._urgent or time.monotonic() - self._sent_s >= REPORT_INTERVAL_S
        if due and len(self._in_flight) < _IN_FLIGHT_REPORTS:
            self._send(state)

    def due_in_s(self) -> float:
        """Return the seconds until the next report is due, or a whole interval while too many are in flight."""
        if len(self._in_flight) >= _IN_FLIGHT_REPORTS:
            return REPORT_INTERVAL_S
        return max(self._sent_s + REPORT_INTERVAL_S - time.monotonic(), 0.0)

    @property
    def all_acknowledged(self) -> bool:
        """Whether the broker has acknowledged the last report, and with it everything reported before."""
        return self._last_acknowledged == self._number and not self._urgent

    def oldest_unacknowledged_s(self) -> float:
        """Return the age in seconds of the oldest unacknowledged report, or 0 if there is none."""
        return time.monotonic() - self._in_flight[0][1] if self._in_flight else 0.0

    def purge(self) -> None:
        """Drop the reports that could not be sent. The next one repeats everything."""
        self._producer.purge()
        self._producer.poll(0)

    def poll(self, seconds: float) -> None:
        """Wait at most `seconds` for acknowledgements."""
        self._producer.poll(seconds)

    def _send(self, state: RunnerState) -> None:
        self._number += 1
        number = self._number
        report = build_report(state, runner=self._runner, pool=self._pool, number=number, version=__version__)
        if state.draining and is_empty(state):
            self._final_reports.add(number)

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            self._on_delivery(number, error, len(message.value() or b""))

        self._in_flight.append((number, time.monotonic()))
        self._sent_s, self._urgent = time.monotonic(), False
        value = encode_report(report, self._budget_bytes)
        try:
            self._producer.produce(RUNNER_EVENTS, value, key=self._runner, on_delivery=on_delivery)
        except KafkaException as error:
            self._on_delivery(number, error.args[0], len(value))
        self._producer.poll(0)

    def _on_delivery(self, number: int, error: KafkaError | None, size_bytes: int) -> None:
        self._in_flight = deque(report for report in self._in_flight if report[0] != number)
        if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._shrink(size_bytes)
        elif error is None:
            self._last_acknowledged = max(self._last_acknowledged, number)
            self.final_report_acknowledged = self.final_report_acknowledged or number in self._final_reports
        elif error.code() not in _PURGE_ERRORS:
            raise Unavailable(f"Kafka rejected a report of runner {self._runner}: {error.str()}. Restart the runner.")

    def _shrink(self, size_bytes: int) -> None:
        """Halve the size of reports after one was rejected: the broker, the topic or this client has an unusually low limit."""
        smaller = max(size_bytes // 2, MIN_REPORT_BYTES)
        if smaller < self._budget_bytes:
            self._budget_bytes, self._urgent = smaller, True
            _log.warning(
                "report_too_large",
                bytes=size_bytes,
                does=f"truncates its error texts so that a report has at most {smaller} bytes",
                needs=f"a higher limit; set max.message.bytes of the topic {RUNNER_EVENTS} to 1048588",
            )
