"""What a tick of the leader costs, by how many scenarios wait and are engaged and how many runners report.

python bench/leader.py [--waiting 0,1000,10000,100000,1000000] [--engaged 10,100,1000] [--runners 1,10,1000] [--ticks 40] [--share]

A tick here finds nothing to do, as nearly every tick does: all that is engaged is reported as running, and no slot is free. The reports
are simulated: nothing comes through Kafka. "CPU" is this process's; the server's part is in the duration alone.

`--share` measures a whole orchestrator instead, with Kafka, and the reports of simulated runners: its share of a core at 100,000
waiting and 100 engaged.
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

from servers import servers
from stack import cpu_s
from vidflow.domain.messages import RESULTS, RUNNER_EVENTS, Entry, Report, WorkerWait, encode
from vidflow.domain.scenario import RetryPolicy
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import leader_tables
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.lease import Lease, acquire
from vidflow.roles.orchestrator.leader import Leader
from vidflow.roles.orchestrator.listener import Topic

AIM_MS = 20.0
SHARE_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", default="0,1000,10000,100000,1000000")
    parser.add_argument("--engaged", default="10,100,1000")
    parser.add_argument("--runners", default="1,10,1000")
    parser.add_argument("--ticks", type=int, default=40)
    parser.add_argument("--share", action="store_true")
    given = parser.parse_args()
    with servers() as (url, settings), connect(url, name="bench") as tables:
        if given.share:
            measure_cpu_share(url, settings, tables)
            return
        print(f"{'waiting':>9} {'engaged':>8} {'runners':>8} {'tick ms':>8} {'p95':>6} {'CPU ms':>7}")
        for waiting, engaged in itertools.product(numbers(given.waiting), numbers(given.engaged)):
            fill(tables, waiting, engaged)
            for runners in numbers(given.runners):
                took, cpu = measure_ticks(url, tables, runners, given.ticks)
                print(
                    f"{waiting:>9} {engaged:>8} {runners:>8} {median(took):>8.1f} {quantiles(took, n=20)[-1]:>6.1f} {median(cpu):>7.1f}"
                )


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def fill(tables: Connection, waiting: int, engaged: int) -> None:
    tables.execute("TRUNCATE scenarios, scenario_progress, lease, runners")
    for count, state, epoch in ((waiting, "init_startup", 0), (engaged, "active", 1)):
        tables.execute(
            """
            WITH born AS (
                INSERT INTO scenarios (source, model, fps, state, epoch, runner)
                SELECT 'http://a/b.mp4', 'motion', 'all', %(state)s, %(epoch)s, CASE WHEN %(epoch)s > 0 THEN 'r' END
                  FROM generate_series(1, %(count)s)
             RETURNING scenario_uuid)
            INSERT INTO scenario_progress (scenario_uuid, epoch)
            SELECT scenario_uuid, %(epoch)s FROM born
            """,
            {"count": count, "state": state, "epoch": epoch},
        )
    tables.execute("VACUUM (ANALYZE) scenarios, scenario_progress")


def reports(tables: Connection, runners: int) -> list[Report]:
    """The engaged, dealt out to the runners, each as its runner reports it; no runner has a slot left."""
    uuids = [
        uuid
        for (uuid,) in tables.execute("SELECT scenario_uuid::text FROM scenarios WHERE state = 'active'").fetchall()
    ]
    names = [f"runner-{number}" for number in range(runners)]
    dealt = {name: sorted(uuids[number::runners]) for number, name in enumerate(names)}
    for name, mine in dealt.items():
        tables.execute("UPDATE scenarios SET runner = %s WHERE scenario_uuid = ANY (%s::uuid[])", (name, mine))
    tables.execute("VACUUM (ANALYZE) scenarios")
    return [
        report_of(name, 1, tuple(Entry(uuid, 1, 5, WorkerWait.SOURCE) for uuid in mine)) for name, mine in dealt.items()
    ]


def report_of(runner: str, number: int, entries: tuple[Entry, ...]) -> Report:
    return Report(
        runner=runner, pool="default", number=number, capacity=len(entries), taken=0, draining=False, entries=entries
    )


class FakeHearing:
    """Stands for the hearing: each runner has reported since the last tick, and nothing is new."""

    def __init__(self, reports: list[Report]) -> None:
        self._reports = reports
        self.results = Topic(RESULTS, "id", (0,))

    def reports(self) -> list[tuple[Report, float]]:
        return [(report, time.monotonic()) for report in self._reports]

    def hearing_since(self, now_s: float) -> float:
        return now_s - 100

    def wait(self, _seconds: float) -> bool:
        return False


def measure_ticks(url: str, tables: Connection, runners: int, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds that each tick takes, and of this process's CPU."""
    given = reports(tables, runners)
    holder = uuid4()
    term = acquire(tables, "leader", holder)
    assert term is not None
    lease = Lease(url, "leader", holder, term, time.monotonic())
    renewing = threading.Thread(target=lambda: lease.renew_until_over(tables))
    renewing.start()
    took, cpu = [], []
    with connect(url, name="vidflow leader reads") as reads:
        leader = Leader(lease, FakeHearing(given), reads, attempts=5)  # type: ignore[arg-type]
        for number in range(count + 3):
            began, used = time.perf_counter(), time.process_time()
            leader.tick()
            if number >= 3:
                took.append((time.perf_counter() - began) * 1000)
                cpu.append((time.process_time() - used) * 1000)
    lease.close()
    renewing.join()
    tables.execute("TRUNCATE lease")
    return took, cpu


def measure_cpu_share(url: str, settings: KafkaSettings, tables: Connection) -> None:
    fill(tables, 100_000, 100)
    given = reports(tables, 10)
    environment = {**os.environ, "VIDFLOW_DATABASE_URL": url, "VIDFLOW_KAFKA": settings.bootstrap}
    producer = clients.create_producer(settings, client_id="simulated-runners")
    with subprocess.Popen([sys.executable, "-m", "vidflow", "orchestrator"], env=environment) as process:
        try:
            until = time.monotonic() + 10 + SHARE_S
            began, used = 0.0, 0.0
            number = 0
            while time.monotonic() < until:
                number += 1
                for report in given:
                    value = encode(report_of(report.runner, number, report.entries))
                    producer.produce(RUNNER_EVENTS, value, key=report.runner)
                producer.flush(5)
                if not began and time.monotonic() > until - SHARE_S:
                    began, used = time.monotonic(), cpu_s(process.pid)
                time.sleep(1)
            spent = (cpu_s(process.pid) - used) / (time.monotonic() - began)
        finally:
            process.kill()
    still = len(leader_tables.read_queue_head(tables, {"default": 1}, RetryPolicy()))
    assert still == 1
    print(f"orchestrator: {spent * 100:.1f} % of a core with 100,000 waiting, 100 engaged and 10 runners (aim: 5 %)")


if __name__ == "__main__":
    main()
