"""The Kafka admin client, and the errors that its requests raise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from vidflow.domain.redaction import redact
from vidflow.infra.kafka.clients import KAFKA_REQUEST_TIMEOUT_S, create_client
from vidflow.infra.kafka.errors import KafkaAway, SecurityFailed, TopicMissing, security_failure
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.outage import kafka_outage, require_kafka

T = TypeVar("T")
Key = TypeVar("Key")
P = ParamSpec("P")

_PROBE_TIMEOUT_S: Final = 0.5
"""Short, because a request that waits for a broker cannot be interrupted by a stop."""
_LOG_OUTAGE_AFTER_S: Final = 3.0
"""Wait this long before an outage is logged. A broker that starts together with the roles answers within that time."""
_PROBE_RETRY_S: Final = 0.02


def create_admin(settings: KafkaSettings) -> Admin:
    """Return a new admin client. Keep a reference to it until the answers have arrived.

    Raises SetupError if no brokers are configured.
    """
    require_kafka(settings)
    return Admin(settings)


class Admin(AdminClient):  # type: ignore[misc]  # the library has no types
    """An admin client that remembers the errors of its connections, to explain why a request failed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._connection_errors: list[KafkaError] = []
        properties = {
            "client.id": "vidflow-admin",
            "socket.timeout.ms": int(KAFKA_REQUEST_TIMEOUT_S * 1000),
            # Not a method of this object: the client would keep itself alive.
            "error_cb": self._connection_errors.append,
        }
        create_client(super().__init__, settings, properties)

    def request_each(self, subject: str, request: Callable[[], Mapping[Key, Future[T]]]) -> dict[Key, T | KafkaAway]:
        """Send a request and return the answer or the error for each key. `subject` names the request in errors.

        Raises KafkaAway if the request cannot be sent.
        """
        try:
            futures = request()
        except KafkaException as error:
            raise self.failure(subject, error) from error
        return {key: self._wait_for_answer(subject, future) for key, future in futures.items()}

    def request_all(self, subject: str, request: Callable[[], Mapping[Key, Future[T]]]) -> dict[Key, T]:
        """Send a request and return the answers. Raises the first KafkaAway among them."""
        answers = self.request_each(subject, request)
        for answer in answers.values():
            if isinstance(answer, KafkaAway):
                raise answer
        return answers  # type: ignore[return-value]

    def _wait_for_answer(self, subject: str, future: Future[Any]) -> Any:  # noqa: ANN401 - the answer or a KafkaAway
        try:
            answer = future.result(2 * KAFKA_REQUEST_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            failure = self.failure(subject, error)
            failure.__cause__ = error
            return failure
        self._connection_errors.clear()
        return answer

    def failure(self, subject: str, error: KafkaException | TimeoutError) -> KafkaAway:
        """Return the KafkaAway for an error: TopicMissing, SecurityFailed, or KafkaAway itself if no broker answers."""
        self.poll(0)  # calls error_cb
        reasons = [*(error.args[:1] if isinstance(error, KafkaException) else ()), *reversed(self._connection_errors)]
        if reasons and reasons[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return TopicMissing(f"Kafka topic not found ({subject}). Create the topics with: vidflow topics create")
        for reason in reasons:
            if (failure := security_failure(reason, self.settings)) is not None:
                return failure
        detail = f": {redact(reasons[0].str(), self.settings.secrets())}" if reasons else ""
        codes = {reason.code() for reason in self._connection_errors}
        if KafkaError._ALL_BROKERS_DOWN in codes and not codes & {KafkaError._TRANSPORT, KafkaError._RESOLVE}:  # noqa: SLF001
            detail += (
                ". The server closed the connection without an error, as a broker that requires TLS or a login does. "
                "Check security.protocol"
            )
        return KafkaAway(f"Kafka does not answer at {self.settings.bootstrap} ({subject}){detail}")


def retry_while_away(
    request: Callable[[], T],
    stop: Stop,
    *,
    is_needed: Callable[[], bool] = lambda: True,
    retry_s: float = 0.2,
    log_after_s: float = 0.0,
) -> T | None:
    """Call `request` until it raises no KafkaAway. Return its answer, or None if it is not needed or a stop is requested first.

    An outage is logged once, after `log_after_s`: the brokers may be starting together with this process.
    """
    outage, began_s = kafka_outage(), time.monotonic()
    while is_needed() and not stop.requested:
        try:
            answer = request()
        except KafkaAway as error:
            if isinstance(error, SecurityFailed) or time.monotonic() - began_s >= log_after_s:
                outage.begin(error)
            stop.wait(retry_s)
        else:
            outage.end()
            return answer
    return None


def wait_for_broker(settings: KafkaSettings, stop: Stop) -> None:
    """Wait until a broker answers or a stop is requested."""
    client = create_admin(settings)

    def probe() -> None:
        try:
            client.list_topics(timeout=_PROBE_TIMEOUT_S)
        except KafkaException as error:
            raise client.failure("list of topics", error) from error

    retry_while_away(probe, stop, retry_s=_PROBE_RETRY_S, log_after_s=_LOG_OUTAGE_AFTER_S)


class ReplacingAdmin:
    """An admin client for long use, replaced by a new one after a request without an answer.

    After a broker was frozen for half a minute, a client may search for its controller for minutes while the broker answers
    other clients (seen with librdkafka 2.16: "Failed while waiting for controller" for each request).
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client = create_admin(settings)

    def call(self, request: Callable[Concatenate[Admin, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `request` returns, called with the client and the arguments. Raises KafkaAway."""
        try:
            return request(self._client, *args, **kwargs)
        except TopicMissing:
            raise
        except KafkaAway:
            self._client = create_admin(self._settings)
            raise
