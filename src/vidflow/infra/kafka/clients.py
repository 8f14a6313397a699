"""The factory of every Kafka client, and how producers and consumers are used. Questions: questions.py."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from vidflow.domain.errors import SetupError
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed, security_failure
from vidflow.infra.kafka.settings import SERVERS, KafkaSettings
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import kafka_outage, require_kafka

MESSAGE_ID_HEADER: Final = "message_id"
EPOCH_HEADER: Final = "epoch"
KIND_HEADER: Final = "kind"
RUNNER_HEADER: Final = "runner"

Headers = list[tuple[str, bytes | None]]
_headers: Final = operator.methodcaller("headers")  # looks at the error that the client may have left: see headers_of
DeliveryCallback = Callable[[KafkaError | None, Message], None]
T = TypeVar("T")

KAFKA_REQUEST_TIMEOUT_S: Final = 5.0
_FULL_POLL_S: Final = 0.1
_log = log("kafka")
_CLASSIC: Final[dict[str, Any]] = {
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 1500,
    "partition.assignment.strategy": "cooperative-sticky",
}
_CLIENT: Final[dict[str, Any]] = {
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,  # a broker that is back is found within half a second
    "retry.backoff.max.ms": 500,
    # A broker that stands still breaks no connection: only a fresh look tells who leads its partitions now.
    "topic.metadata.refresh.interval.ms": 2000,
    "socket.keepalive.enable": True,
    "allow.auto.create.topics": False,
    "log_level": 2,  # its lines repeat with each attempt; an outage is said once, below
}


def create_producer(settings: KafkaSettings, *, client_id: str) -> Producer:
    """A producer that keeps the order and waits for all replicas, for as long as it takes.

    A message never times out: given up on, later ones would be stored behind a hole. Who needs an end counts the age of
    the oldest unacknowledged message. `fetch_topic_metadata` before the first message makes it half a second faster.
    """
    own = {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0.5,
        "compression.type": "lz4",
        "message.timeout.ms": 0,
    }
    return create_client(Producer, settings, {**_common_properties(settings, client_id), **own})


def fetch_topic_metadata(client: Producer | Consumer, topic: str) -> None:
    """Lets a new client learn what its first message to or from the topic would else wait for. Raises KafkaAway.

    Half a second in a producer, now and then one and a half in a consumer. Asked twice: the first answer comes over the
    bootstrap connection, which the client thereupon closes, and with it may end its request for a producer's id, or the one
    for where a partition lies; the second answer, over the broker's own connection, lets it ask again at once.
    """
    try:
        for _ in range(2):
            client.list_topics(topic, timeout=KAFKA_REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise KafkaAway(f"Kafka does not answer (the topic {topic}): {error.args[0]}") from error


def send(
    client: Producer, topic: str, value: bytes | None, key: bytes | None, headers: Headers, on_delivery: DeliveryCallback
) -> None:  # fmt: skip
    """Hands a message over; where the client's queue is full, waits until it has room. Raises KafkaException where refused."""
    while True:
        try:
            client.produce(topic, value, key, headers=headers, on_delivery=on_delivery)
        except BufferError:
            client.poll(_FULL_POLL_S)
        else:
            return


def create_consumer(
    settings: KafkaSettings, *, client_id: str, group: str | None = None, protocol: str = "consumer"
) -> Consumer:
    """A consumer that stores no offset by itself. Without a `group` it is for `assign_at_end`.

    `protocol` is the group's: "consumer", or "classic" for a broker older than 4.0 or with slow session settings.
    """
    own = {
        **_common_properties(settings, client_id),
        "group.id": group or f"{client_id}-alone",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # In a group nothing may be missed. Alone, what an old offset leads to is out of date: go on at the end.
        "auto.offset.reset": "earliest" if group else "latest",
        "queued.max.messages.kbytes": 16 * 1024,
        "fetch.max.bytes": 8 * 1024 * 1024,  # by so much the queue may grow past the line above
        "fetch.queue.backoff.ms": 20,
        "fetch.error.backoff.ms": 100,
    }
    if group:
        own["group.protocol"] = protocol
    if group and protocol == "classic":
        own |= _CLASSIC
    return create_client(Consumer, settings, own)


