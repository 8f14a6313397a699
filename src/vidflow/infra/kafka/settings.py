"""Settings shared by all Kafka clients: the bootstrap servers and any librdkafka property. Imports no client library.

Values may be secrets. They appear in no representation, error or log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from vidflow.domain.errors import SetupError

SERVERS_VARIABLE: Final = "VIDFLOW_KAFKA"
FILE_VARIABLE: Final = "VIDFLOW_KAFKA_PROPERTIES"
VARIABLE_PREFIX: Final = "VIDFLOW_KAFKA_"
SERVERS: Final = "bootstrap.servers"

_FIXED: Final = frozenset({
    # Acknowledged messages are not lost, and the messages of a key stay in order.
    "acks", "request.required.acks", "enable.idempotence", "enable.gapless.guarantee", "transactional.id",
    "max.in.flight", "max.in.flight.requests.per.connection", "message.timeout.ms", "delivery.timeout.ms",
    "message.send.max.retries", "retries", "partitioner", "queuing.strategy", "delivery.report.only.error",
    # Positions are stored in PostgreSQL, and vidflow sets where a consumer starts.
    "enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store", "auto.offset.reset", "offset.store.method",
    "offset.store.path", "enable.partition.eof", "isolation.level", "group.id", "group.instance.id", "group.protocol",
    "partition.assignment.strategy",
    # A missing topic is reported and never created with the broker's defaults.
    "allow.auto.create.topics", "topic.blacklist",
    # A client notices by these that its brokers are away or back.
    "statistics.interval.ms", "enabled_events", "log.queue",
    # Another name for bootstrap.servers.
    "metadata.broker.list",
})  # fmt: skip
_TAKE_OBJECTS: Final = frozenset({
    "default.topic.config", "default_topic_conf", "interceptors", "key.deserializer", "key.serializer", "logger", "on_commit",
    "on_delivery", "opaque", "value.deserializer", "value.serializer",
})  # fmt: skip
_SECRET: Final = re.compile(r"password|secret|pem|token|jaas|credential|assertion|oauthbearer\.config|userinfo|\.key$")
_FILE: Final = re.compile(r"\.(location|keytab|paths|file)$")
# Kubernetes sets such variables in each pod for a service named vidflow-kafka.
_KUBERNETES_SERVICE: Final = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?")


class KafkaSettings(msgspec.Struct, frozen=True):
    """`bootstrap`: "host:port,host:port", empty if no Kafka is configured. `properties`: librdkafka's properties by name.

    Raises SetupError for a property that vidflow sets itself because its guarantees depend on it.
    """

    bootstrap: str = ""
    properties: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        for name in self.properties:
            _require_settable(name)

    def __repr__(self) -> str:
        return f"KafkaSettings({self.bootstrap!r}, {sorted(self.properties)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("bootstrap", self.bootstrap), ("properties", sorted(self.properties))]

    def secrets(self) -> tuple[str, ...]:
        """Return the values of secret properties, to be passed to `redact`: an error of the library may quote one."""
        return tuple(value for name, value in self.properties.items() if value and _SECRET.search(name))

    def files(self) -> tuple[str, ...]:
        """Return the files and folders that properties name: certificates and keys."""
        return tuple(value for name, value in self.properties.items() if value and _FILE.search(name))

    def variables(self) -> dict[str, str]:
        """Return environment variables from which `vidflow.settings.read_kafka_settings` reads the same settings."""
        variables = {build_variable_name(name): value for name, value in self.properties.items()}
        return {SERVERS_VARIABLE: self.bootstrap, FILE_VARIABLE: "", **variables}


def _require_settable(name: str) -> None:
    if name in _FIXED:
        hint = {"group.protocol": "Use --group-protocol.", "metadata.broker.list": f"Use {SERVERS}."}.get(
            name, "vidflow's guarantees depend on its own value."
        )
        raise SetupError(
            f"Kafka property {name} cannot be set. {hint} Remove it from the properties file, or unset {build_variable_name(name)}."
        )
    if name in _TAKE_OBJECTS or name.endswith("_cb"):
        raise SetupError(f"Kafka property {name} takes an object, not text. Remove it from the properties.")


def build_variable_name(name: str) -> str:
    """Return the environment variable of a property: VIDFLOW_KAFKA_SASL_USERNAME for sasl.username, …_LOG__LEVEL for log_level."""
    return VARIABLE_PREFIX + name.replace("_", "__").replace(".", "_").upper()


def parse_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the properties set by environment variables. Empty variables count as unset."""
    properties = {}
    for variable, value in variables.items():
        word = variable.removeprefix(VARIABLE_PREFIX)
        if (
            word == variable
            or not word
            or not value
            or variable == FILE_VARIABLE
            or _KUBERNETES_SERVICE.fullmatch(word)
        ):
            continue
        properties[_parse_property_name(word)] = value
    return properties


def _parse_property_name(word: str) -> str:
    return "_".join(part.replace("_", ".") for part in word.lower().split("__"))


def parse_properties(text: str, file: str) -> dict[str, str]:
    """Return the properties of a file: `name=value` or `name: value` lines. `#` and `!` start a comment.

    A value is the text after the first separator, stripped. There are no escapes and no continuation lines. Raises SetupError
    with the file and the line number, never with the line, which may contain a secret.
    """
    properties: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#!":
            continue
        name, separator, value = re.match(r"([^=:]*)([=:]?)(.*)", stripped, re.DOTALL).groups()  # type: ignore[union-attr]
        name, value = name.strip(), value.strip()
        if not separator or not re.fullmatch(r"[A-Za-z0-9._]+", name):
            raise SetupError(f"{file}, line {number}: not a Kafka property. Write name=value.")
        if "\0" in value:
            raise SetupError(f"{file}, line {number}: the value of {name} has a NUL character. Write plain text.")
        if name in properties:
            raise SetupError(f"{file}, line {number}: {name} is set on an earlier line. Keep one of them.")
        properties[name] = value
    return properties
