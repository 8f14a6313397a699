"""Errors of the Kafka clients, and the mapping of librdkafka's errors to them."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.domain.redaction import redact
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.outage import KAFKA_SECURITY, TOPIC_MISSING


class KafkaAway(Unavailable):
    """The brokers do not answer, or reject a request."""

    default_code = "kafka_away"


class TopicMissing(KafkaAway):
    """The broker answers, but the topic does not exist."""

    default_code = TOPIC_MISSING


class SecurityFailed(KafkaAway, SetupError):
    """Authentication, TLS or authorization failed: the settings of the client or of the broker must change.

    A role retries, as with a broker that is away, because the broker's settings may change. A command exits with code 3.
    """

    default_code = KAFKA_SECURITY


class ClientBroken(Unavailable):
    """A client failed permanently. The process must be restarted."""

    default_code = "kafka_client_broken"


_FORBIDDEN: Final = frozenset({
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
})  # fmt: skip
_NOT_AUTHENTICATED: Final = frozenset({
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - the only name for this code
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
})  # fmt: skip
# Texts of librdkafka's errors if the broker closed the connection because client and broker disagree on TLS or SASL.
_PROTOCOL_MISMATCHES: Final = (
    "security.protocol is correctly configured",
    "connecting to a SSL listener",
    "connecting to a PLAINTEXT",
)


def security_failure(error: KafkaError, settings: KafkaSettings) -> SecurityFailed | None:
    """Return the error as a SecurityFailed, None if it is not about authentication, TLS or authorization."""
    reason, servers = redact(error.str(), settings.secrets()), settings.bootstrap
    code = error.code()
    if code in _FORBIDDEN:
        return SecurityFailed(f"Permission denied by Kafka at {servers}: {reason}. Grant this user the missing ACL.")
    if code in _NOT_AUTHENTICATED:
        return SecurityFailed(
            f"Authentication failed at Kafka {servers}: {reason}. Check sasl.mechanism, sasl.username and sasl.password "
            "(--kafka-properties, or VIDFLOW_KAFKA_SASL_…)."
        )
    if code == KafkaError._SSL or "SSL routines" in reason:  # noqa: SLF001 - a TLS alert has another code
        return SecurityFailed(
            f"TLS failed with Kafka at {servers}: {reason}. Check security.protocol and ssl.ca.location "
            "(--kafka-properties, or VIDFLOW_KAFKA_SECURITY_PROTOCOL and VIDFLOW_KAFKA_SSL_…)."
        )
    if any(mismatch in reason for mismatch in _PROTOCOL_MISMATCHES):
        return SecurityFailed(
            f"Kafka at {servers} closed the connection: {reason}. Check security.protocol "
            "(--kafka-properties, or VIDFLOW_KAFKA_SECURITY_PROTOCOL)."
        )
    return None
