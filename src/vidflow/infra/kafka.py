"""Kafka's clients, made the one right way, and what vidflow asks of a broker. Not what the messages mean.

Clients are made in the process and thread that use them, after any fork: one that is inherited delivers nothing.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    TopicDescription,
)

from vidflow.domain.errors import Unavailable
from vidflow.domain.messages import COMPACTED, PARTITIONS
from vidflow.infra.outage import TOPIC_MISSING, kafka_outage, require_kafka
from vidflow.infra.stopping import Stop
from vidflow.infra.telemetry import log

MESSAGE_ID: Final = "message_id"
EPOCH: Final = "epoch"
KIND: Final = "kind"
RUNNER: Final = "runner"

Headers = list[tuple[str, bytes | None]]
_headers: Final = operator.methodcaller("headers")  # looks at the error that the client may have left: see headers_of
Delivered = Callable[[KafkaError | None, Message], None]
T = TypeVar("T")
Asked = ParamSpec("Asked")

_ANSWER_S: Final = 5.0
_SHORT_S: Final = 0.5
_QUIET_S: Final = 3.0
"""How long a broker may take without a word: one that is started beside the roles is there by then."""
_LED_POLL_S: Final = 0.02
_FULL_POLL_S: Final = 0.1
_LED_S: Final = 30.0
"""How long a broker may take until a new topic's partitions are led: far more than one needs that has a processor to run on."""
_SILENCE_S: Final = 10.0
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
    "socket.keepalive.enable": True,
    "allow.auto.create.topics": False,
    "log_level": 2,  # its lines repeat with each attempt; an outage is said once, below
}


class KafkaAway(Unavailable):
    """The broker does not answer."""

    default_code = "kafka_away"


class TopicMissing(KafkaAway):
    """The broker answers, and has not got the topic."""

    default_code = TOPIC_MISSING


class ClientBroken(Unavailable):
    """A client has met an error that it cannot mend: only a new one, in a new process, can go on."""

    default_code = "kafka_client_broken"


def producer(bootstrap: str, *, client_id: str) -> Producer:
    """A producer that keeps the order and waits for all replicas, for as long as it takes.

    A message never times out: given up on, later ones would be stored behind a hole. Who needs an end counts the age of
    the oldest unacknowledged message. `know_topic` before the first message makes it half a second faster.
    """
    return Producer({
        **_client(bootstrap, client_id),
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0.5,
        "compression.type": "lz4",
        "message.timeout.ms": 0,
    })  # fmt: skip


def know_topic(client: Producer | Consumer, topic: str) -> None:
    """Lets a new client learn what its first message to or from the topic would else wait for. Raises KafkaAway.

    Half a second in a producer, now and then one and a half in a consumer. Asked twice: the first answer comes over the
    bootstrap connection, which the client thereupon closes, and with it may end its request for a producer's id, or the one
    for where a partition lies; the second answer, over the broker's own connection, lets it ask again at once.
    """
    try:
        for _ in range(2):
            client.list_topics(topic, timeout=_ANSWER_S)
    except KafkaException as error:
        raise KafkaAway(f"Kafka does not answer (the topic {topic}): {error.args[0]}") from error


def send(
    client: Producer, topic: str, value: bytes | None, key: bytes | None, headers: Headers, on_delivery: Delivered
) -> None:  # fmt: skip
    """Hands a message over; where the client's queue is full, waits until it has room. Raises KafkaException where refused."""
    while True:
        try:
            client.produce(topic, value, key, headers=headers, on_delivery=on_delivery)
        except BufferError:
            client.poll(_FULL_POLL_S)
        else:
            return


def consumer(bootstrap: str, *, client_id: str, group: str | None = None, protocol: str = "consumer") -> Consumer:
    """A consumer that stores no offset by itself. Without a `group` it is for `assign_at_end`.

    `protocol` is the group's: "consumer", or "classic" for a broker older than 4.0 or with slow session settings.
    """
    settings = {
        **_client(bootstrap, client_id),
        "group.id": group or f"{client_id}-alone",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # In a group nothing may be missed. Alone, what an old offset leads to is out of date: go on at the end.
        "auto.offset.reset": "earliest" if group else "latest",
        "queued.max.messages.kbytes": 16 * 1024,
        "fetch.queue.backoff.ms": 20,
        "fetch.error.backoff.ms": 100,
    }
    if group:
        settings["group.protocol"] = protocol
    if group and protocol == "classic":
        settings |= _CLASSIC
    return Consumer(settings)


