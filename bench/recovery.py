"""Measure how long vidflow needs to recover after a part of it is killed, compared with its undisturbed flow.

    python bench/recovery.py [--runs 20] [--only "relay,kafka"]

It starts its own `vidflow dev` with two runners, orchestrators and relays. One scenario at a time runs, at about 40 frames per
second. dev restarts what was killed, after 0.2 s the first time. All events are observed in the database, which is polled every
10 ms. For the servers, the time until they answer again is printed as well.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import KafkaException

sys.path.append(str(Path(__file__).parents[1]))  # for fault injection from the fault suite

from tests.faults import workloads
from tests.faults.injection import Victim, wait_for_victim
from tests.faults.progress_watch import ProgressWatch, watched_progress
from tests.faults.system_under_test import SystemUnderTest, run_system
from tests.integration.server_owner import wait_until

from servers import fdatasync_us
from vidflow.infra.kafka import admin, errors, offsets

LIMIT_S = 120.0
FLOW_S = 5.0
FRAMES = 6000
CREATIONS = 8
Measurements = Iterator[tuple[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--only", default="", help="comma-separated, from: " + ", ".join(MEASURES))
    args = parser.parse_args()
    chosen = [name for name in MEASURES if not args.only or name in args.only.split(",")]
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us, {args.runs} runs; seconds"
    )
    print(f"{'':66}{'median':>8}{'max':>8}")
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        work = workloads.slow(Path(folder), FRAMES)
        with run_system(Path(folder) / "data") as system:
            for name in chosen:
                run_measurement(system, work, MEASURES[name], args.runs)


def run_measurement(
    system: SystemUnderTest, work: workloads.Workload, measure: Callable[[RecoveryRun], Measurements], runs: int
) -> None:
    """Run the measurement `runs` times, each on a recovered vidflow with one running scenario. Print the spread."""
    durations: dict[str, list[float]] = {}
    for _ in range(runs):
        system.wait_until_recovered()
        uuid = system.create_scenario(work)
        system.wait_until_running(uuid)
        with watched_progress(system.processes.database_url) as flow:
            bench = RecoveryRun(system, flow, uuid)
            for name, seconds in measure(bench):
                durations.setdefault(name, []).append(seconds)
            bench.close()
        system.ensure_shut_down(uuid)
        system.wait_until_all_inactive()
    for name, times in durations.items():
        print(f"{name:66}{statistics.median(times):>8.2f}{max(times):>8.2f}", flush=True)


class RecoveryRun:
    """A vidflow with one running scenario, and observations of it."""

    def __init__(self, system: SystemUnderTest, flow: ProgressWatch, uuid: str) -> None:
        self.system = system
        self.flow = flow
        self.uuid = uuid
        self._connection: psycopg.Connection[Any] | None = None

    def kill(self, victim: Victim) -> float:
        """Kill the victim. Return the time on the monotonic clock."""
        pids = wait_for_victim(self.system.processes, victim, random.Random(0))  # noqa: S311 - there is one victim, or any will do
        killed_s = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return killed_s

    def wait_until_true(self, query: str, *values: object) -> float:
        """Wait until the query returns true. Return the time on the monotonic clock."""
        wait_until(lambda: self.query_value(query, *values), query, LIMIT_S)
        return time.monotonic()

    def query_value(self, query: str, *values: object) -> Any:  # noqa: ANN401 - depends on the query
        """Return the single value of a query. Raises psycopg.OperationalError while the database is not available."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.system.processes.database_url, autocommit=True, connect_timeout=2)
        row = self._connection.execute(query, values).fetchone()
        return row and row[0]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def measure_undisturbed_flow(bench: RecoveryRun) -> Measurements:
    since_s = time.monotonic()
    wait_until(lambda: time.monotonic() - since_s > FLOW_S, "some seconds of flow have been observed")
    for earlier, later in pairwise(moment for moment in bench.flow.changed_at_s if moment > since_s):
        yield "undisturbed: from one poll with new frames to the next", later - earlier
    began_s = time.monotonic()
    uuids = create_scenarios(bench)
    yield "undisturbed: requested to published", bench.wait_until_true(PUBLISHED_SQL, uuids) - began_s
    yield "undisturbed: requested to placed", bench.wait_until_true(PLACED_SQL, uuids[0]) - began_s
    stop(bench, uuids)


def worker(bench: RecoveryRun) -> Measurements:
    """Measure until the first frame of a new epoch, since frames sent before the kill are still stored after it."""
    epoch = bench.query_value(EPOCH_SQL, bench.uuid)
    killed_s = bench.kill(Victim.WORKER)
    yield (
        "worker killed, to the next frame (includes 1 s of backoff)",
        bench.wait_until_true(NEWER_FRAME_SQL, bench.uuid, epoch) - killed_s,
    )


