"""Measure the relay's throughput with a full outbox, and its latency from commit to Kafka at a constant rate.

    python bench/relay.py [--rows 50000] [--runs 5] [--rate 500] [--seconds 10] [--minutes 60]

The messages are deploy commands. The baselines are a bare producer of the same keys and payloads, without and with the headers of
the relay's messages, and one that sends at the same rate. For both, a consumer records when a message arrives. With --minutes, the
benchmark instead keeps the rate for that long and prints the state of the table every minute.
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
    parser.add_argument("--rate", type=float, default=500.0, help="messages per second, each in its own transaction")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--minutes", type=int, default=0, help="measure only table bloat, for this long")
    args = parser.parse_args()
    with servers() as (url, settings), connect(url, name="bench") as connection:
        if args.minutes:
            measure_bloat(url, settings, connection, args.rate, args.minutes)
        else:
            measure_throughput(url, settings, connection, args.rows, args.runs)
            load = PacedLoad(settings, round(args.rate * args.seconds), args.rate)
            show("from commit to Kafka", load.measure(outbox_sender(url, connection, settings)))
            show("bare producer", load.measure(producer_sender(settings)))


def measure_throughput(url: str, settings: KafkaSettings, connection: Connection, messages: int, runs: int) -> None:
    """Print the messages per second of the relay and of a bare producer, without and with the relay's headers."""
    rows = [message(number) for number in range(messages)]
    ours, bare, bare_with_headers = [], [], []
    for _ in range(runs):
        bare.append(measure_producer(settings, rows, None))
        ours.append(measure_relay(url, settings, connection, rows))
        bare_with_headers.append(measure_producer(settings, rows, HEADERS))
    print_comparison("relay", ours, "bare producer", bare)
    print_comparison("relay", ours, "bare, with headers", bare_with_headers)


def measure_bloat(url: str, settings: KafkaSettings, connection: Connection, rate: float, minutes: int) -> None:
    """Print, every minute of a constant load, the waiting messages, the sizes of table and indexes, and the time of a read."""
    print(
        f"{'minute':>6} {'messages':>10} {'waiting':>8} {'dead rows':>10} {'table kB':>9} {'indexes kB':>11} {'read ms':>8}"
    )
    number, began_s = 0, time.monotonic()
    with running_relay(url, settings, connection):
        for minute in range(1, minutes + 1):
            while time.monotonic() < began_s + 60 * minute:
                outbox.add_messages(connection, [message(number + offset) for offset in range(int(rate / 10))])
                number += int(rate / 10)
                time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
            read_began_s = time.perf_counter()
            outbox.read_pending_messages(connection, 1000, window=outbox.WINDOW)
            read_ms = 1000 * (time.perf_counter() - read_began_s)
            [(dead_rows, table_bytes, index_bytes)] = connection.execute(
                "SELECT n_dead_tup, pg_relation_size(relid), pg_indexes_size(relid) FROM pg_stat_user_tables WHERE relname = 'outbox'"
            ).fetchall()
            sizes = f"{dead_rows:>10,} {table_bytes // 1024:>9,} {index_bytes // 1024:>11,}"
            print(f"{minute:>6} {number:>10,} {count_waiting(connection):>8} {sizes} {read_ms:>8.1f}", flush=True)


class PacedLoad:
    """Sends numbered messages at a constant rate, and waits until each arrives from the topic."""

    def __init__(self, settings: KafkaSettings, messages: int, rate: float) -> None:
        self._messages = messages
        self._rate = rate
        self._reader = clients.create_consumer(settings, client_id="bench")
        self._client = admin.create_admin(settings)

    def measure(self, sender: AbstractContextManager[Callable[[int], None]]) -> list[float]:
        """Return the seconds from sending to arrival of each message."""
        sent_s, arrived_s = [0.0] * self._messages, [0.0] * self._messages
        offsets.assign_at_end(self._client, self._reader, [TOPIC])
        reading = threading.Thread(target=self._read, args=(arrived_s,), name="reader")
        with sender as send:
            reading.start()
            began_s = time.perf_counter()
            for number in range(self._messages):
                time.sleep(max(0.0, began_s + number / self._rate - time.perf_counter()))
                send(number)
                sent_s[number] = time.perf_counter()
            reading.join()
        return [arrived - sent for arrived, sent in zip(arrived_s, sent_s, strict=True)]

    def _read(self, arrived_s: list[float]) -> None:
        count = 0
        while count < len(arrived_s):
            message = self._reader.poll(1.0)
            if message is not None and message.error() is None:
                command = decode_command(message.value())
                assert isinstance(command, Deploy)
                arrived_s[command.epoch] = time.perf_counter()
                count += 1


def count_waiting(connection: Connection) -> int:
    """Return the number of waiting messages."""
    [(count,)] = connection.execute("SELECT count(*) FROM outbox WHERE error IS NULL").fetchall()
    return int(count)


@contextmanager
def running_relay(url: str, settings: KafkaSettings, connection: Connection) -> Iterator[None]:
    """Start a relay in its own process, as in production. The body runs once it has published its first message."""
    if not outbox.read_pending_messages(connection, 1):
        outbox.add_messages(connection, [message(0)])
    waiting = count_waiting(connection)
    command = [sys.executable, "-m", "vidflow", "relay"]
    variables = {**os.environ, "VIDFLOW_DATABASE_URL": url, "VIDFLOW_KAFKA": settings.bootstrap}
    with subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL) as relay:
        while count_waiting(connection) == waiting:
            time.sleep(0.005)
        yield
        relay.terminate()


@contextmanager
def outbox_sender(url: str, connection: Connection, settings: KafkaSettings) -> Iterator[Callable[[int], None]]:
    """Return a function that writes a message into the outbox in its own transaction."""
    with running_relay(url, settings, connection):
        yield lambda number: outbox.add_messages(connection, [message(number)])


@contextmanager
def producer_sender(settings: KafkaSettings) -> Iterator[Callable[[int], None]]:
    """Return a function that sends a message without waiting for earlier ones."""
    producer = clients.create_producer(settings, client_id="bench")
    clients.fetch_topic_metadata(producer, TOPIC)

    def send(number: int) -> None:
        row = message(number)
        producer.produce(row.topic, row.payload, row.key)
        producer.poll(0)

    yield send
    producer.flush()


def message(number: int) -> outbox.OutboxMessage:
    """Return a deploy command whose epoch is the number."""
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
    print(f"{name:24} p50 {1000 * cuts[49]:6.1f} ms  p99 {1000 * cuts[98]:6.1f} ms  max {1000 * max(seconds):6.1f} ms")


def measure_producer(
    settings: KafkaSettings, rows: list[outbox.OutboxMessage], headers: clients.Headers | None
) -> float:
    """Return the messages per second of a producer with settings for both speed and safety."""
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


def measure_relay(url: str, settings: KafkaSettings, connection: Connection, rows: list[outbox.OutboxMessage]) -> float:
    """Return the messages per second of the relay, from the first that it removes to the last."""
    connection.execute("TRUNCATE outbox")
    for start in range(0, len(rows), 10_000):
        outbox.add_messages(connection, rows[start : start + 10_000])
    connection.execute("VACUUM ANALYZE outbox")
    with running_relay(url, settings, connection):
        first, began = len(rows) - count_waiting(connection), time.perf_counter()
        while outbox.read_pending_messages(connection, 1):
            time.sleep(0.02)
        took = time.perf_counter() - began
    return (len(rows) - first) / took


if __name__ == "__main__":
    main()