def create_log_reader(settings: KafkaSettings) -> Consumer:
    """Make a consumer for `read_log`: in no group, and told of each partition's end."""
    own = {"group.id": "vidflow-alone", "enable.auto.commit": False, "enable.partition.eof": True}
    return create_client(Consumer, settings, {**_common_properties(settings, "vidflow-log"), **own})


def consume_available(reader: Consumer, limit: int, timeout_s: float) -> list[Message]:
    """Return the messages that are there, at most `limit`, waiting up to `timeout_s` for the first one.

    The client's own `consume(most, timeout_s)` returns only when `limit` have come or the whole time has passed.
    """
    first: list[Message] = reader.consume(1 if timeout_s else limit, timeout_s)
    return first + reader.consume(limit - len(first), 0) if first and len(first) < limit else first


def create_client(factory: Callable[[dict[str, Any]], T], settings: KafkaSettings, properties: Mapping[str, Any]) -> T:
    """Make a client. The operator's properties stand above vidflow's; those that may not change are none of them.

    Raises SetupError if the library knows no such property or value.
    """
    given = {**_CLIENT, **properties, **settings.properties, SERVERS: settings.bootstrap}
    try:
        return factory(given)
    except (KafkaException, TypeError, ValueError) as error:
        said = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise SetupError(
            f"Kafka's client refuses its properties: {settings.without_secrets(said)}. "
            "Check the properties file (--kafka-properties) and the variables VIDFLOW_KAFKA_…"
        ) from None  # the library's error may quote a secret


def read_headers(message: Message) -> Headers:
    """What its sender put beside a message; none where a name is no UTF-8. To be asked for once.

    There the client gives a list with nothing in a name's place, and leaves an error set. Asked again, or called from code that runs
    often, which the interpreter then calls without a look at the error, that list is used: the process would end by a signal.
    """
    try:
        return _headers(message) or []
    except (SystemError, UnicodeDecodeError):
        return []


def _common_properties(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Settings shared by producers and consumers. The owner must poll the client, otherwise callback events accumulate in memory."""
    require_kafka(settings)
    watch = _BrokerMonitor(client_id, settings)
    return {
        "client.id": client_id,
        "error_cb": watch.on_error,
        "statistics.interval.ms": 1000,  # how a return of the broker is noticed: no callback tells it
        "stats_cb": watch.on_statistics,
    }


class _BrokerMonitor:
    """What one client knows of its brokers, by its callbacks, which its poll calls."""

    def __init__(self, client_id: str, settings: KafkaSettings) -> None:
        self._client_id = client_id
        self._settings = settings
        self._outage = kafka_outage()
        self._down = False
        self._found_down = 0
        self._refusal: SecurityFailed | None = None
        self._logged_codes: set[int] = set()

    def on_error(self, error: KafkaError) -> None:
        """One lost connection is no news: brokers close idle ones. Whether none is left, the next statistics tell."""
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._down = True
        elif (failure := security_failure(error, self._settings)) is not None:
            self._down, self._refusal = True, failure
        elif code not in {KafkaError._TRANSPORT, KafkaError._RESOLVE} and code not in self._logged_codes:  # noqa: SLF001
            self._logged_codes.add(code)
            said = self._settings.without_secrets(error.str())
            _log.warning("client_error", client=self._client_id, servers=self._settings.bootstrap, error=said)

    def on_statistics(self, statistics: str) -> None:
        """Each second: while its brokers were last heard of as down, whether one of them is up.

        Away is what two in a row have found: a client made while the broker starts would tell of an outage that is over.
        """
        if not self._down:
            return
        brokers = msgspec.json.decode(statistics)["brokers"].values()
        if any(broker["state"] == "UP" for broker in brokers):
            self._down, self._refusal = False, None
            self._found_down = 0
            self._logged_codes.clear()
            self._outage.end()
            return
        self._found_down += 1
        if self._found_down > 1:
            self._outage.begin(self._refusal or KafkaAway(f"no broker answers at {self._settings.bootstrap}"))