def runner(bench: RecoveryRun) -> Measurements:
    epoch = bench.query_value(EPOCH_SQL, bench.uuid)
    killed_s = bench.kill(Victim.MACHINE)
    name = "runner killed, to the next frame by another (lease of 3 s)"
    yield name, bench.wait_until_true(NEWER_FRAME_SQL, bench.uuid, epoch) - killed_s


def leader(bench: RecoveryRun) -> Measurements:
    term = bench.query_value(TERM_SQL)
    killed_s = bench.kill(Victim.LEADER)
    uuids = create_scenarios(bench, 1)
    yield "leader killed, until another leads", bench.wait_until_true(NEW_LEADER_SQL, term) - killed_s
    yield "leader killed, to the next placement (lease of 2 s)", bench.wait_until_true(PLACED_SQL, uuids[0]) - killed_s
    stop(bench, uuids)


def relay(bench: RecoveryRun) -> Measurements:
    """Kill one of two relays, each with half of the shards. Request several scenarios, so that some are in its shards."""
    bench.wait_until_true(SHARED_SQL)
    killed_s = bench.kill(Victim.RELAY)
    uuids = create_scenarios(bench)
    yield (
        "relay killed, until rows of its shards are published (lease of 2 s)",
        bench.wait_until_true(PUBLISHED_SQL, uuids) - killed_s,
    )
    stop(bench, uuids)


def broker(bench: RecoveryRun) -> Measurements:
    killed_s = bench.kill(Victim.KAFKA)
    client = admin.create_admin(bench.system.processes.kafka)

    def answers() -> bool:
        try:
            offsets.read_end_offsets(client, "results")
        except (errors.KafkaAway, KafkaException):
            return False
        return True

    wait_until(answers, "the broker answers", LIMIT_S)
    back_s = time.monotonic()
    yield "Kafka killed, until it answers again", back_s - killed_s
    yield "Kafka killed, to flow", time_to_progress_s(bench, killed_s, back_s)


def database(bench: RecoveryRun) -> Measurements:
    killed_s = bench.kill(Victim.POSTGRES)

    def answers() -> bool:
        try:
            return bool(bench.query_value("SELECT true"))
        except psycopg.OperationalError:
            return False

    wait_until(answers, "the database answers", LIMIT_S)
    back_s = time.monotonic()
    yield "PostgreSQL killed, until it answers again", back_s - killed_s
    yield "PostgreSQL killed, to flow", time_to_progress_s(bench, killed_s, back_s)


def time_to_progress_s(bench: RecoveryRun, killed_s: float, back_s: float) -> float:
    """Return the seconds from the kill to the first frame stored after the server is back."""
    wait_until(lambda: bench.flow.first_change_after_s(back_s) is not None, "frames are stored again", LIMIT_S)
    return back_s - killed_s + (bench.flow.first_change_after_s(back_s) or 0.0)


def create_scenarios(bench: RecoveryRun, count: int = CREATIONS) -> list[str]:
    [work] = {bench.system.created[bench.uuid]}
    return [bench.system.create_scenario(work) for _ in range(count)]


def stop(bench: RecoveryRun, uuids: list[str]) -> None:
    for uuid in uuids:
        bench.system.ensure_shut_down(uuid)


EPOCH_SQL = "SELECT epoch FROM scenarios WHERE scenario_uuid = %s"
NEWER_FRAME_SQL = "SELECT true FROM scenario_results WHERE scenario_uuid = %s AND epoch > %s LIMIT 1"
PLACED_SQL = "SELECT epoch > 0 FROM scenarios WHERE scenario_uuid = %s"
PUBLISHED_SQL = "SELECT count(*) = 0 FROM outbox WHERE key = ANY(%s)"
TERM_SQL = "SELECT term FROM lease WHERE name = 'leader'"
NEW_LEADER_SQL = "SELECT term > %s AND expires_at > clock_timestamp() FROM lease WHERE name = 'leader'"
SHARED_SQL = """
    SELECT array_agg(shards) = '{8,8}'
      FROM (SELECT count(*) AS shards
              FROM lease
             WHERE starts_with(name, 'outbox/') AND expires_at > clock_timestamp()
             GROUP BY holder) AS held
"""
MEASURES = {
    "undisturbed": measure_undisturbed_flow,
    "worker": worker,
    "runner": runner,
    "leader": leader,
    "relay": relay,
    "kafka": broker,
    "postgres": database,
}

if __name__ == "__main__":
    main()
