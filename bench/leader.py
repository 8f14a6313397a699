"""Measure a tick of the leader by the number of waiting scenarios, engaged scenarios and runners.

python bench/leader.py [--waiting 0,1000,10000,100000,1000000] [--engaged 10,100,1000] [--runners 1,10,1000] [--ticks 40] [--share]

A measured tick finds nothing to do, like nearly every tick: all engaged scenarios are reported as running, and no slot is free.
The reports are simulated and do not come through Kafka. "CPU" is that of this process; the database's part is only in the
duration.

`--share` instead measures a whole orchestrator with Kafka and the reports of simulated runners: its share of a core with 100,000
waiting and 100 engaged scenarios.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import threading
import time
from statistics import median, quantiles
from uuid import uuid4

from typing_extensions import override

from servers import servers
from stack import cpu_s
from vidflow.domain.messages import Entry, Report, WorkerWait, encode
from vidflow.domain.scenario import RetryPolicy
from vidflow.domain.topics import RESULTS, RUNNER_EVENTS
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import leader_tables
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.lease import LEADER_LEASE, acquire
from vidflow.infra.postgres.lease_holder import Lease
from vidflow.roles.orchestrator.leader import Leader
from vidflow.roles.orchestrator.listener import LeaderListener, Topic

AIM_MS = 20.0
SHARE_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", default="0,1000,10000,100000,1000000")
    parser.add_argument("--engaged", default="10,100,1000")
    parser.add_argument("--runners", default="1,10,1000")
    parser.add_argument("--ticks", type=int, default=40)
    parser.add_argument("--share", action="store_true")
    args = parser.parse_args()
    with servers() as (url, settings), connect(url, name="bench") as connection:
        if args.share:
            measure_cpu_share(url, settings, connection)
            return
        print(f"{'waiting':>9} {'engaged':>8} {'runners':>8} {'tick ms':>8} {'p95':>6} {'CPU ms':>7}")
        for waiting, engaged in itertools.product(numbers(args.waiting), numbers(args.engaged)):
            fill(connection, waiting, engaged)
            for runners in numbers(args.runners):
                tick_ms, cpu_ms = measure_ticks(url, connection, runners, args.ticks)
                print(
                    f"{waiting:>9} {engaged:>8} {runners:>8} {median(tick_ms):>8.1f} {quantiles(tick_ms, n=20)[-1]:>6.1f}"
                    f" {median(cpu_ms):>7.1f}"
                )


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def fill(connection: Connection, waiting: int, engaged: int) -> None:
    connection.execute("TRUNCATE scenarios, scenario_progress, lease, runners")
    for count, state, epoch in ((waiting, "init_startup", 0), (engaged, "active", 1)):
        connection.execute(
            """
            WITH created AS (
                INSERT INTO scenarios (source, model, fps, state, epoch, runner)
                SELECT 'http://a/b.mp4', 'motion', 'all', %(state)s, %(epoch)s, CASE WHEN %(epoch)s > 0 THEN 'r' END
                  FROM generate_series(1, %(count)s)
             RETURNING scenario_uuid)
            INSERT INTO scenario_progress (scenario_uuid, epoch)
            SELECT scenario_uuid, %(epoch)s FROM created
            """,
            {"count": count, "state": state, "epoch": epoch},
        )
    connection.execute("VACUUM (ANALYZE) scenarios, scenario_progress")


def reports(connection: Connection, runners: int) -> list[Report]:
    """Distribute the engaged scenarios over the runners. Return each runner's report; no runner has a free slot."""
    uuids = [
        uuid
        for (uuid,) in connection.execute("SELECT scenario_uuid::text FROM scenarios WHERE state = 'active'").fetchall()
    ]
    names = [f"runner-{number}" for number in range(runners)]
    assigned = {name: sorted(uuids[number::runners]) for number, name in enumerate(names)}
    for name, own_uuids in assigned.items():
        connection.execute("UPDATE scenarios SET runner = %s WHERE scenario_uuid = ANY (%s::uuid[])", (name, own_uuids))
    connection.execute("VACUUM (ANALYZE) scenarios")
    return [
        report_of(name, 1, tuple(Entry(uuid, 1, 5, WorkerWait.SOURCE) for uuid in own_uuids))
        for name, own_uuids in assigned.items()
    ]


def report_of(runner: str, number: int, entries: tuple[Entry, ...]) -> Report:
    return Report(
        runner=runner, pool="default", number=number, capacity=len(entries), taken=0, draining=False, entries=entries
    )


class SimulatedListener(LeaderListener):
    """A listener without Kafka: each runner has reported since the last tick, and nothing is new."""

    def __init__(self, simulated: list[Report]) -> None:
        self._simulated = simulated

    @override
    def take_reports(self) -> list[tuple[Report, float]]:
        return [(report, time.monotonic()) for report in self._simulated]

    @override
    def probes_ok_since(self, now_s: float) -> float:
        return now_s - 100

    @property
    @override
    def results_topic(self) -> Topic:
        return Topic(RESULTS, "id", (0,))


def measure_ticks(url: str, connection: Connection, runners: int, count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each tick, and those of this process's CPU time."""
    listener = SimulatedListener(reports(connection, runners))
    holder = uuid4()
    term = acquire(connection, LEADER_LEASE, holder)
    assert term is not None
    lease = Lease(url, LEADER_LEASE, holder, term, time.monotonic())
    renewing = threading.Thread(target=lambda: lease.renew_until_over(connection))
    renewing.start()
    tick_ms, cpu_ms = [], []
    with connect(url, name="vidflow leader reads") as reads:
        leader = Leader(lease, listener, reads, attempts=5)
        for number in range(count + 3):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            leader.tick()
            if number >= 3:
                tick_ms.append((time.perf_counter() - began_s) * 1000)
                cpu_ms.append((time.process_time() - began_cpu_s) * 1000)
    lease.close()
    renewing.join()
    connection.execute("TRUNCATE lease")
    return tick_ms, cpu_ms


def measure_cpu_share(url: str, settings: KafkaSettings, connection: Connection) -> None:
    fill(connection, 100_000, 100)
    simulated = reports(connection, 10)
    environment = {**os.environ, "VIDFLOW_DATABASE_URL": url, "VIDFLOW_KAFKA": settings.bootstrap}
    producer = clients.create_producer(settings, client_id="simulated-runners")
    with subprocess.Popen([sys.executable, "-m", "vidflow", "orchestrator"], env=environment) as process:
        try:
            until_s = time.monotonic() + 10 + SHARE_S
            began_s, began_cpu_s = 0.0, 0.0
            number = 0
            while time.monotonic() < until_s:
                number += 1
                for report in simulated:
                    value = encode(report_of(report.runner, number, report.entries))
                    producer.produce(RUNNER_EVENTS, value, key=report.runner)
                producer.flush(5)
                if not began_s and time.monotonic() > until_s - SHARE_S:
                    began_s, began_cpu_s = time.monotonic(), cpu_s(process.pid)
                time.sleep(1)
            share = (cpu_s(process.pid) - began_cpu_s) / (time.monotonic() - began_s)
        finally:
            process.kill()
    waiting = len(leader_tables.read_queue_head(connection, {"default": 1}, RetryPolicy()))
    assert waiting == 1
    print(f"orchestrator: {share * 100:.1f} % of a core with 100,000 waiting, 100 engaged and 10 runners (aim: 5 %)")


if __name__ == "__main__":
    main()
