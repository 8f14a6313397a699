"""Kafka settings: where properties come from, which are refused, and that no secret is shown."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from vidflow.domain.errors import SetupError
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.settings import KafkaSettings, parse_properties, parse_variables
from vidflow.settings import build_kafka_variables, read_kafka_settings

SECRET = "hunter2-hunter2"  # noqa: S105 - a test value


def test_properties_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text(
        "# a comment\n! another\n\nbootstrap.servers = a:9092,b:9092\nsasl.username: alice\nsasl.password=p=a:s\\s #1 \n"
    )
    settings = read_kafka_settings("", file)
    assert settings == KafkaSettings("a:9092,b:9092", {"sasl.username": "alice", "sasl.password": "p=a:s\\s #1"})


def test_a_variable_overrides_the_file_and_the_option_overrides_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text("bootstrap.servers=file:1\nsasl.username=file\nclient.rack=file\n")
    monkeypatch.setenv("VIDFLOW_KAFKA_SASL_USERNAME", "variable")
    monkeypatch.setenv("VIDFLOW_KAFKA_BOOTSTRAP_SERVERS", "variable:1")
    assert read_kafka_settings("", file) == KafkaSettings(
        "variable:1", {"sasl.username": "variable", "client.rack": "file"}
    )
    assert read_kafka_settings("option:1", file).bootstrap == "option:1"


def test_variables_set_properties_but_kubernetes_service_variables_do_not() -> None:
    variables = {
        "VIDFLOW_KAFKA": "a:1", "VIDFLOW_KAFKA_PROPERTIES": "/file", "VIDFLOW_KAFKA_SASL_MECHANISM": "PLAIN",
        "VIDFLOW_KAFKA_LOG__LEVEL": "6", "VIDFLOW_KAFKA_DEBUG": "",
        "VIDFLOW_KAFKA_SERVICE_HOST": "10.0.0.1", "VIDFLOW_KAFKA_SERVICE_PORT_SASL": "9092",
        "VIDFLOW_KAFKA_PORT": "tcp://10.0.0.1:9092", "VIDFLOW_KAFKA_PORT_9092_TCP_ADDR": "10.0.0.1", "HOME": "/",
    }  # fmt: skip
    assert parse_variables(variables) == {"sasl.mechanism": "PLAIN", "log_level": "6"}


def test_settings_survive_environment_variables_and_pickling() -> None:
    settings = KafkaSettings("a:1", {"sasl.password": SECRET, "log_level": "6", "ssl.ca.pem": "-----\nA\n-----"})
    variables = settings.variables()
    assert KafkaSettings(variables["VIDFLOW_KAFKA"], parse_variables(variables)) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - as a worker gets them


def test_a_child_process_gets_only_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDFLOW_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("VIDFLOW_KAFKA_PROPERTIES", "/file")
    for name, value in build_kafka_variables(KafkaSettings("own:1", {"client.rack": "r"})).items():
        monkeypatch.setenv(name, value)
    assert read_kafka_settings("own:1", None) == KafkaSettings("own:1", {"client.rack": "r"})


@pytest.mark.parametrize(
    "name",
    [
        "acks", "request.required.acks", "enable.idempotence", "enable.auto.commit", "auto.offset.reset",
        "enable.auto.offset.store", "message.timeout.ms", "retries", "group.id", "group.protocol", "isolation.level",
        "max.in.flight", "allow.auto.create.topics", "statistics.interval.ms", "partitioner", "enable.partition.eof",
        "transactional.id", "metadata.broker.list", "error_cb", "on_commit", "default.topic.config",
    ],
)  # fmt: skip
def test_a_property_that_vidflow_relies_on_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match=rf"^Kafka property {name} .*\.$") as refused:
        KafkaSettings("a:1", {name: SECRET})
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a=1\nhunter2-hunter2\n", "line 2: not a Kafka property"),
        ("=hunter2-hunter2\n", "line 1: not a Kafka property"),
        ("sasl password=hunter2-hunter2\n", "line 1: not a Kafka property"),
        ("sasl.password=hunter2-hunter2\0\n", "line 1: the value of sasl.password has a NUL"),
        ("a=1\na=hunter2-hunter2\n", "line 2: a is set on an earlier line"),
    ],
)
def test_an_invalid_file_is_refused_by_line_without_its_contents(text: str, reason: str) -> None:
    with pytest.raises(SetupError, match=f"the-file, {reason}") as refused:
        parse_properties(text, "the-file")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "kafka.properties"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SetupError, match=r"kafka\.properties .*--kafka-properties"):
        read_kafka_settings("", file)


def test_representations_show_no_values() -> None:
    settings = KafkaSettings("a:1", {"sasl.password": SECRET, "sasl.username": SECRET})
    for shown in (repr(settings), str(settings), f"{settings!r}", repr(settings.__rich_repr__())):
        assert SECRET not in shown
        assert "a:1" in shown


@pytest.mark.parametrize(
    "properties",
    [
        {"no.such.property": SECRET},
        {"security.protocol": "hunter2"},
        {"sasl.jaas.config": SECRET},
        {"ssl.key.pem": SECRET, "security.protocol": "SSL"},
        {"session.timeout.ms": "soon"},
    ],
)
def test_properties_that_the_client_refuses_are_a_setup_error(properties: dict[str, str]) -> None:
    with pytest.raises(SetupError, match=r"The Kafka client rejected its properties: .*--kafka-properties") as refused:
        clients.create_producer(KafkaSettings("127.0.0.1:1", properties), client_id="test")
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
