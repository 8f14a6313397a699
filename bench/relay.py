"""The relay's messages a second, from a full outbox to all removed, and how soon a message is in Kafka at an even pace.

    python bench/relay.py [--rows 50000] [--runs 5] [--rate 500] [--seconds 10] [--minutes 60]

The messages are commands to deploy. The baselines are a bare producer of the same keys and payloads (and, as the relay's messages
have them, headers), and one that sends at the same pace; a consumer tells when a message is there, for both. With --minutes, that
pace is kept for so long instead, and what becomes of the table is printed each minute.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from confluent_kafka import Producer

from servers import print_comparison, servers
from vidflow.domain.messages import Deploy, ResumePoint, decode_command, encode
from vidflow.infra.kafka import admin, clients, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect

TOPIC = "to_deploy.default"
KEYS = 200
HEADERS: clients.Headers = [
    (clients.MESSAGE_ID_HEADER, str(uuid.UUID(int=1)).encode()),
    (clients.EPOCH_HEADER, b"100000"),
    (clients.KIND_HEADER, b"deploy"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=500.0, help="messages a second, one transaction each")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--minutes", type=int, default=0, help="how long to look for dead rows, instead of all else")
    given = parser.parse_args()
    with servers() as (url, settings), connect(url, name="bench") as tables:
        if given.minutes:
            measure_bloat(url, settings, tables, given.rate, given.minutes)
        else:
            measure_throughput(url, settings, tables, given.rows, given.runs)
            pace = PacedLoad(settings, round(given.rate * given.seconds), given.rate)
            show("from commit to Kafka", pace.measure(outbox_sender(url, tables, settings)))
            show("bare producer", pace.measure(producer_sender(settings)))


def measure_throughput(url: str, settings: KafkaSettings, tables: Connection, number: int, runs: int) -> None:
    """Messages a second: the relay beside a bare producer, without and with the headers that its messages have."""
    rows = [message(one) for one in range(number)]
    ours, bare, headed = [], [], []
    for _ in range(runs):
        bare.append(measure_producer(settings, rows, None))
        ours.append(measure_relay(url, settings, tables, rows))
        headed.append(measure_producer(settings, rows, HEADERS))
    print_comparison("relay", ours, "bare producer", bare)
    print_comparison("relay", ours, "bare, with headers", headed)


def measure_bloat(url: str, settings: KafkaSettings, tables: Connection, rate: float, minutes: int) -> None:
    """An even load for long: what waits, how large table and indexes are, and how long a look for what waits takes."""
    print(
        f"{'minute':>6} {'messages':>10} {'waiting':>8} {'dead rows':>10} {'table kB':>9} {'indexes kB':>11} {'look ms':>8}"
    )
    number, began_s = 0, time.monotonic()
    with running_relay(url, settings, tables):
        for minute in range(1, minutes + 1):
            while time.monotonic() < began_s + 60 * minute:
                outbox.add_messages(tables, [message(number + one) for one in range(int(rate / 10))])
                number += int(rate / 10)
                time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
            looked_s = time.perf_counter()
            outbox.read_pending_messages(tables, 1000, window=outbox.WINDOW)
            look_ms = 1000 * (time.perf_counter() - looked_s)
            [(dead, table, indexes)] = tables.execute(
                "SELECT n_dead_tup, pg_relation_size(relid), pg_indexes_size(relid) FROM pg_stat_user_tables WHERE relname = 'outbox'"
            ).fetchall()
            sizes = f"{dead:>10,} {table // 1024:>9,} {indexes // 1024:>11,}"
            print(f"{minute:>6} {number:>10,} {count_waiting(tables):>8} {sizes} {look_ms:>8.1f}", flush=True)


class PacedLoad:
    """Sends numbered messages evenly, and waits for each to come out of the topic."""

    def __init__(self, settings: KafkaSettings, messages: int, rate: float) -> None:
        self._messages = messages
        self._rate = rate
        self._reader = clients.create_consumer(settings, client_id="bench")
        self._client = admin.create_admin(settings)

    def measure(self, sender: AbstractContextManager[Callable[[int], None]]) -> list[float]:
        """Seconds from the moment when it was sent to its arrival, of each message."""
        sent_s, came_s = [0.0] * self._messages, [0.0] * self._messages
        offsets.assign_at_end(self._client, self._reader, [TOPIC])
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
                command = decode_command(message.value())
                assert isinstance(command, Deploy)
                came_s[command.epoch] = time.perf_counter()
                seen += 1


def count_waiting(tables: Connection) -> int:
    """How many messages wait."""
    [(count,)] = tables.execute("SELECT count(*) FROM outbox WHERE published_at IS NULL AND error IS NULL").fetchall()
    return int(count)


@contextmanager
def running_relay(url: str, settings: KafkaSettings, tables: Connection) -> Iterator[None]:
    """A relay at work, in a process of its own as it is in use, from its first message on."""
    if not outbox.read_pending_messages(tables, 1):
        outbox.add_messages(tables, [message(0)])
    before = count_waiting(tables)
    command = [sys.executable, "-m", "vidflow", "relay"]
    variables = {**os.environ, "VIDFLOW_DATABASE_URL": url, "VIDFLOW_KAFKA": settings.bootstrap}
    with subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL) as relay:
        while count_waiting(tables) == before:
            time.sleep(0.005)
        yield
        relay.terminate()


@contextmanager
def outbox_sender(url: str, tables: Connection, settings: KafkaSettings) -> Iterator[Callable[[int], None]]:
    """Writes each message into the outbox, in a transaction of its own."""
    with running_relay(url, settings, tables):
        yield lambda number: outbox.add_messages(tables, [message(number)])


@contextmanager
def producer_sender(settings: KafkaSettings) -> Iterator[Callable[[int], None]]:
    """Sends each message by a producer that waits for no other."""
    producer = clients.create_producer(settings, client_id="bench")
    clients.fetch_topic_metadata(producer, TOPIC)

    def send(number: int) -> None:
        row = message(number)
        producer.produce(row.topic, row.payload, row.key)
        producer.poll(0)

    yield send
    producer.flush()


def message(number: int) -> outbox.OutboxMessage:
    """A command to deploy; its epoch is the number."""
    key = str(uuid.uuid5(uuid.NAMESPACE_OID, str(number % KEYS)))
    deploy = Deploy(
        scenario_uuid=key,
        epoch=number,
        source=f"site-{number % 7}/camera-{number % KEYS}/2026-11-24T08-{number % 60:02}.mp4",
        model="bottle-detection",
        model_sha256=hashlib.sha256(b"%d" % (number % 5)).hexdigest(),
        fps="2",
        resume=ResumePoint(
            next_frame=number * 3, origin_pts=0, time_base="1/90000", last_pts=number * 45_000, last_time_s=number / 2
        ),
    )
    return outbox.OutboxMessage(topic=TOPIC, key=key, kind="deploy", epoch=number, payload=encode(deploy))


def show(name: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    print(f"{name:24} p50 {1000 * cuts[49]:6.1f} ms  p99 {1000 * cuts[98]:6.1f} ms  most {1000 * max(seconds):6.1f} ms")


def measure_producer(
    settings: KafkaSettings, rows: list[outbox.OutboxMessage], headers: clients.Headers | None
) -> float:
    """Messages a second of a producer with the settings that one would take for speed and safety."""
    producer = Producer(
        {"bootstrap.servers": settings.bootstrap, "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 5}
    )
    producer.list_topics(TOPIC)
    began = time.perf_counter()
    for row in rows:
        while True:
            try:
                producer.produce(row.topic, row.payload, row.key, headers=headers)
            except BufferError:
                producer.poll(0.1)
            else:
                break
    assert producer.flush() == 0
    return len(rows) / (time.perf_counter() - began)


def measure_relay(url: str, settings: KafkaSettings, tables: Connection, rows: list[outbox.OutboxMessage]) -> float:
    """Messages a second of the relay, from the first that it removes to the last."""
    tables.execute("TRUNCATE outbox")
    for start in range(0, len(rows), 10_000):
        outbox.add_messages(tables, rows[start : start + 10_000])
    tables.execute("VACUUM ANALYZE outbox")
    with running_relay(url, settings, tables):
        first, began = len(rows) - count_waiting(tables), time.perf_counter()
        while outbox.read_pending_messages(tables, 1):
            time.sleep(0.02)
        took = time.perf_counter() - began
    return (len(rows) - first) / took


if __name__ == "__main__":
    main()
