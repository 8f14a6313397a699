from __future__ import annotations

import gc

import pytest
from confluent_kafka import KafkaError

from vidflow.domain.errors import SetupError, Unavailable
from vidflow.infra.kafka.clients import _Watch
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.outage import (
    KAFKA_SECURITY,
    TOPIC_MISSING,
    Outage,
    in_one_line,
    kafka_outage,
    require_kafka,
    require_postgres,
)

GONE = ConnectionError("connection refused\n\tis the server running?")
CONNECTING = '{"brokers": {"localhost:9092/bootstrap": {"state": "CONNECT"}}}'
UP = '{"brokers": {"localhost:9092/1": {"state": "UP"}}}'


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "vidflow.outage")
    return caplog


def test_a_server_that_several_parts_miss_is_said_to_be_away_once(said: pytest.LogCaptureFixture) -> None:
    parts = [kafka_outage() for _ in range(3)]
    for part in [*parts, *parts]:
        part.away(GONE)
    assert said.messages == ["away"]


def test_it_is_said_to_be_back_once_all_have_it_again(said: pytest.LogCaptureFixture) -> None:
    one, other = kafka_outage(), kafka_outage()
    one.away(GONE)
    other.away(GONE)
    one.back()
    assert said.messages == ["away"]
    other.back()
    other.back()
    assert said.messages == ["away", "back"]


def test_a_part_that_is_gone_keeps_nobody_from_saying_that_it_is_back(said: pytest.LogCaptureFixture) -> None:
    kafka_outage().away(GONE)
    gc.collect()
    part = kafka_outage()
    part.away(GONE)
    part.back()
    assert said.messages == ["away", "away", "back"]


def test_servers_are_told_apart(said: pytest.LogCaptureFixture) -> None:
    one, other = Outage("PostgreSQL", "start it"), Outage("Kafka", "start it")
    one.away(GONE)
    other.away(GONE)
    assert said.messages == ["away", "away"]


def test_a_topic_that_a_returned_broker_has_not_got_is_said_too(said: pytest.LogCaptureFixture) -> None:
    part = kafka_outage()
    part.away(GONE)
    part.away(Unavailable("no such topic", code=TOPIC_MISSING))
    assert said.messages == ["away", "topic_missing"]


def test_a_server_that_was_never_missed_is_not_said_to_be_back(said: pytest.LogCaptureFixture) -> None:
    kafka_outage().back()
    assert said.messages == []


def test_an_error_of_several_lines_is_said_in_one() -> None:
    assert in_one_line(GONE) == "connection refused is the server running?"


@pytest.mark.parametrize("url", ["", "host=db password=s3cret", "mysql://u:s3cret@db/x", "s3cret"])
def test_what_is_no_url_of_a_database_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(SetupError, match="VIDFLOW_DATABASE_URL") as refusal:
        require_postgres(url)
    assert "s3cret" not in str(refusal.value)


def test_no_kafka_is_refused_with_what_to_set() -> None:
    with pytest.raises(SetupError, match=r"VIDFLOW_KAFKA.*vidflow dev"):
        require_kafka(KafkaSettings())


def test_brokers_that_only_one_look_of_a_client_finds_down_are_not_said_to_be_away(
    said: pytest.LogCaptureFixture,
) -> None:
    watch = _Watch("a client", KafkaSettings("localhost:9092"))
    watch.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    watch.on_statistics(CONNECTING)
    watch.on_statistics(UP)
    assert said.messages == []
    watch.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    watch.on_statistics(CONNECTING)
    assert said.messages == []
    watch.on_statistics(CONNECTING)
    watch.on_statistics(UP)
    assert said.messages == ["away", "back"]


def test_a_login_that_is_refused_is_said_as_one_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    watch = _Watch("a client", KafkaSettings("localhost:9092", {"sasl.password": "hunter2"}))
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
