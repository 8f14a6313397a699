"""Kafka away for long: the api goes on accepting, the outbox grows and is told of, and all of it drains afterwards."""

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
from tests.integration.api_server import init, ready, wait_until
from tests.integration.delivery import log_of, running, say, unpublished

from vidflow.domain.messages import INIT_SCENARIO
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.kafka import topics
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.process.stopping import Stop
from vidflow.roles import relay
from vidflow.settings import ApiOptions, RelayOptions, environment

pytestmark = [pytest.mark.long, pytest.mark.fault]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    """A broker of the test's own, to be stopped."""
    broker = EmbeddedKafka(tmp_path, say=print, stop=Stop(), cache=environment("VIDFLOW_CACHE_DIR")).start()
    try:
        topics.create_topics(broker.settings)
        yield broker
    finally:
        broker.stop()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [300, 5000])
def test_invariant_1_what_was_accepted_while_kafka_was_away_is_published_in_the_order_of_its_key_once_it_is_back(
    tables: Connection, database_url: str, broker: EmbeddedKafka, count: int
) -> None:
    with (
        ready(ApiOptions(database_url=database_url)) as client,
        running(relay.run, RelayOptions(database_url=database_url, kafka=broker.settings)),
    ):
        before = init(client)["scenario_uuid"]
        wait_until(lambda: unpublished(tables) == 0, "the relay publishes")
        kill(broker)
        uuids = [*accepted(client, count - 1), before]
        stop_some(client, uuids)
        an_hour_passes(tables)
        assert_told(client, waiting=count - 1 + len(uuids[::3]))
        broker.start()
        began_s = time.monotonic()
        wait_until(lambda: unpublished(tables) == 0, "all is published", limit_s=90)
        say(f"{count} scenarios' messages published {time.monotonic() - began_s:.1f} s after Kafka's return")
        assert lag(client)["waiting"] == 0
    published = kinds_of_each_key(broker.settings)
    stopped = set(uuids[::3])
    assert published == {uuid: ["start", "shutdown"] if uuid in stopped else ["start"] for uuid in uuids}


def kill(broker: EmbeddedKafka) -> None:
    assert broker.process is not None
    broker.process.kill()
    broker.process.wait()


def accepted(client: httpx.Client, count: int) -> list[str]:
    """So many scenarios, each answered with 201."""
    with ThreadPoolExecutor(8) as clients:
        return list(clients.map(lambda _: str(init(client)["scenario_uuid"]), range(count)))


def stop_some(client: httpx.Client, uuids: list[str]) -> None:
    """A second message for every third key."""
    for uuid in uuids[::3]:
        assert client.post(f"/scenario/{uuid}/shutdown").status_code == 200


def an_hour_passes(tables: Connection) -> None:
    tables.execute("UPDATE outbox SET created_at = created_at - interval '1 hour' WHERE published_at IS NULL")


def lag(client: httpx.Client) -> dict[str, Any]:
    """The relay's lag, of a vidflow that lacks other parts here."""
    told: dict[str, Any] = client.get("/health/system").json()["relay_lag"]
    return told


def assert_told(client: httpx.Client, waiting: int) -> None:
    """Operators see how many messages wait and for how long, and that a relay which holds its lease does not get on."""
    problem = client.get("/health/system").json()
    assert "relay" in problem["missing"]
    assert problem["relay_lag"]["waiting"] == waiting
    assert problem["relay_lag"]["oldest_s"] >= 3600
    assert "waits for Kafka" in problem["detail"]
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["vidflow_outbox_waiting"] == waiting
    assert samples["vidflow_outbox_oldest_seconds"] >= 3600


def kinds_of_each_key(settings: KafkaSettings) -> dict[str, list[str]]:
    """What was published of each key, in the order in which a reader that believes the last of its kind has it."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for message in log_of(settings, INIT_SCENARIO):
        kind = msgspec.json.decode(message.value())["type"]
        of_key = kinds[message.key().decode()]
        kinds[message.key().decode()] = [*(one for one in of_key if one != kind), kind]
    return dict(kinds)
