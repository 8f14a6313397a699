"""How long vidflow needs after a part of it was killed, beside its flow when nothing is; median and worst of each.

    python bench/recovery.py [--runs 20] [--only "relay,kafka"]

It starts a `vidflow dev` of its own with two runners, orchestrators and relays. One scenario at a time is under way, some 40 frames
a second; what dies is started again by dev, after 0.2 s the first time. All is seen from the tables, which are looked at each 10 ms.
For the servers: how long they themselves took to answer again stands beside it.
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

sys.path.append(str(Path(__file__).parents[1]))  # how to break a vidflow is known to its fault suite

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
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--only", default="", help="some of: " + ", ".join(MEASURES))
    given = arguments.parse_args()
    chosen = [name for name in MEASURES if not given.only or name in given.only.split(",")]
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us, {given.runs} runs; seconds"
    )
    print(f"{'':66}{'median':>8}{'worst':>8}")
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        work = workloads.slow(Path(folder), FRAMES)
        with run_system(Path(folder) / "data") as now:
            for name in chosen:
                run_measurement(now, work, MEASURES[name], given.runs)


def run_measurement(
    now: SystemUnderTest, work: workloads.Workload, measure: Callable[[RecoveryRun], Measurements], runs: int
) -> None:
    """Runs it so many times, each upon a vidflow that is whole and has one scenario under way; prints the spread."""
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        now.wait_until_recovered()
        uuid = now.create_scenario(work)
        now.wait_until_running(uuid)
        with watched_progress(now.processes.database_url) as flow:
            bench = RecoveryRun(now, flow, uuid)
            for name, seconds in measure(bench):
                found.setdefault(name, []).append(seconds)
            bench.close()
        now.ensure_shut_down(uuid)
        now.wait_until_all_inactive()
    for name, times in found.items():
        print(f"{name:66}{statistics.median(times):>8.2f}{max(times):>8.2f}", flush=True)


class RecoveryRun:
    """A vidflow with one scenario under way, and what is seen of it."""

    def __init__(self, now: SystemUnderTest, flow: ProgressWatch, uuid: str) -> None:
        self.system = now
        self.flow = flow
        self.uuid = uuid
        self._tables: psycopg.Connection[Any] | None = None

    def kill(self, victim: Victim) -> float:
        """Kills it; the moment."""
        pids = wait_for_victim(self.system.processes, victim, random.Random(0))  # noqa: S311 - there is one, or they are alike
        killed_s = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return killed_s

    def wait_until_true(self, query: str, *values: object) -> float:
        """The moment from which on the query says true."""
        wait_until(lambda: self.query_value(query, *values), query, LIMIT_S)
        return time.monotonic()

    def query_value(self, query: str, *values: object) -> Any:  # noqa: ANN401 - what the query gives
        """The one value that the query gives. Raises psycopg.OperationalError while the database is away."""
        if self._tables is None or self._tables.closed:
            self._tables = psycopg.connect(self.system.processes.database_url, autocommit=True, connect_timeout=2)
        row = self._tables.execute(query, values).fetchone()
        return row and row[0]

    def close(self) -> None:
        if self._tables is not None:
            self._tables.close()


def measure_undisturbed_flow(bench: RecoveryRun) -> Measurements:
    since_s = time.monotonic()
    wait_until(lambda: time.monotonic() - since_s > FLOW_S, "some seconds of flow have been seen")
    for earlier, later in pairwise(moment for moment in bench.flow.changed_at_s if moment > since_s):
        yield "undisturbed: from one look with new frames to the next", later - earlier
    began_s = time.monotonic()
    uuids = create_scenarios(bench)
    yield "undisturbed: asked for to published", bench.wait_until_true(PUBLISHED, uuids) - began_s
    yield "undisturbed: asked for to placed", bench.wait_until_true(PLACED, uuids[0]) - began_s
    stop(bench, uuids)


def worker(bench: RecoveryRun) -> Measurements:
    """Frames that it had sent are stored after its death: the next one is one of a new epoch."""
    epoch = bench.query_value(EPOCH, bench.uuid)
    killed_s = bench.kill(Victim.WORKER)
    yield (
        "worker killed, to the next frame (1 s of backoff is in it)",
        bench.wait_until_true(NEWER, bench.uuid, epoch) - killed_s,
    )


def runner(bench: RecoveryRun) -> Measurements:
    epoch = bench.query_value(EPOCH, bench.uuid)
    killed_s = bench.kill(Victim.MACHINE)
    name = "runner killed, to the next frame by another (lease of 3 s)"
    yield name, bench.wait_until_true(NEWER, bench.uuid, epoch) - killed_s


def leader(bench: RecoveryRun) -> Measurements:
    term = bench.query_value(TERM)
    killed_s = bench.kill(Victim.LEADER)
    uuids = create_scenarios(bench, 1)
    yield "leader killed, until another leads", bench.wait_until_true(NEW_LEADER_SQL, term) - killed_s
    yield "leader killed, to the next placement (lease of 2 s)", bench.wait_until_true(PLACED, uuids[0]) - killed_s
    stop(bench, uuids)


def relay(bench: RecoveryRun) -> Measurements:
    """One of two, each with half of the shards; asked for are several scenarios, so that some are of shards that it had."""
    bench.wait_until_true(SHARED)
    killed_s = bench.kill(Victim.RELAY)
    uuids = create_scenarios(bench)
    yield (
        "relay killed, until rows of its shards are published (lease of 2 s)",
        bench.wait_until_true(PUBLISHED, uuids) - killed_s,
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
    yield "Kafka killed: until it answers again", back_s - killed_s
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
    yield "PostgreSQL killed: until it answers again", back_s - killed_s
    yield "PostgreSQL killed, to flow", time_to_progress_s(bench, killed_s, back_s)


def time_to_progress_s(bench: RecoveryRun, killed_s: float, back_s: float) -> float:
    """From the kill to the first frame that was stored after the server's return."""
    wait_until(lambda: bench.flow.first_change_after_s(back_s) is not None, "frames are stored again", LIMIT_S)
    return back_s - killed_s + (bench.flow.first_change_after_s(back_s) or 0.0)


def create_scenarios(bench: RecoveryRun, count: int = CREATIONS) -> list[str]:
    [work] = {bench.system.created[bench.uuid]}
    return [bench.system.create_scenario(work) for _ in range(count)]


def stop(bench: RecoveryRun, uuids: list[str]) -> None:
    for uuid in uuids:
        bench.system.ensure_shut_down(uuid)


EPOCH = "SELECT epoch FROM scenarios WHERE scenario_uuid = %s"
NEWER = "SELECT true FROM scenario_results WHERE scenario_uuid = %s AND epoch > %s LIMIT 1"
PLACED = "SELECT epoch > 0 FROM scenarios WHERE scenario_uuid = %s"
PUBLISHED = "SELECT count(*) = 0 FROM outbox WHERE key = ANY(%s) AND published_at IS NULL"
TERM = "SELECT term FROM lease WHERE name = 'leader'"
NEW_LEADER_SQL = "SELECT term > %s AND expires_at > clock_timestamp() FROM lease WHERE name = 'leader'"
SHARED = """
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