def admin(bootstrap: str) -> AdminClient:
    """A client for questions. Keep a reference to it while an answer is awaited. Raises SetupError without brokers."""
    require_kafka(bootstrap)
    settings = {**_CLIENT, "bootstrap.servers": bootstrap, "client.id": "vidflow-admin"}
    return AdminClient({**settings, "socket.timeout.ms": int(_ANSWER_S * 1000)})


def wait_for_broker(bootstrap: str, stop: Stop) -> bool:
    """Returns once a broker answers; False where a stop is requested before. Says once that it waits, if it takes long.

    A question that waits for its broker cannot be broken off: those asked here are short ones, so that a stop is soon seen.
    """
    client, outage = admin(bootstrap), kafka_outage()
    since_s = time.monotonic()
    while not stop.requested:
        try:
            client.list_topics(timeout=_SHORT_S)
        except KafkaException:
            if time.monotonic() - since_s > _QUIET_S:
                outage.away(KafkaAway(f"no broker answers at {bootstrap}"))
            stop.wait(_LED_POLL_S)
        else:
            outage.back()
            return True
    return False


def headers_of(message: Message) -> Headers:
    """What its sender put beside a message; none where a name is no UTF-8. To be asked for once.

    There the client gives a list with nothing in a name's place, and leaves an error set. Asked again, or called from code that runs
    often, which the interpreter then calls without a look at the error, that list is used: the process would end by a signal.
    """
    try:
        return _headers(message) or []
    except (SystemError, UnicodeDecodeError):
        return []


class Questions:
    """A client for questions that go on for long: made anew where it got no answer.

    Behind a broker that stood still for half a minute a client may look for its controller for minutes more, while the broker answers
    everybody else (seen with librdkafka 2.16: "Failed while waiting for controller", each time again).
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._client = admin(bootstrap)

    def ask(
        self, question: Callable[Concatenate[AdminClient, Asked], T], *given: Asked.args, **more: Asked.kwargs
    ) -> T:
        """The answer to one of the questions below. Raises KafkaAway."""
        try:
            return question(self._client, *given, **more)
        except TopicMissing:
            raise
        except KafkaAway:
            self._client = admin(self._bootstrap)
            raise


def topic_id(client: AdminClient, topic: str) -> str:
    """The id of the topic as it is now: another one after it was deleted and made anew. Raises KafkaAway."""
    return str(_describe(client, topic).topic_id)


def partitions(client: AdminClient, topic: str) -> list[int]:
    """The numbers of the topic's partitions. Raises KafkaAway."""
    return sorted(partition.id for partition in _describe(client, topic).partitions)


def end_offsets(client: AdminClient, topic: str, among: Iterable[int] | None = None) -> dict[int, int]:
    """The offset that the next message of each partition (`among` these, or all) will get. Raises KafkaAway."""
    return _offsets(client, topic, partitions(client, topic) if among is None else among, OffsetSpec.latest())


def first_offsets(client: AdminClient, topic: str, among: Iterable[int]) -> dict[int, int]:
    """The offset of the oldest message that each partition still holds. Raises KafkaAway."""
    return _offsets(client, topic, among, OffsetSpec.earliest())


def _offsets(client: AdminClient, topic: str, numbers: Iterable[int], which: OffsetSpec) -> dict[int, int]:
    asked = {TopicPartition(topic, number): which for number in numbers}
    if not asked:
        return {}
    answers = _asked(f"the offsets of {topic}", lambda: client.list_offsets(asked, request_timeout=_ANSWER_S))
    return {one.partition: _answer(f"the offsets of {topic}", answer).offset for one, answer in answers.items()}


