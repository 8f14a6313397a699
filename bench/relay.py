"""The relay's messages a second, from a full outbox to all marked, and how soon a message is in Kafka at an even pace.

    python bench/relay.py [--rows 50000] [--bytes 400] [--runs 5] [--rate 500] [--seconds 10]

The baselines are a bare producer with the same payloads, and one that sends at the same pace; a consumer tells when a message is
there, for both.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from confluent_kafka import Producer

from servers import report, servers
from vidflow.infra import kafka, outbox
from vidflow.infra.postgres import Connection, connect
from vidflow.infra.stopping import Stop
from vidflow.roles.relay import run
from vidflow.settings import RelayOptions

TOPIC = "to_deploy.default"
KEYS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--bytes", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=500.0, help="messages a second, one transaction each")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    rows = [message(number, given.bytes) for number in range(given.rows)]
    ours, theirs = [], []
    with servers() as (url, bootstrap), connect(url, name="bench") as tables:
        for _ in range(given.runs):
            theirs.append(produced(bootstrap, rows))
            ours.append(relayed(url, bootstrap, tables, rows))
        report("relay", ours, "bare producer", theirs)
        pace = Pace(bootstrap, round(given.rate * given.seconds), given.rate)
        show("from commit to Kafka", pace.measured(relayed_one_by_one(url, tables, bootstrap, given.bytes)))
        show("bare producer", pace.measured(sent_one_by_one(bootstrap, given.bytes)))


class Pace:
    """Sends numbered messages evenly, and waits for each to come out of the topic."""

    def __init__(self, bootstrap: str, messages: int, rate: float) -> None:
        self._messages = messages
        self._rate = rate
        self._reader = kafka.consumer(bootstrap, client_id="bench")
        self._client = kafka.admin(bootstrap)

    def measured(self, sender: AbstractContextManager[Callable[[int], None]]) -> list[float]:
        """Seconds from the moment when it was sent to its arrival, of each message."""
        sent_s, came_s = [0.0] * self._messages, [0.0] * self._messages
        kafka.assign_at_end(self._reader, self._client, [TOPIC])
        reading = threading.Thread(target=self._read, args=(came_s,), name="reads")
        with sender as send:
            reading.start()
            began_s = time.perf_counter()
            for number in range(self._messages):
                time.sleep(max(0.0, began_s + number / self._rate - time.perf_counter()))
                send(number)
                sent_s[number] = time.perf_counter()
            reading.join()
        return [came - sent for came, sent in zip(came_s, sent_s, strict=True)]

    def _read(self, came_s: list[float]) -> None:
        seen = 0
        while seen < len(came_s):
            message = self._reader.poll(1.0)
            if message is not None and message.error() is None:
                came_s[int(message.value())] = time.perf_counter()
                seen += 1


@contextmanager
def relayed_one_by_one(url: str, tables: Connection, bootstrap: str, size: int) -> Iterator[Callable[[int], None]]:
    """Writes each message into the outbox, in a transaction of its own."""
    stop = Stop()
    relay = threading.Thread(target=run, args=(RelayOptions(database_url=url, kafka=bootstrap), stop), name="relay")
    relay.start()
    outbox.add(tables, [message(-1, size)])
    while outbox.pending(tables, 1):
        time.sleep(0.01)
    yield lambda number: outbox.add(tables, [message(number, size)])
    stop.request()
    relay.join()


@contextmanager
def sent_one_by_one(bootstrap: str, size: int) -> Iterator[Callable[[int], None]]:
    """Sends each message by a producer that waits for no other."""
    producer = kafka.producer(bootstrap, client_id="bench")
    kafka.know_topic(producer, TOPIC)

    def send(number: int) -> None:
        row = message(number, size)
        producer.produce(row.topic, row.payload, row.key)
        producer.poll(0)

    yield send
    producer.flush()


def message(number: int, size: int) -> outbox.Row:
    payload = str(number).zfill(size).encode()
    return outbox.Row(topic=TOPIC, key=f"key-{number % KEYS}", kind="deploy", epoch=1, payload=payload)


def show(name: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    print(f"{name:24} p50 {1000 * cuts[49]:6.1f} ms  p99 {1000 * cuts[98]:6.1f} ms  most {1000 * max(seconds):6.1f} ms")


def produced(bootstrap: str, rows: list[outbox.Row]) -> float:
    """Messages a second of a producer with the settings that one would take for speed and safety."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 5}
    )
    producer.list_topics(TOPIC)
    began = time.perf_counter()
    for row in rows:
        while True:
            try:
                producer.produce(row.topic, row.payload, row.key)
            except BufferError:
                producer.poll(0.1)
            else:
                break
    assert producer.flush() == 0
    return len(rows) / (time.perf_counter() - began)


def relayed(url: str, bootstrap: str, tables: Connection, rows: list[outbox.Row]) -> float:
    """Messages a second of the relay, from the first that it marks to the last."""
    tables.execute("TRUNCATE outbox")
    for start in range(0, len(rows), 10_000):
        outbox.add(tables, rows[start : start + 10_000])
    tables.execute("VACUUM ANALYZE outbox")
    stop = Stop()
    relay = threading.Thread(target=run, args=(RelayOptions(database_url=url, kafka=bootstrap), stop), name="relay")
    relay.start()
    while (waits := outbox.pending(tables, 1)) and int(waits[0].payload) == 0:
        time.sleep(0.005)
    first = int(waits[0].payload) if waits else len(rows)
    began = time.perf_counter()
    while outbox.pending(tables, 1):
        time.sleep(0.02)
    took = time.perf_counter() - began
    stop.request()
    relay.join()
    return (len(rows) - first) / took


if __name__ == "__main__":
    main()
