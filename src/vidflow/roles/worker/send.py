"""The last step of a worker: send its messages to Kafka, in order. The worker fails if any message is not acknowledged.

Gaps and late changes of the source's clock are held until the next frame or the end marker, and are part of that message. So none
can be lost alone: frames have numbers by which a lost one is missed.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from vidflow.domain.errors import MessageError, ModelError, Unavailable
from vidflow.domain.messages import (
    ClockChanges,
    Deploy,
    End,
    EndReason,
    Frame,
    Gap,
    Result,
    SourceLost,
    SourceOpened,
    WorkerWait,
    decode_result,
    encode,
)
from vidflow.domain.newest_frames import MAX_GAPS
from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka import clients, errors
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import log
from vidflow.infra.video import FrameGap
from vidflow.roles.worker.link import Link

IN_FLIGHT_MESSAGES: Final = 64
IN_FLIGHT_BYTES: Final = 16 * 1024**2
"""Limits of unacknowledged messages: enough to keep the connection busy, few enough to lose and infer again."""
SEND_INTERVAL_S: Final = 0.03
"""Shortest interval of requests while few results are ready. The broker's work for a request is that for some ten results."""
_BATCHING: Final = clients.Batching(messages=IN_FLIGHT_MESSAGES // 2, size_bytes=64 * 1024)
"""Half of what may be in flight is sent while the other half is being acknowledged. The size is far below what brokers accept, so that
they reject no batch of small results as too large."""
_POLL_S: Final = 0.1
_log = log("worker")


class DeliveryFailed(Unavailable):
    """A message was not delivered. Later messages would follow a hole, so the worker must end."""

    default_code = "delivery_failed"


class ResultTooLarge(ModelError):
    """A frame's result does not fit in one message. It would be as large in every attempt."""

    default_code = "result_too_large"


class ResultSender:
    """Sends the scenario's messages in order with an idempotent producer, with a bounded number in flight.

    A message that follows another one within SEND_INTERVAL_S is pending until then, so that one request carries all that are. A second
    thread hands them to the producer when they are due.
    """

    def __init__(self, settings: KafkaSettings, deploy: Deploy, link: Link) -> None:
        self._link = link
        self._scenario_uuid, self._epoch = deploy.scenario_uuid, deploy.epoch
        self._last_frame = deploy.resume.next_frame - 1
        self._gaps: list[Gap] = []
        self._clock: ClockChanges | None = None
        self._producer = clients.create_producer(
            settings, client_id=f"vidflow-worker-{deploy.scenario_uuid}", batching=_BATCHING
        )
        self._pending: list[tuple[bytes, clients.Headers]] = []
        self._pending_changed = threading.Condition()
        self._produced_s = float("-inf")
        self._in_flight_bytes = 0
        self._pending_failure: DeliveryFailed | ResultTooLarge | None = None
        self._failure: KafkaError | None = None
        self._failed_bytes = 0
        # Takes 55 ms, while the source and the model are opened.
        self._metadata_thread = threading.Thread(target=self._fetch_topic_metadata, name="topic metadata", daemon=True)
        self._metadata_thread.start()
        threading.Thread(target=self._produce_when_due, name="pending results", daemon=True).start()

    def hold_gap(self, gap: FrameGap) -> None:
        """Hold a gap for the next frame or the end marker. If too many are held, the last two become one."""
        held = Gap(gap.from_s, gap.to_s, gap.reason, gap.frames)
        if len(self._gaps) >= MAX_GAPS:
            last = self._gaps.pop()
            frames = None if last.frames is None or gap.frames is None else last.frames + gap.frames
            held = Gap(last.from_s, max(last.to_s, gap.to_s), last.reason, frames)
        self._gaps.append(held)

    def hold_clock_changes(self, changes: ClockChanges | None) -> None:
        """Hold what the source's clock did after the last frame for the end marker."""
        self._clock = changes

    def send_end(self, reason: EndReason) -> None:
        """Send the end marker, with everything that is held."""
        gaps, self._gaps = tuple(self._gaps), []
        self._send(End(self._scenario_uuid, self._epoch, self._last_frame, reason, gaps, self._clock))
        self._clock = None

    def send_held(self) -> None:
        """Send what is held, if anything, with an end marker that says that the worker fails."""
        if self._gaps or self._clock:
            self.send_end(EndReason.ERROR)

    def send(self, message: SourceOpened | SourceLost | Frame) -> None:
        """Enqueue a message for delivery. A frame takes the gaps that are held. Blocks while too many are unacknowledged.

        Raises DeliveryFailed, ResultTooLarge, or MessageError for a message that the inbox could not read: a model may return
        anything, and the inbox takes an unreadable message of a worker for one of a later version.
        """
        if not isinstance(message, Frame):
            self._send(message)
            return
        self._send(msgspec.structs.replace(message, gaps=tuple(self._gaps)) if self._gaps else message)
        self._gaps, self._last_frame = [], message.frame_number

    def _send(self, message: Result) -> None:
        value = encode(message)
        _require_readable(value)
        self._metadata_thread.join()
        self._wait_until_below(IN_FLIGHT_MESSAGES, IN_FLIGHT_BYTES)
        headers: clients.Headers = [
            (clients.KIND_HEADER, message.__struct_config__.tag.encode()),  # type: ignore[union-attr]
            (clients.EPOCH_HEADER, str(message.epoch).encode()),
        ]
        self._in_flight_bytes += len(value)
        with self._pending_changed:
            self._pending.append((value, headers))
            if self._compute_delay_s() <= 0:
                self._produce_pending()
            else:
                self._pending_changed.notify()
        self._producer.poll(0)

    def flush(self) -> None:
        """Send what is pending, and wait until every message is acknowledged. Raises DeliveryFailed or ResultTooLarge."""
        with self._pending_changed:
            self._produce_pending()
        self._wait_until_below(1, 1)

    def _compute_delay_s(self) -> float:
        """Return how long the pending messages must wait. The caller has the lock."""
        size_bytes = sum(len(value) for value, _ in self._pending)
        if len(self._pending) >= _BATCHING.messages or size_bytes >= _BATCHING.size_bytes:
            return 0.0
        return self._produced_s + SEND_INTERVAL_S - time.monotonic()

    def _produce_pending(self) -> None:
        """Hand the pending messages to the producer. The caller has the lock. Raises DeliveryFailed or ResultTooLarge."""
        self._produced_s = time.monotonic()
        pending, self._pending = self._pending, []
        for value, headers in pending:
            try:
                self._producer.produce(
                    RESULTS, value, key=self._scenario_uuid, headers=headers, on_delivery=self._on_delivery
                )
            except KafkaException as error:
                self._in_flight_bytes -= len(value)
                raise self._build_delivery_error(error.args[0], len(value)) from error

    def _produce_when_due(self) -> None:
        with self._pending_changed:
            while True:
                delay_s = self._compute_delay_s() if self._pending else None
                if delay_s is None or delay_s > 0:
                    self._pending_changed.wait(delay_s)
                    continue
                try:
                    self._produce_pending()
                except (DeliveryFailed, ResultTooLarge) as error:
                    self._pending_failure = error
                    return

    def _fetch_topic_metadata(self) -> None:
        try:
            clients.fetch_topic_metadata(self._producer, RESULTS)
        except errors.KafkaAway as error:  # the producer holds messages until the broker is available
            _log.warning("kafka_away", scenario_uuid=self._scenario_uuid, error=error.message)

    def _wait_until_below(self, messages: int, size_bytes: int) -> None:
        waited = False
        self._raise_failure()
        while len(self._producer) + len(self._pending) >= messages or self._in_flight_bytes >= size_bytes:
            if not waited:
                self._link.report_wait(WorkerWait.KAFKA)
                waited = True
            self._producer.poll(_POLL_S)
            self._raise_failure()

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        self._in_flight_bytes -= len(message.value() or b"")
        if error is not None and self._failure is None:
            self._failure, self._failed_bytes = error, len(message.value() or b"")

    def _raise_failure(self) -> None:
        if self._pending_failure is not None:
            raise self._pending_failure
        if self._failure is not None:
            raise self._build_delivery_error(self._failure, self._failed_bytes)

    def _build_delivery_error(self, error: KafkaError, size_bytes: int) -> DeliveryFailed | ResultTooLarge:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return ResultTooLarge(
                f"A result of scenario {self._scenario_uuid} has {size_bytes} bytes, more than fit in one Kafka message. Raise "
                "score_threshold, request fewer labels, or lower max_detections in the model's spec."
            )
        return DeliveryFailed(
            f"Kafka rejected a message of scenario {self._scenario_uuid}: {error.str()}. A retry resumes after the last stored frame."
        )


def _require_readable(value: bytes) -> None:
    try:
        decode_result(value)
    except MessageError as error:
        raise MessageError(
            f"The model or the source returned data that cannot be stored ({error.message}). Check the model's labels."
        ) from error
