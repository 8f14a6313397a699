"""Measure maintenance: creating and detaching partitions, deleting old scenarios, backup and restore. Uses only PostgreSQL.

python bench/storage.py [--rows 1000000] [--partitions 300] [--scenarios 50000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from servers import fdatasync_us
from vidflow.domain.access import ReadScope
from vidflow.domain.messages import Frame
from vidflow.domain.retention import DAY_MS, TimeRange
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres import backup, results, retention
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop

BATCH = 500
PROBES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=300)
    parser.add_argument("--scenarios", type=int, default=50_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # a server that runs as another user must be able to reach its folder
        server = EmbeddedPostgres(Path(folder, "postgres"), notify=discard, stop=Stop())
        try:
            url = server.start().url
            migrate(url, discard)
            with connect(url, name="bench") as connection:
                partitions(connection, args.rows)
                backups(url, Path(folder, "backup"))
                connection.execute("TRUNCATE scenario_results")
                measure_reads_and_writes(connection, args.partitions)
                measure_deletes(connection, args.scenarios)
        finally:
            server.stop()
    print(f"fdatasync {fdatasync_us():.0f} us")


def partitions(connection: Connection, rows: int) -> None:
    """Measure attaching a partition while the default one contains rows, as if they were stored before any partition existed."""
    connection.execute(
        """
        INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
        SELECT uuidv7(make_interval(secs => -60 * (n / 1000))), n, 1, n, n, 640, 480, '',
               '[{"label": "person", "score": 0.88, "box": [1, 2, 3, 4]}, {"label": "dog", "score": 0.8, "box": [5, 6, 7, 8]}]'
          FROM generate_series(1, %s) AS n
        """,
        (rows,),
    )
    [(size,)] = connection.execute("SELECT pg_total_relation_size('scenario_results_default') / 1000000").fetchall()
    print_figure(f"rows in the DEFAULT partition, {size} MB", f"{rows}")
    tomorrow_ms = (retention.read_database_ms(connection) // DAY_MS + 1) * DAY_MS
    new = retention.Partition("scenario_results_tomorrow", TimeRange(tomorrow_ms, tomorrow_ms + DAY_MS))
    print_duration("attach a partition", lambda: run_in_transaction(connection, retention.make_partition, new))
    print_duration("detach it", lambda: run_in_transaction(connection, retention.detach_partition, new))


def backups(url: str, folder: Path) -> None:
    print_duration("back up", lambda: backup.write_backup(url, folder, replace=False, notify=discard))
    size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
    print_figure("size of the backup", f"{size:.0f} MB")
    print_duration("restore, count, drop (--verify)", lambda: backup.verify(url, folder, discard))


def measure_reads_and_writes(connection: Connection, max_partitions: int) -> None:
    created = 0
    today_ms = retention.read_database_ms(connection) // DAY_MS * DAY_MS
    for count in (1, max_partitions // 5, max_partitions):
        for day in range(created, count):
            from_ms = today_ms - day * DAY_MS
            run_in_transaction(
                connection,
                retention.make_partition,
                retention.Partition(f"scenario_results_{day}", TimeRange(from_ms, from_ms + DAY_MS)),
            )
        created = count
        store_ms, read_ms = measure_probes(connection)
        print_figure(f"{count} partitions: store 20 rows; read a page", f"{store_ms:.2f} ms; {read_ms:.2f} ms")


SCOPE: Final = ReadScope(owner="local", is_for_all=True)


def measure_probes(connection: Connection) -> tuple[float, float]:
    store_s, read_s = [], []
    for _ in range(PROBES):
        [(uuid,)] = connection.execute(
            "INSERT INTO scenarios (source, model, fps) VALUES ('s', 'm', 'all') RETURNING scenario_uuid::text"
        ).fetchall()
        frames = [Frame(uuid, 1, number, number, "1/10", 0, float(number), "", 64, 48, ()) for number in range(20)]
        store_s.append(measure_s(lambda frames=frames: results.add_frames(connection, frames)))
        read_s.append(measure_s(lambda uuid=uuid: results.read_result_page(connection, SCOPE, uuid, -1, 10)))
    return median(store_s) * 1e3, median(read_s) * 1e3


def delete_expired_scenarios(connection: Connection, ended_ms: int) -> None:
    expired, _ = retention.find_expired_scenarios(connection, ended_ms, retention.MIN_UUID, BATCH)
    assert retention.delete_scenarios(connection, expired) == BATCH


def measure_deletes(connection: Connection, scenarios: int) -> None:
    connection.execute(
        """
        WITH old AS (
        INSERT INTO scenarios (scenario_uuid, state, outcome, source, model, fps, state_changed_at)
            SELECT uuidv7(make_interval(days => -400)), 'inactive', 'stopped', 's', 'm', 'all', now() - interval '400 days'
              FROM generate_series(1, %s)
         RETURNING scenario_uuid
        )
        INSERT INTO scenario_history (scenario_uuid, epoch, number, attempt, to_state, reason_code, reason)
        SELECT scenario_uuid, 0, number, 0, 'active', 'assigned', 'assigned' FROM old, generate_series(0, 6) AS number
        """,
        (scenarios,),
    )
    connection.execute("ANALYZE")
    ended_ms = retention.read_database_ms(connection) - 300 * DAY_MS
    batches_s = [
        measure_s(lambda: run_in_transaction(connection, delete_expired_scenarios, ended_ms))
        for _ in range(scenarios // BATCH)
    ]
    print_figure(f"{scenarios} scenarios with 7 rows of history deleted", f"{sum(batches_s):.1f} s")
    print_figure(
        f"a batch of {BATCH}, median and max", f"{median(batches_s) * 1e3:.0f} ms; {max(batches_s) * 1e3:.0f} ms"
    )


def run_in_transaction(connection: Connection, statement: Callable[..., object], *arguments: object) -> None:
    """Run the statement in a transaction. Unlike the leader, wait for locks without a timeout."""
    with connection.transaction():
        statement(connection, *arguments)


def measure_s(step: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    step()
    return time.perf_counter() - began_s


def print_duration(name: str, step: Callable[[], object]) -> None:
    print_figure(name, f"{measure_s(step):.3f} s")


def print_figure(name: str, figure: str) -> None:
    print(f"{name:<60} {figure:>24}", flush=True)


def discard(_sentence: str) -> None:
    pass


if __name__ == "__main__":
    main()
