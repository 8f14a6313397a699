"""The last step of a worker: its messages to Kafka, in order, each acknowledged or the worker fails. Not what is in them."""

from __future__ import annotations

import threading
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message

from vidflow.domain.errors import MessageError, ModelError, Unavailable
from vidflow.domain.messages import RESULTS, Result, Waiting, decode_result, encode
from vidflow.infra.kafka import clients, errors
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import log
from vidflow.roles.worker.link import Link

IN_FLIGHT_MESSAGES: Final = 64
IN_FLIGHT_BYTES: Final = 16 * 1024**2
"""What may wait for the broker's answer: enough to keep the line busy, little enough to be lost and done again."""
_POLL_S: Final = 0.1
_log = log("worker")


class DeliveryFailed(Unavailable):
    """A message was given up on: what comes after it would stand behind a hole."""

    default_code = "delivery_failed"


class ResultTooLarge(ModelError):
    """A frame's result does not fit into one message: at every attempt it will be as large."""

    default_code = "result_too_large"


class Results:
    """The scenario's messages on their way, by one idempotent producer: in order, and a bounded number of them."""

    def __init__(self, settings: KafkaSettings, scenario_uuid: str, link: Link) -> None:
        self._link = link
        self._scenario_uuid = scenario_uuid
        self._producer = clients.producer(settings, client_id=f"vidflow-worker-{scenario_uuid}")
        self._in_flight_bytes = 0
        self._failure: KafkaError | None = None
        self._failed_bytes = 0
        # Takes 55 ms, in which source and model are opened.
        self._ready = threading.Thread(target=self._know_the_topic, name="knows the topic", daemon=True)
        self._ready.start()

    def send(self, message: Result) -> None:
        """Hands one message over; waits while too many are unacknowledged.

        Raises DeliveryFailed, ResultTooLarge, and MessageError for one that no inbox can read: a model may give anything, and
        what a worker sends is taken for a later version's where it cannot be read.
        """
        value = encode(message)
        _require_readable(value)
        self._ready.join()
        self._wait_until_below(IN_FLIGHT_MESSAGES, IN_FLIGHT_BYTES)
        headers: clients.Headers = [
            (clients.KIND, message.__struct_config__.tag.encode()),  # type: ignore[union-attr]
            (clients.EPOCH, str(message.epoch).encode()),
        ]
        try:
            self._producer.produce(RESULTS, value, key=self._scenario_uuid, headers=headers, on_delivery=self._answered)
        except KafkaException as error:
            raise self._failed(error.args[0], len(value)) from error
        self._in_flight_bytes += len(value)
        self._producer.poll(0)

    def flush(self) -> None:
        """Waits until every message is acknowledged. Raises DeliveryFailed or ResultTooLarge."""
        self._wait_until_below(1, 1)

    def _know_the_topic(self) -> None:
        try:
            clients.know_topic(self._producer, RESULTS)
        except errors.KafkaAway as error:  # messages wait in the producer until the broker is there
            _log.warning("kafka_away", scenario_uuid=self._scenario_uuid, error=error.message)

    def _wait_until_below(self, messages: int, size_bytes: int) -> None:
        waited = False
        self._check()
        while len(self._producer) >= messages or self._in_flight_bytes >= size_bytes:
            if not waited:
                self._link.waits_for(Waiting.KAFKA)
                waited = True
            self._producer.poll(_POLL_S)
            self._check()

    def _answered(self, error: KafkaError | None, message: Message) -> None:
        self._in_flight_bytes -= len(message.value() or b"")
        if error is not None and self._failure is None:
            self._failure, self._failed_bytes = error, len(message.value() or b"")

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failed(self._failure, self._failed_bytes)

    def _failed(self, error: KafkaError, size_bytes: int) -> DeliveryFailed | ResultTooLarge:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return ResultTooLarge(
                f"a result of scenario {self._scenario_uuid} has {size_bytes} bytes, more than Kafka takes in one message; raise "
                "score_threshold, ask for fewer labels, or lower max_detections in the model's spec"
            )
        return DeliveryFailed(
            f"Kafka did not take a message of scenario {self._scenario_uuid}: {error.str()}; it is done again from the last stored frame"
        )


def _require_readable(value: bytes) -> None:
    try:
        decode_result(value)
    except MessageError as error:
        raise MessageError(
            f"the model or the source gave what cannot be stored ({error.message}); check the model's labels"
        ) from error
