"""Measure how fast the inbox stores a full topic, compared with a bare COPY of the same rows into the same table.

python bench/inbox.py [--rows 30000] [--scenarios 20] [--detections 10] [--runs 5] [--stored 1000000]

`--stored`: number of rows in the table beforehand. The CPU time per row, of client and server without Kafka, is printed as well
(Linux). Unlike the rates, it remains meaningful on a machine with other load.
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
from vidflow.domain.messages import Frame, encode
from vidflow.domain.topics import RESULTS
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
    args = parser.parse_args()
    ours, theirs = [], []
    with servers() as (url, settings), connect(url, name="bench") as connection:
        fill(connection, args.stored)
        for _ in range(args.runs):
            frames = make_frames(connection, args.rows // args.scenarios, args.scenarios, args.detections)
            gc.freeze()  # an inbox in its own process does not have millions of objects to scan
            theirs.append(measure_copy(connection, frames))
            ours.append(measure_inbox(url, settings, connection, frames))
    print_comparison("inbox", [rate for rate, _ in ours], "bare COPY", [rate for rate, _ in theirs])
    cpu_us = [[us for _, us in rates] for rates in (ours, theirs)]
    ratios = [copy / inbox for inbox, copy in zip(*cpu_us, strict=True)]
    print(
        f"CPU per row: inbox {median(cpu_us[0]):.0f} us, bare COPY {median(cpu_us[1]):.0f} us: ratio {median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}); {args.stored:,} rows stored beforehand"
    )


def fill(connection: Connection, rows: int) -> None:
    """Store rows of scenarios with 300 frames each. They are small, since only their index could slow down later inserts."""
    connection.execute(
        """
        INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
        SELECT s.uuid, n, 1, n, n, 640, 360, '2026-01-01T00:00:00Z', '[]'
          FROM (SELECT uuidv7() AS uuid FROM generate_series(1, %s)) AS s, generate_series(0, 299) AS n
        """,
        (rows // 300,),
    )
    connection.execute("VACUUM ANALYZE scenario_results")


def make_frames(connection: Connection, frames_each: int, scenarios: int, detections: int) -> list[Frame]:
    """Return the frames of new scenarios, interleaved as their workers send them. Each scenario's frames are in order."""
    rows = connection.execute(
        """
        INSERT INTO scenario_progress (scenario_uuid, epoch)
        SELECT uuidv7(), 1 FROM generate_series(1, %s) RETURNING scenario_uuid::text
        """,
        (scenarios,),
    ).fetchall()
    found = tuple(
        Detection("person", 0.9 - n / 100, (n * 10.0, 20.5, n * 10.0 + 50.25, 200.75)) for n in range(detections)
    )
    return [
        Frame(uuid, 1, number, number * 3000, "1/90000", 0, number / 30, "2026-01-01T00:00:00.000Z", 1280, 720, found)
        for number in range(frames_each)
        for (uuid,) in rows
    ]


def measure_copy(connection: Connection, frames: list[Frame]) -> tuple[float, float]:
    """Return rows per second of COPY with one transaction per batch, and CPU microseconds per row. Delete the rows afterwards."""
    began_cpu_s = time.process_time() + cpu_s(connection.info.backend_pid)
    began_s = time.perf_counter()
    for start in range(0, len(frames), BATCH):
        with connection.transaction(), connection.cursor().copy("COPY scenario_results FROM STDIN") as copy:
            for frame in frames[start : start + BATCH]:
                detections = msgspec.json.encode(frame.detections).decode()
                values = (
                    frame.scenario_uuid,
                    frame.frame_number,
                    frame.epoch,
                    frame.pts,
                    frame.time_s,
                    frame.width,
                    frame.height,
                )
                copy.write_row((*values, frame.at, detections))
    rate = len(frames) / (time.perf_counter() - began_s)
    spent_s = time.process_time() + cpu_s(connection.info.backend_pid) - began_cpu_s
    delete_rows(connection, frames)
    return rate, spent_s / len(frames) * 1e6


def measure_inbox(
    url: str, settings: KafkaSettings, connection: Connection, frames: list[Frame]
) -> tuple[float, float]:
    """Return rows per second of the inbox, from the first stored row to the last, and CPU microseconds per row."""
    producer = clients.create_producer(settings, client_id="bench")
    producer.list_topics(RESULTS)
    for frame in frames:
        clients.send(producer, RESULTS, encode(frame), frame.scenario_uuid.encode(), HEADERS, raise_error)
    assert producer.flush() == 0
    stop = Stop()
    inbox = threading.Thread(target=run, args=(InboxOptions(database_url=url, kafka=settings), stop), name="inbox")
    inbox.start()
    uuids = sorted({frame.scenario_uuid for frame in frames})
    while (first := count(connection, uuids)) == 0:
        time.sleep(0.005)
    [(backend,)] = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'vidflow inbox'"
    ).fetchall()
    began_s, began_cpu_s = time.perf_counter(), time.process_time() + cpu_s(backend)
    while count(connection, uuids) < len(frames):
        time.sleep(0.05)
    elapsed_s, spent_s = time.perf_counter() - began_s, time.process_time() + cpu_s(backend) - began_cpu_s
    stop.request()
    inbox.join()
    delete_rows(connection, frames)
    return (len(frames) - first) / elapsed_s, spent_s / (len(frames) - first) * 1e6


def raise_error(error: KafkaError | None, _message: Message) -> None:
    """End the run if the broker did not accept a message."""
    if error is not None:
        raise KafkaException(error)


def delete_rows(connection: Connection, frames: list[Frame]) -> None:
    uuids = sorted({frame.scenario_uuid for frame in frames})
    connection.execute("DELETE FROM scenario_results WHERE scenario_uuid = ANY (%b::uuid[])", (uuids,))
    connection.execute("VACUUM scenario_results")


def count(connection: Connection, uuids: list[str]) -> int:
    query = "SELECT coalesce(sum(next_frame), 0)::int FROM scenario_progress WHERE scenario_uuid = ANY (%b::uuid[])"
    [(stored,)] = connection.execute(query, (uuids,)).fetchall()
    return int(stored)


if __name__ == "__main__":
    main()
