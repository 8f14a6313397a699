"""Kafka producers and consumers: how they are configured, created and used. The admin client is in admin.py."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from vidflow.domain.errors import SetupError
from vidflow.domain.redaction import redact
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed, security_failure
from vidflow.infra.kafka.settings import SERVERS, KafkaSettings
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import kafka_outage, require_kafka

MESSAGE_ID_HEADER: Final = "message_id"
EPOCH_HEADER: Final = "epoch"
KIND_HEADER: Final = "kind"
RUNNER_HEADER: Final = "runner"

Headers = list[tuple[str, bytes | None]]
_headers: Final = operator.methodcaller("headers")  # checks for the error that the client may set: see read_headers
DeliveryCallback = Callable[[KafkaError | None, Message], None]
T = TypeVar("T")

KAFKA_REQUEST_TIMEOUT_S: Final = 5.0
_FULL_QUEUE_POLL_S: Final = 0.1
_log = log("kafka")
_CLASSIC_GROUP_PROPERTIES: Final[dict[str, Any]] = {
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 1500,
    "partition.assignment.strategy": "cooperative-sticky",
}
_CLIENT_PROPERTIES: Final[dict[str, Any]] = {
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,  # find a broker within half a second after it is back
    "retry.backoff.max.ms": 500,
    # A frozen broker closes no connection: only new metadata shows the new leaders of its partitions.
    "topic.metadata.refresh.interval.ms": 2000,
    "socket.keepalive.enable": True,
    "allow.auto.create.topics": False,
    "log_level": 2,  # librdkafka logs every attempt; _BrokerMonitor logs an outage once
}


class Batching(msgspec.Struct, frozen=True):
    """How a producer joins messages of one partition into a request: it waits `linger_ms` for more, or until a limit is reached.

    A broker rejects a request that is larger than its limit for one message, even if each message of it is small.
    """

    linger_ms: float = 0.5
    messages: int = 10_000
    size_bytes: int = 1_000_000


DEFAULT_BATCHING: Final = Batching()


def create_producer(settings: KafkaSettings, *, client_id: str, batching: Batching = DEFAULT_BATCHING) -> Producer:
    """Return a producer that keeps messages in order and waits for all replicas, without a time limit.

    A message never times out, because later ones would then be stored after a gap. A caller that needs a limit measures the age
    of the oldest unacknowledged message. Calling `fetch_topic_metadata` first makes the first message half a second faster.
    """
    properties = {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": batching.linger_ms,
        "batch.num.messages": batching.messages,
        "batch.size": batching.size_bytes,
        "compression.type": "lz4",
        "message.timeout.ms": 0,
    }
    return create_client(Producer, settings, {**_common_properties(settings, client_id), **properties})


def fetch_topic_metadata(client: Producer | Consumer, topic: str) -> None:
    """Fetch a topic's metadata into a new client, so that its first message does not wait for them. Raises KafkaAway.

    This saves half a second in a producer and sometimes one and a half seconds in a consumer. The metadata is requested twice: the
    first answer arrives over the bootstrap connection, which the client then closes, perhaps together with its pending request for
    a producer id or a partition's leader. The second answer, over the broker's own connection, makes the client retry at once.
    """
    try:
        for _ in range(2):
            client.list_topics(topic, timeout=KAFKA_REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise KafkaAway(f"Kafka does not answer (metadata of {topic}): {error.args[0]}") from error


def send(
    client: Producer, topic: str, value: bytes | None, key: bytes | None, headers: Headers, on_delivery: DeliveryCallback
) -> None:  # fmt: skip
    """Add a message to the client's queue, waiting for room in it. Raises KafkaException if the client rejects the message."""
    while True:
        try:
            client.produce(topic, value, key, headers=headers, on_delivery=on_delivery)
        except BufferError:
            client.poll(_FULL_QUEUE_POLL_S)
        else:
            return


def create_consumer(
    settings: KafkaSettings, *, client_id: str, group: str | None = None, protocol: str = "consumer"
) -> Consumer:
    """Return a consumer that commits no offsets automatically. Without a `group`, use `offsets.assign_at_end`.

    `protocol` is the group protocol: "consumer", or "classic" for a broker older than 4.0 or with slow session settings.
    """
    properties = {
        **_common_properties(settings, client_id),
        "group.id": group or f"{client_id}-alone",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A group must miss nothing. Without a group, a consumer whose offset is gone goes to the end: the rest is out of date.
        "auto.offset.reset": "earliest" if group else "latest",
        "queued.max.messages.kbytes": 16 * 1024,
        "fetch.max.bytes": 8 * 1024 * 1024,  # the queue may exceed the limit above by this much
        "fetch.queue.backoff.ms": 20,
        "fetch.error.backoff.ms": 100,
    }
    if group:
        properties["group.protocol"] = protocol
    if group and protocol == "classic":
        properties |= _CLASSIC_GROUP_PROPERTIES
    return create_client(Consumer, settings, properties)