def assign_at_end(client: AdminClient, reader: Consumer, topics: Collection[str]) -> None:
    """Lets a consumer without a group read all partitions of the topics from their present ends.

    The ends are asked for and given: a symbolic end is looked up later, and what came between is lost.
    Raises KafkaAway.
    """
    ends = [
        TopicPartition(topic, partition, offset)
        for topic in topics
        for partition, offset in end_offsets(client, topic).items()
    ]
    for topic in topics:
        know_topic(reader, topic)
    reader.assign(ends)


def read_log(bootstrap: str, topic: str) -> Iterator[Message]:
    """All messages that the topic holds now, each partition's in order; what comes meanwhile may be among them.

    Belongs to no group and leaves no trace at the broker. Raises KafkaAway.
    """
    client = admin(bootstrap)
    numbers = partitions(client, topic)
    firsts = first_offsets(client, topic, numbers)
    ends = {number: end for number, end in end_offsets(client, topic, numbers).items() if end > firsts[number]}
    # The end event too: compaction may have taken a partition's last messages, so that none comes of the offset before its end.
    more = {"group.id": "vidflow-alone", "enable.auto.commit": False, "enable.partition.eof": True}
    reader = Consumer({**_client(bootstrap, "vidflow-log"), **more})
    try:
        reader.assign([TopicPartition(topic, number, firsts[number]) for number in ends])
        while ends:
            message = reader.poll(_SILENCE_S)
            if message is None:
                raise KafkaAway(f"Kafka stopped answering while {topic} was read")
            if _is_message(message):
                yield message
            if message.error() or message.offset() + 1 >= ends.get(message.partition(), 0):
                ends.pop(message.partition(), None)
    finally:
        reader.close()


def _is_message(message: Message) -> bool:
    """Whether it is one, and no end of a partition. Raises KafkaAway for what else the client has to say."""
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
        raise KafkaAway(f"Kafka cannot be read: {error.str()}")
    return error is None


def create_topics(bootstrap: str) -> list[str]:
    """Makes the topics that are missing, with the number of replicas that the broker takes by default; returns them.

    Raises KafkaAway.
    """
    client = admin(bootstrap)
    wanted = [NewTopic(topic, count, -1, config=_topic_settings(topic)) for topic, count in PARTITIONS.items()]
    answers = _asked("making the topics", lambda: client.create_topics(wanted, request_timeout=_ANSWER_S))
    made = [topic for topic, answer in answers.items() if _made(topic, answer)]
    for topic in made:
        _until_led(client, topic)
    return made


def settle_topics(bootstrap: str) -> dict[str, str]:
    """Sets what is set otherwise than vidflow needs it, of topics that somebody else made, or an older version.

    Returns it by topic, as people read it. The number of partitions stays: more of them would part the messages of a key.
    Raises KafkaAway.
    """
    client = admin(bootstrap)
    asked = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in PARTITIONS]
    answers = _asked("the topics' settings", lambda: client.describe_configs(asked, request_timeout=_ANSWER_S))
    found = {one.name: _answer(f"the settings of {one.name}", answer) for one, answer in answers.items()}
    others = {topic: _other_settings(topic, found[topic]) for topic in PARTITIONS}
    wrong = {topic: settings for topic, settings in others.items() if settings}
    if wrong:
        _set(client, {topic: {name: _topic_settings(topic)[name] for name in wrong[topic]} for topic in wrong})
    return {
        topic: ", ".join(f"{name}={_topic_settings(topic)[name]} (was {value})" for name, value in settings.items())
        for topic, settings in wrong.items()
    }


def _other_settings(topic: str, found: Mapping[str, ConfigEntry]) -> dict[str, str | None]:
    """What is set otherwise, as it is."""
    return {name: found[name].value for name, value in _topic_settings(topic).items() if found[name].value != value}


def _set(client: AdminClient, settings: Mapping[str, Mapping[str, str]]) -> None:
    wanted = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in given.items()
            ],
        )
        for topic, given in settings.items()
    ]
    what = "changing the topics' settings"
    answers = _asked(what, lambda: client.incremental_alter_configs(wanted, request_timeout=_ANSWER_S))
    for answer in answers.values():
        _answer(what, answer)


