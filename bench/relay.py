"""The relay's messages a second, from a full outbox to all marked, beside a bare producer with the same payloads.

python bench/relay.py [--rows 50000] [--bytes 400] [--runs 5]
"""

from __future__ import annotations

import argparse
import threading
import time

from confluent_kafka import Producer

from servers import report, servers
from vidflow.infra import outbox
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
    given = parser.parse_args()
    rows = [
        outbox.Row(
            topic=TOPIC,
            key=f"key-{number % KEYS}",
            kind="deploy",
            epoch=1,
            payload=str(number).zfill(given.bytes).encode(),
        )
        for number in range(given.rows)
    ]
    ours, theirs = [], []
    with servers() as (url, bootstrap), connect(url, name="bench") as tables:
        for _ in range(given.runs):
            theirs.append(produced(bootstrap, rows))
            ours.append(relayed(url, bootstrap, tables, rows))
    report("relay", ours, "bare producer", theirs)


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