def create_log_reader(settings: KafkaSettings) -> Consumer:
    """Return a consumer for `offsets.read_log`: without a group, with an event at the end of each partition."""
    properties = {"group.id": "vidflow-alone", "enable.auto.commit": False, "enable.partition.eof": True}
    return create_client(Consumer, settings, {**_common_properties(settings, "vidflow-log"), **properties})


def consume_available(reader: Consumer, limit: int, timeout_s: float) -> list[Message]:
    """Return the available messages, at most `limit`, waiting up to `timeout_s` for the first one.

    The client's own `consume` returns only when it has `limit` messages or the timeout has passed.
    """
    first: list[Message] = reader.consume(1 if timeout_s else limit, timeout_s)
    return first + reader.consume(limit - len(first), 0) if first and len(first) < limit else first


def create_client(factory: Callable[[dict[str, Any]], T], settings: KafkaSettings, properties: Mapping[str, Any]) -> T:
    """Return a new client. The operator's properties override `properties`; KafkaSettings has rejected those that must not.

    Raises SetupError if librdkafka rejects a property or its value.
    """
    merged = {**_CLIENT_PROPERTIES, **properties, **settings.properties, SERVERS: settings.bootstrap}
    try:
        return factory(merged)
    except (KafkaException, TypeError, ValueError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise SetupError(
            f"The Kafka client rejected its properties: {redact(reason, settings.secrets())}. "
            "Check the properties file (--kafka-properties) and the variables VIDFLOW_KAFKA_…"
        ) from None  # the library's error may quote a secret


def read_headers(message: Message) -> Headers:
    """Return a message's headers, none if a header name is not UTF-8. Call this once per message.

    For such a name, the client returns a list with a null pointer and leaves a Python error set. A second call, or a call that
    the interpreter has specialized so that it skips the error check, would use that list and crash the process.
    """
    try:
        return _headers(message) or []
    except (SystemError, UnicodeDecodeError):
        return []


def _common_properties(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Settings shared by producers and consumers. The owner must poll the client, otherwise callback events accumulate in memory."""
    require_kafka(settings)
    monitor = _BrokerMonitor(client_id, settings)
    return {
        "client.id": client_id,
        "error_cb": monitor.on_error,
        "statistics.interval.ms": 1000,  # the only sign that a broker is back: there is no callback for it
        "stats_cb": monitor.on_statistics,
    }


class _BrokerMonitor:
    """Callbacks of one client that report when its brokers go away and come back. The client calls them in `poll`."""

    def __init__(self, client_id: str, settings: KafkaSettings) -> None:
        self._client_id = client_id
        self._settings = settings
        self._outage = kafka_outage()
        self._down = False
        self._down_reports = 0
        self._security_failure: SecurityFailed | None = None
        self._logged_codes: set[int] = set()

    def on_error(self, error: KafkaError) -> None:
        """Note that the brokers may be away. A single lost connection means nothing: brokers close idle ones."""
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._down = True
        elif (failure := security_failure(error, self._settings)) is not None:
            self._down, self._security_failure = True, failure
        elif code not in {KafkaError._TRANSPORT, KafkaError._RESOLVE} and code not in self._logged_codes:  # noqa: SLF001
            self._logged_codes.add(code)
            reason = redact(error.str(), self._settings.secrets())
            _log.warning("client_error", client=self._client_id, servers=self._settings.bootstrap, error=reason)

    def on_statistics(self, statistics: str) -> None:
        """Check each second whether a broker is up, once the brokers were reported down to this client or to another one.

        An outage begins with the second report in a row that finds none: the first may be out of date in a client that was
        created while the broker started.
        """
        if not self._down and not self._outage.is_logged:
            return
        brokers = msgspec.json.decode(statistics)["brokers"].values()
        if any(broker["state"] == "UP" for broker in brokers):
            self._down, self._security_failure = False, None
            self._down_reports = 0
            self._logged_codes.clear()
            self._outage.end()
            return
        self._down_reports += self._down
        if self._down_reports > 1:
            self._outage.begin(
                self._security_failure or KafkaAway(f"Kafka does not answer at {self._settings.bootstrap}")
            )
