from __future__ import annotations

import gc

import pytest
from confluent_kafka import KafkaError

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.kafka.clients import _BrokerMonitor
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.outage import (
    KAFKA_SECURITY,
    TOPIC_MISSING,
    Outage,
    format_error,
    kafka_outage,
    require_kafka,
    require_postgres,
)

CONNECTION_REFUSED = ConnectionError("connection refused\n\tis the server running?")
CONNECTING = '{"brokers": {"localhost:9092/bootstrap": {"state": "CONNECT"}}}'
UP = '{"brokers": {"localhost:9092/1": {"state": "UP"}}}'


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "vidflow.outage")
    return caplog


def test_a_server_that_several_parts_miss_is_said_to_be_away_once(log: pytest.LogCaptureFixture) -> None:
    parts = [kafka_outage() for _ in range(3)]
    for part in [*parts, *parts]:
        part.begin(CONNECTION_REFUSED)
    assert log.messages == ["away"]


def test_it_is_said_to_be_back_once_all_have_it_again(log: pytest.LogCaptureFixture) -> None:
    one, other = kafka_outage(), kafka_outage()
    one.begin(CONNECTION_REFUSED)
    other.begin(CONNECTION_REFUSED)
    one.end()
    assert log.messages == ["away"]
    other.end()
    other.end()
    assert log.messages == ["away", "back"]


def test_a_part_that_is_gone_keeps_nobody_from_saying_that_it_is_back(log: pytest.LogCaptureFixture) -> None:
    kafka_outage().begin(CONNECTION_REFUSED)
    gc.collect()
    part = kafka_outage()
    part.begin(CONNECTION_REFUSED)
    part.end()
    assert log.messages == ["away", "away", "back"]


def test_servers_are_told_apart(log: pytest.LogCaptureFixture) -> None:
    one, other = Outage("PostgreSQL", "start it"), Outage("Kafka", "start it")
    one.begin(CONNECTION_REFUSED)
    other.begin(CONNECTION_REFUSED)
    assert log.messages == ["away", "away"]


def test_a_topic_that_a_returned_broker_has_not_got_is_said_too(log: pytest.LogCaptureFixture) -> None:
    part = kafka_outage()
    part.begin(CONNECTION_REFUSED)
    part.begin(Unavailable("no such topic", code=TOPIC_MISSING))
    assert log.messages == ["away", "topic_missing"]


def test_a_server_that_was_never_missed_is_not_said_to_be_back(log: pytest.LogCaptureFixture) -> None:
    kafka_outage().end()
    assert log.messages == []


def test_an_error_of_several_lines_is_said_in_one() -> None:
    assert format_error(CONNECTION_REFUSED) == "connection refused is the server running?"


@pytest.mark.parametrize("url", ["", "host=db password=s3cret", "mysql://u:s3cret@db/x", "s3cret"])
def test_what_is_no_url_of_a_database_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(SetupError, match="VIDFLOW_DATABASE_URL") as refusal:
        require_postgres(url)
    assert "s3cret" not in str(refusal.value)


def test_no_kafka_is_refused_with_what_to_set() -> None:
    with pytest.raises(SetupError, match=r"VIDFLOW_KAFKA.*vidflow dev"):
        require_kafka(KafkaSettings())


def test_brokers_that_only_one_look_of_a_client_finds_down_are_not_said_to_be_away(
    log: pytest.LogCaptureFixture,
) -> None:
    watch = _BrokerMonitor("a client", KafkaSettings("localhost:9092"))
    watch.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    watch.on_statistics(CONNECTING)
    watch.on_statistics(UP)
    assert log.messages == []
    watch.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    watch.on_statistics(CONNECTING)
    assert log.messages == []
    watch.on_statistics(CONNECTING)
    watch.on_statistics(UP)
    assert log.messages == ["away", "back"]


def test_a_login_that_is_refused_is_said_as_one_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    watch = _BrokerMonitor("a client", KafkaSettings("localhost:9092", {"sasl.password": "hunter2"}))
    with caplog.at_level("INFO", "vidflow"):
        watch.on_error(KafkaError(KafkaError._AUTHENTICATION, "invalid credentials hunter2"))
        for _ in range(3):
            watch.on_statistics(CONNECTING)
        watch.on_statistics(CONNECTING.replace("CONNECT", "UP"))
    assert [record.getMessage() for record in caplog.records] == [KAFKA_SECURITY, "back"]
    error = caplog.records[0].vidflow_fields["error"]  # type: ignore[attr-defined]
    assert error.startswith(
        "Authentication failed at Kafka localhost:9092: invalid credentials ***. Check sasl.mechanism"
    )
