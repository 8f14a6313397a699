"""The inbox's rows a second, from a full topic to all stored, beside a bare COPY of the same rows into the same table.

python bench/inbox.py [--rows 30000] [--scenarios 20] [--detections 10] [--runs 5] [--stored 1000000]

`--stored`: so many rows lie in the table beforehand. The CPU time of a row, client and server, is told too (Linux): it holds where
others use the machine and the rates do not. Kafka's own is in neither.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from statistics import median

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from servers import print_comparison, servers
from stack import cpu_s
from vidflow.domain.detections import Detection
from vidflow.domain.messages import RESULTS, Frame, encode
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.process.stopping import Stop
from vidflow.roles.inbox import run
from vidflow.settings import InboxOptions

BATCH = 1000
HEADERS: clients.Headers = [(clients.KIND_HEADER, b"frame"), (clients.EPOCH_HEADER, b"1")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--scenarios", type=int, default=20)
    parser.add_argument("--detections", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stored", type=int, default=0)
    given = parser.parse_args()
    ours, theirs = [], []
    with servers() as (url, settings), connect(url, name="bench") as tables:
        fill(tables, given.stored)
        for _ in range(given.runs):
            frames = make_frames(tables, given.rows // given.scenarios, given.scenarios, given.detections)
            gc.freeze()  # an inbox of its own process has no millions of objects to look through
            theirs.append(measure_copy(tables, frames))
            ours.append(measure_inbox(url, settings, tables, frames))
    print_comparison("inbox", [rate for rate, _ in ours], "bare COPY", [rate for rate, _ in theirs])
    cpu_us = [[us for _, us in rates] for rates in (ours, theirs)]
    ratios = [copy / inbox for inbox, copy in zip(*cpu_us, strict=True)]
    print(
        f"CPU a row: inbox {median(cpu_us[0]):.0f} us, bare COPY {median(cpu_us[1]):.0f} us: ratio {median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}); {given.stored:,} rows stored before"
    )


def fill(tables: Connection, rows: int) -> None:
    """Rows of 300 earlier frames each: small ones, since the index is what could slow down what comes behind them."""
    tables.execute(
        """
        INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
        SELECT s.uuid, n, 1, n, n, 640, 360, '2026-01-01T00:00:00Z', '[]'
          FROM (SELECT uuidv7() AS uuid FROM generate_series(1, %s)) AS s, generate_series(0, 299) AS n
        """,
        (rows // 300,),
    )
    tables.execute("VACUUM ANALYZE scenario_results")


def make_frames(tables: Connection, each: int, scenarios: int, detections: int) -> list[Frame]:
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


def measure_copy(tables: Connection, frames: list[Frame]) -> tuple[float, float]:
    """Rows a second of COPY, a transaction a batch, and microseconds of CPU a row; they are taken out again."""
    before_s = time.process_time() + cpu_s(tables.info.backend_pid)
    began = time.perf_counter()
    for start in range(0, len(frames), BATCH):
        with tables.transaction(), tables.cursor().copy("COPY scenario_results FROM STDIN") as copy:
            for one in frames[start : start + BATCH]:
                detections = msgspec.json.encode(one.detections).decode()
                fixed = (one.scenario_uuid, one.frame_number, one.epoch, one.pts, one.time_s, one.width, one.height)
                copy.write_row((*fixed, one.at, detections))
    rate = len(frames) / (time.perf_counter() - began)
    spent_s = time.process_time() + cpu_s(tables.info.backend_pid) - before_s
    delete_rows(tables, frames)
    return rate, spent_s / len(frames) * 1e6


def measure_inbox(url: str, settings: KafkaSettings, tables: Connection, frames: list[Frame]) -> tuple[float, float]:
    """Rows a second of the inbox, from the first that is stored to the last, and microseconds of CPU a row."""
    producer = clients.create_producer(settings, client_id="bench")
    producer.list_topics(RESULTS)
    for one in frames:
        clients.send(producer, RESULTS, encode(one), one.scenario_uuid.encode(), HEADERS, raise_error)
    assert producer.flush() == 0
    stop = Stop()
    inbox = threading.Thread(target=run, args=(InboxOptions(database_url=url, kafka=settings), stop), name="inbox")
    inbox.start()
    uuids = sorted({one.scenario_uuid for one in frames})
    while (first := count(tables, uuids)) == 0:
        time.sleep(0.005)
    [(backend,)] = tables.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'vidflow inbox'"
    ).fetchall()
    began, before_s = time.perf_counter(), time.process_time() + cpu_s(backend)
    while count(tables, uuids) < len(frames):
        time.sleep(0.05)
    took, spent_s = time.perf_counter() - began, time.process_time() + cpu_s(backend) - before_s
    stop.request()
    inbox.join()
    delete_rows(tables, frames)
    return (len(frames) - first) / took, spent_s / (len(frames) - first) * 1e6


def raise_error(error: KafkaError | None, _message: Message) -> None:
    """Ends the run where the broker has not taken one."""
    if error is not None:
        raise KafkaException(error)


def delete_rows(tables: Connection, frames: list[Frame]) -> None:
    uuids = sorted({one.scenario_uuid for one in frames})
    tables.execute("DELETE FROM scenario_results WHERE scenario_uuid = ANY (%b::uuid[])", (uuids,))
    tables.execute("VACUUM scenario_results")


def count(tables: Connection, uuids: list[str]) -> int:
    query = "SELECT coalesce(sum(next_frame), 0)::int FROM scenario_progress WHERE scenario_uuid = ANY (%b::uuid[])"
    [(frames,)] = tables.execute(query, (uuids,)).fetchall()
    return int(frames)


if __name__ == "__main__":
    main()
