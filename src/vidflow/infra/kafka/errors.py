"""What Kafka's clients raise, and what the client library's errors mean to vidflow."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.outage import KAFKA_SECURITY, TOPIC_MISSING


class KafkaAway(Unavailable):
    """The broker does not answer."""

    default_code = "kafka_away"


class TopicMissing(KafkaAway):
    """The broker answers, and has not got the topic."""

    default_code = TOPIC_MISSING


class SecurityFailed(KafkaAway, SetupError):
    """The broker refuses this client, or TLS cannot be agreed on: the settings of one of them must change.

    A role waits as for a broker that is away, since credentials may be changed on the broker. A command exits with 3.
    """

    default_code = KAFKA_SECURITY


class ClientBroken(Unavailable):
    """A client has met an error that it cannot mend: only a new one, in a new process, can go on."""

    default_code = "kafka_client_broken"


_FORBIDDEN: Final = frozenset({
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
})  # fmt: skip
_NOT_AUTHENTICATED: Final = frozenset({
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - the client's own name for it
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
})  # fmt: skip
# How the client words a connection that the broker closed because the two do not agree on TLS or SASL.
_MISMATCHES: Final = (
    "security.protocol is correctly configured",
    "connecting to a SSL listener",
    "connecting to a PLAINTEXT",
)


def security_failure(error: KafkaError, settings: KafkaSettings) -> SecurityFailed | None:
    """Return the error as a failure of authentication, TLS or authorization; None where it is none of them."""
    said, servers = settings.without_secrets(error.str()), settings.bootstrap
    code = error.code()
    if code in _FORBIDDEN:
        return SecurityFailed(f"Kafka at {servers} does not permit it: {said}. Give this user the ACL that it lacks.")
    if code in _NOT_AUTHENTICATED:
        return SecurityFailed(
            f"Authentication failed at Kafka {servers}: {said}. Check sasl.mechanism, sasl.username and sasl.password "
            "(--kafka-properties, or VIDFLOW_KAFKA_SASL_…)."
        )
    if code == KafkaError._SSL or "SSL routines" in said:  # noqa: SLF001 - as an alert it comes with another code
        return SecurityFailed(
            f"TLS failed with Kafka at {servers}: {said}. Check security.protocol and ssl.ca.location "
            "(--kafka-properties, or VIDFLOW_KAFKA_SECURITY_PROTOCOL and VIDFLOW_KAFKA_SSL_…)."
        )
    if any(mismatch in said for mismatch in _MISMATCHES):
        return SecurityFailed(
            f"Kafka at {servers} closed the connection: {said}. Check security.protocol "
            "(--kafka-properties, or VIDFLOW_KAFKA_SECURITY_PROTOCOL)."
        )
    return None
