"""The inbox's rows a second, from a full topic to all stored, beside a bare COPY of the same rows into the same table.

python bench/inbox.py [--rows 30000] [--scenarios 20] [--detections 10] [--runs 5]
"""

from __future__ import annotations

import argparse
import threading
import time

import msgspec

from servers import report, servers
from vidflow.domain.detections import Detection
from vidflow.domain.messages import RESULTS, Frame, encode
from vidflow.infra import kafka
from vidflow.infra.postgres import Connection, connect
from vidflow.infra.stopping import Stop
from vidflow.roles.inbox import run
from vidflow.settings import InboxOptions

BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--scenarios", type=int, default=20)
    parser.add_argument("--detections", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    ours, theirs = [], []
    with servers() as (url, bootstrap), connect(url, name="bench") as tables:
        for _ in range(given.runs):
            frames = made(tables, given.rows // given.scenarios, given.scenarios, given.detections)
            theirs.append(copied(tables, frames))
            ours.append(stored(url, bootstrap, tables, frames))
    report("inbox", ours, "bare COPY", theirs)


def made(tables: Connection, each: int, scenarios: int, detections: int) -> list[Frame]:
    """The frames of new scenarios, as their workers send them: one scenario's in order, all mixed."""
    rows = tables.execute(
        """
        INSERT INTO scenario_progress (scenario_uuid, epoch)
        SELECT uuidv7(), 1 FROM generate_series(1, %s) RETURNING scenario_uuid::text
        """,
        (scenarios,),
    ).fetchall()
    seen = tuple(
        Detection("person", 0.9 - n / 100, (n * 10.0, 20.5, n * 10.0 + 50.25, 200.75)) for n in range(detections)
    )
    return [
        Frame(uuid, 1, number, number * 3000, "1/90000", 0, number / 30, "2026-01-01T00:00:00.000Z", 1280, 720, seen)
        for number in range(each)
        for (uuid,) in rows
    ]


def copied(tables: Connection, frames: list[Frame]) -> float:
    """Rows a second of COPY, a transaction a batch; they are taken out again."""
    began = time.perf_counter()
    for start in range(0, len(frames), BATCH):
        with tables.transaction(), tables.cursor().copy("COPY scenario_results FROM STDIN") as copy:
            for one in frames[start : start + BATCH]:
                detections = msgspec.json.encode(one.detections).decode()
                fixed = (one.scenario_uuid, one.frame_number, one.epoch, one.pts, one.time_s, one.width, one.height)
                copy.write_row((*fixed, one.at, detections))
    rate = len(frames) / (time.perf_counter() - began)
    tables.execute("TRUNCATE scenario_results")
    return rate


def stored(url: str, bootstrap: str, tables: Connection, frames: list[Frame]) -> float:
    """Rows a second of the inbox, from the first that is stored to the last."""
    producer = kafka.producer(bootstrap, client_id="bench")
    producer.list_topics(RESULTS)
    for one in frames:
        producer.produce(RESULTS, encode(one), one.scenario_uuid)
        producer.poll(0)
    assert producer.flush() == 0
    stop = Stop()
    inbox = threading.Thread(target=run, args=(InboxOptions(database_url=url, kafka=bootstrap), stop), name="inbox")
    inbox.start()
    uuids = sorted({one.scenario_uuid for one in frames})
    while (first := count(tables, uuids)) == 0:
        time.sleep(0.005)
    began = time.perf_counter()
    while count(tables, uuids) < len(frames):
        time.sleep(0.02)
    took = time.perf_counter() - began
    stop.request()
    inbox.join()
    tables.execute("TRUNCATE scenario_results")
    return (len(frames) - first) / took


def count(tables: Connection, uuids: list[str]) -> int:
    query = "SELECT coalesce(sum(next_frame), 0)::int FROM scenario_progress WHERE scenario_uuid = ANY (%b::uuid[])"
    [(frames,)] = tables.execute(query, (uuids,)).fetchall()
    return int(frames)


if __name__ == "__main__":
    main()
