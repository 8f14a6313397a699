from __future__ import annotations

import gc

import pytest
from confluent_kafka import KafkaError

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.kafka.clients import _BrokerMonitor
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry import outage
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


@pytest.fixture(autouse=True)
def _no_earlier_outage() -> None:
    gc.collect()
    outage._away.clear()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "vidflow.outage")
    return caplog


def test_an_outage_seen_by_several_parts_is_logged_once(log: pytest.LogCaptureFixture) -> None:
    parts = [kafka_outage() for _ in range(3)]
    for part in [*parts, *parts]:
        part.begin(CONNECTION_REFUSED)
    assert log.messages == ["away"]


def test_the_end_of_an_outage_is_logged_once_all_parts_are_back(log: pytest.LogCaptureFixture) -> None:
    first, second = kafka_outage(), kafka_outage()
    first.begin(CONNECTION_REFUSED)
    second.begin(CONNECTION_REFUSED)
    first.end()
    assert log.messages == ["away"]
    second.end()
    second.end()
    assert log.messages == ["away", "back"]


def test_a_deleted_part_does_not_delay_the_end_of_an_outage(log: pytest.LogCaptureFixture) -> None:
    kafka_outage().begin(CONNECTION_REFUSED)
    gc.collect()
    part = kafka_outage()
    part.begin(CONNECTION_REFUSED)
    part.end()
    assert log.messages == ["away", "away", "back"]


def test_the_end_of_an_outage_is_logged_by_another_part_if_its_own_was_deleted(log: pytest.LogCaptureFixture) -> None:
    kafka_outage().begin(CONNECTION_REFUSED)
    gc.collect()
    part = kafka_outage()
    part.end()
    part.end()
    assert log.messages == ["away", "back"]


def test_a_client_that_replaces_one_in_an_outage_logs_its_end(log: pytest.LogCaptureFixture) -> None:
    """The leader replaces its producer in an outage, and the next one may find the brokers up at once."""
    replaced = _BrokerMonitor("a client", KafkaSettings("localhost:9092"))
    replaced.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    replaced.on_statistics(CONNECTING)
    replaced.on_statistics(CONNECTING)
    del replaced
    gc.collect()
    monitor = _BrokerMonitor("a client", KafkaSettings("localhost:9092"))
    for _ in range(3):
        monitor.on_statistics(CONNECTING)
    assert log.messages == ["away"]
    monitor.on_statistics(UP)
    assert log.messages == ["away", "back"]


def test_outages_of_different_servers_are_separate(log: pytest.LogCaptureFixture) -> None:
    for part in (Outage("PostgreSQL", "start it"), Outage("Kafka", "start it")):
        part.begin(CONNECTION_REFUSED)
    assert log.messages == ["away", "away"]


def test_a_topic_missing_on_a_returned_broker_is_logged(log: pytest.LogCaptureFixture) -> None:
    part = kafka_outage()
    part.begin(CONNECTION_REFUSED)
    part.begin(Unavailable("no such topic", code=TOPIC_MISSING))
    assert log.messages == ["away", "topic_missing"]


def test_without_an_outage_no_end_is_logged(log: pytest.LogCaptureFixture) -> None:
    kafka_outage().end()
    assert log.messages == []


def test_an_error_of_several_lines_is_formatted_as_one() -> None:
    assert format_error(CONNECTION_REFUSED) == "connection refused is the server running?"


@pytest.mark.parametrize("url", ["", "host=db password=s3cret", "mysql://u:s3cret@db/x", "s3cret"])
def test_an_invalid_database_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SetupError, match="VIDFLOW_DATABASE_URL") as refusal:
        require_postgres(url)
    assert "s3cret" not in str(refusal.value)


def test_missing_kafka_settings_are_refused_with_the_variable_to_set() -> None:
    with pytest.raises(SetupError, match=r"VIDFLOW_KAFKA.*vidflow dev"):
        require_kafka(KafkaSettings())


def test_brokers_that_are_down_in_a_single_check_are_no_outage(
    log: pytest.LogCaptureFixture,
) -> None:
    monitor = _BrokerMonitor("a client", KafkaSettings("localhost:9092"))
    monitor.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    monitor.on_statistics(CONNECTING)
    monitor.on_statistics(UP)
    assert log.messages == []
    monitor.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    monitor.on_statistics(CONNECTING)
    assert log.messages == []
    monitor.on_statistics(CONNECTING)
    monitor.on_statistics(UP)
    assert log.messages == ["away", "back"]


def test_a_refused_login_is_logged_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    monitor = _BrokerMonitor("a client", KafkaSettings("localhost:9092", {"sasl.password": "hunter2"}))
    with caplog.at_level("INFO", "vidflow"):
        monitor.on_error(KafkaError(KafkaError._AUTHENTICATION, "invalid credentials hunter2"))
        for _ in range(3):
            monitor.on_statistics(CONNECTING)
        monitor.on_statistics(CONNECTING.replace("CONNECT", "UP"))
    assert [record.getMessage() for record in caplog.records] == [KAFKA_SECURITY, "back"]
    error = caplog.records[0].vidflow_fields["error"]  # type: ignore[attr-defined]
    assert error.startswith(
        "Authentication failed at Kafka localhost:9092: invalid credentials ***. Check sasl.mechanism"
    )
