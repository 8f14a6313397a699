"""A long outage of Kafka: the api accepts requests, the outbox grows and is reported, and drains afterwards."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.api_server import create_scenario, ready_api, wait_until
from tests.integration.delivery import count_unpublished, print_figure, read_topic, running_role

from vidflow.domain.topics import INIT_SCENARIO
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import topics
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.process.stopping import Stop
from vidflow.roles import relay
from vidflow.settings import ApiOptions, RelayOptions, read_environment_variable

pytestmark = [pytest.mark.long, pytest.mark.fault]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    """A broker for one test, which kills it."""
    broker = EmbeddedKafka(
        tmp_path, notify=print, stop=Stop(), cache=read_environment_variable("VIDFLOW_CACHE_DIR")
    ).start()
    try:
        topics.create_topics(broker.settings)
        yield broker
    finally:
        broker.stop()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [300, 5000])
def test_invariant_1_messages_accepted_while_kafka_is_away_are_published_in_order_when_it_is_back(
    connection: Connection, database_url: str, broker: EmbeddedKafka, count: int
) -> None:
    with (
        ready_api(ApiOptions(database_url=database_url)) as client,
        running_role(relay.run, RelayOptions(database_url=database_url, kafka=broker.settings)),
    ):
        first = create_scenario(client)["scenario_uuid"]
        wait_until(lambda: count_unpublished(connection) == 0, "the first message is published")
        kill(broker)
        uuids = [*create_scenarios(client, count - 1), first]
        stop_every_third(client, uuids)
        age_messages_by_an_hour(connection)
        assert_outage_is_reported(client, waiting=count - 1 + len(uuids[::3]))
        broker.start()
        began_s = time.monotonic()
        wait_until(lambda: count_unpublished(connection) == 0, "all messages are published", limit_s=90)
        print_figure(f"messages of {count} scenarios, published within {time.monotonic() - began_s:.1f} s")
        assert read_relay_lag(client)["waiting"] == 0
    published = read_kinds_by_key(broker.settings)
    stopped = set(uuids[::3])
    assert published == {uuid: ["start", "shutdown"] if uuid in stopped else ["start"] for uuid in uuids}


def kill(broker: EmbeddedKafka) -> None:
    assert broker.process is not None
    broker.process.kill()
    broker.process.wait()


def create_scenarios(client: httpx.Client, count: int) -> list[str]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda _: str(create_scenario(client)["scenario_uuid"]), range(count)))


def stop_every_third(client: httpx.Client, uuids: list[str]) -> None:
    """Add a second message of every third key."""
    for uuid in uuids[::3]:
        assert client.post(f"/scenario/{uuid}/shutdown").status_code == 200


def age_messages_by_an_hour(connection: Connection) -> None:
    connection.execute("UPDATE outbox SET created_at = created_at - interval '1 hour'")


def read_relay_lag(client: httpx.Client) -> dict[str, Any]:
    lag: dict[str, Any] = client.get("/health/system").json()["relay_lag"]
    return lag


def assert_outage_is_reported(client: httpx.Client, waiting: int) -> None:
    """Check that health and metrics show how many messages wait and for how long, and that the relay is stuck."""
    problem = client.get("/health/system").json()
    assert "relay" in problem["missing"]
    assert problem["relay_lag"]["waiting"] == waiting
    assert problem["relay_lag"]["oldest_s"] >= 3600
    assert "has waited for Kafka" in problem["detail"]
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["vidflow_outbox_waiting"] == waiting
    assert samples["vidflow_outbox_oldest_seconds"] >= 3600


def read_kinds_by_key(settings: KafkaSettings) -> dict[str, list[str]]:
    """Return the kinds of each key's messages, in the order of the last message of each kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for message in read_topic(settings, INIT_SCENARIO):
        kind, key = msgspec.json.decode(message.value())["type"], message.key().decode()
        kinds[key] = [*(earlier for earlier in kinds[key] if earlier != kind), kind]
    return dict(kinds)