def _topic_settings(topic: str) -> dict[str, str]:
    """Where a topic's settings are not the broker's own.

    Messages carry the broker's time: one that carries its sender's is refused where that clock is an hour ahead.
    """
    compacted = {"cleanup.policy": "compact"} if topic in COMPACTED else {}
    return {"message.timestamp.type": "LogAppendTime", **compacted}


def _until_led(client: AdminClient, topic: str) -> None:
    """Waits until each partition has a leader: a topic is made moments before it can be used; nothing tells when."""
    until = time.monotonic() + _LED_S
    while True:
        try:
            end_offsets(client, topic)
        except KafkaAway:
            if time.monotonic() > until:
                raise
            time.sleep(_LED_POLL_S)
        else:
            return


def _made(topic: str, answer: Future[Any]) -> bool:
    try:
        answer.result(2 * _ANSWER_S)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise KafkaAway(
            f"Kafka did not make the topic {topic} ({error.args[0]}); start it, or set VIDFLOW_KAFKA (or --kafka)"
        ) from error
    except TimeoutError as error:
        raise KafkaAway(f"Kafka does not answer ({topic} was to be made); start it, or set VIDFLOW_KAFKA") from error
    return True


def _describe(client: AdminClient, topic: str) -> TopicDescription:
    question = TopicCollection([topic])
    answers = _asked(f"what {topic} is", lambda: client.describe_topics(question, request_timeout=_ANSWER_S))
    return _answer(f"what {topic} is", answers[topic])


def _asked(what: str, ask: Any) -> Any:  # noqa: ANN401 - the client's own answers are untyped
    try:
        return ask()
    except KafkaException as error:
        raise KafkaAway(f"Kafka cannot be asked for {what}: {error.args[0]}") from error


def _answer(what: str, answer: Future[T]) -> T:
    try:
        return answer.result(2 * _ANSWER_S)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise TopicMissing(
                f"Kafka has no such topic ({what}); make the topics with: vidflow topics create"
            ) from error
        raise KafkaAway(f"Kafka does not answer ({what}): {error.args[0]}") from error
    except TimeoutError as error:
        raise KafkaAway(f"Kafka does not answer ({what})") from error


def _client(bootstrap: str, client_id: str) -> dict[str, Any]:
    """What a producer and a consumer have in common: whose owner polls them, or their callbacks' arguments pile up."""
    require_kafka(bootstrap)
    watch = _Watch(client_id, bootstrap)
    return {
        **_CLIENT,
        "bootstrap.servers": bootstrap,
        "client.id": client_id,
        "error_cb": watch.on_error,
        "statistics.interval.ms": 1000,  # how a return of the broker is noticed: no callback tells it
        "stats_cb": watch.on_statistics,
    }


class _Watch:
    """What one client knows of its brokers, by its callbacks, which its poll calls."""

    def __init__(self, client_id: str, bootstrap: str) -> None:
        self._client_id = client_id
        self._bootstrap = bootstrap
        self._outage = kafka_outage()
        self._down = False
        self._found_down = 0
        self._said: set[int] = set()

    def on_error(self, error: KafkaError) -> None:
        """One lost connection is no news: brokers close idle ones. Whether none is left, the next statistics tell."""
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._down = True
        elif code not in {KafkaError._TRANSPORT, KafkaError._RESOLVE} and code not in self._said:  # noqa: SLF001
            self._said.add(code)
            _log.warning("client_error", client=self._client_id, servers=self._bootstrap, error=error.str())

    def on_statistics(self, statistics: str) -> None:
        """Each second: while its brokers were last heard of as down, whether one of them is up.

        Away is what two in a row have found: a client made while the broker starts would tell of an outage that is over.
        """
        if not self._down:
            return
        brokers = msgspec.json.decode(statistics)["brokers"].values()
        if any(broker["state"] == "UP" for broker in brokers):
            self._down = False
            self._found_down = 0
            self._said.clear()
            self._outage.back()
            return
        self._found_down += 1
        if self._found_down > 1:
            self._outage.away(KafkaAway(f"no broker answers at {self._bootstrap}"))
