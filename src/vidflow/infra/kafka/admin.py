"""Questions to Kafka: the client that asks them, and what an answer that does not come means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from vidflow.infra.kafka.clients import KAFKA_REQUEST_TIMEOUT_S, create_client
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed, TopicMissing, security_failure
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.outage import kafka_outage, require_kafka

T = TypeVar("T")
Key = TypeVar("Key")
P = ParamSpec("P")

_SHORT_S: Final = 0.5
_QUIET_S: Final = 3.0
"""How long a broker may take without a word: one that is started beside the roles is there by then."""
_RETRY_S: Final = 0.02


def create_admin(settings: KafkaSettings) -> Admin:
    """A client for questions. Keep a reference to it while an answer is awaited. Raises SetupError without brokers."""
    require_kafka(settings)
    return Admin(settings)


class Admin(AdminClient):  # type: ignore[misc]  # the library has no types
    """A client for questions that knows why a broker refuses it."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._refusals: list[KafkaError] = []
        own = {
            "client.id": "vidflow-admin",
            "socket.timeout.ms": int(KAFKA_REQUEST_TIMEOUT_S * 1000),
            "error_cb": self._refusals.append,  # no bound method: the client would hold itself for ever
        }
        create_client(super().__init__, settings, own)

    def request_each(self, subject: str, request: Callable[[], Mapping[Key, Future[T]]]) -> dict[Key, T | KafkaAway]:
        """Ask, and return each answer or why there is none. Raises KafkaAway if the question cannot be asked."""
        try:
            asked = request()
        except KafkaException as error:
            raise self.failure(subject, error) from error
        return {key: self._answer(subject, answer) for key, answer in asked.items()}

    def request_all(self, subject: str, request: Callable[[], Mapping[Key, Future[T]]]) -> dict[Key, T]:
        """Ask, and return all answers. Raises the first KafkaAway among them."""
        found = self.request_each(subject, request)
        for answer in found.values():
            if isinstance(answer, KafkaAway):
                raise answer
        return found  # type: ignore[return-value]

    def _answer(self, what: str, answer: Future[Any]) -> Any:  # noqa: ANN401 - the answer, or why there is none
        try:
            found = answer.result(2 * KAFKA_REQUEST_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            failure = self.failure(what, error)
            failure.__cause__ = error
            return failure
        self._refusals.clear()
        return found

    def failure(self, subject: str, error: KafkaException | TimeoutError) -> KafkaAway:
        """Return what an error means: the topic is missing, the broker refused this client, or it does not answer."""
        self.poll(0)  # it calls error_cb
        reasons = [*(error.args[:1] if isinstance(error, KafkaException) else ()), *reversed(self._refusals)]
        if reasons and reasons[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return TopicMissing(f"Kafka has no such topic ({subject}); make the topics with: vidflow topics create")
        for reason in reasons:
            if (failed := security_failure(reason, self.settings)) is not None:
                return failed
        said = f": {self.settings.without_secrets(reasons[0].str())}" if reasons else ""
        codes = {reason.code() for reason in self._refusals}
        if KafkaError._ALL_BROKERS_DOWN in codes and not codes & {KafkaError._TRANSPORT, KafkaError._RESOLVE}:  # noqa: SLF001
            said += "; something is there and hangs up, as a broker does that requires TLS or a login: check security.protocol"
        return KafkaAway(f"Kafka does not answer at {self.settings.bootstrap} ({subject}){said}")


def wait_for_broker(settings: KafkaSettings, stop: Stop) -> bool:
    """Returns once a broker answers; False where a stop is requested before. Says once that it waits, if it takes long.

    A question that waits for its broker cannot be broken off: those asked here are short ones, so that a stop is soon seen.
    """
    kafka, outage = create_admin(settings), kafka_outage()
    since_s = time.monotonic()
    while not stop.requested:
        try:
            kafka.list_topics(timeout=_SHORT_S)
        except KafkaException as error:
            failure = kafka.failure("its brokers", error)
            if isinstance(failure, SecurityFailed) or time.monotonic() - since_s > _QUIET_S:
                outage.begin(failure)
            stop.wait(_RETRY_S)
        else:
            outage.end()
            return True
    return False


class ReplacingAdmin:
    """A client for questions that go on for long: made anew where it got no answer.

    Behind a broker that stood still for half a minute a client may look for its controller for minutes more, while the broker answers
    everybody else (seen with librdkafka 2.16: "Failed while waiting for controller", each time again).
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client = create_admin(settings)

    def call(self, request: Callable[Concatenate[Admin, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer to one of the questions below. Raises KafkaAway."""
        try:
            return request(self._client, *args, **kwargs)
        except TopicMissing:
            raise
        except KafkaAway:
            self._client = create_admin(self._settings)
            raise
