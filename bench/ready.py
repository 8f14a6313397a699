"""How long `vidflow dev` takes to be ready, Kafka's jars cached: its steps and their CPU, beside a bare broker.

    python bench/ready.py [--runs 5]

Each run begins with an empty data folder. The baseline is what no vidflow can undercut: the same broker, formatted, started
and asked, with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from stack import DevProcess, cpu_s, processes_by_role, stack
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.process.stopping import Stop

STEPS = {
    "the command runs": ("dev", "making Kafka's data folder"),
    "PostgreSQL's data made": ("dev", "starting PostgreSQL"),
    "PostgreSQL answers": ("dev", "applying"),
    "schema applied": ("dev", "starting api"),
    "api listens": ("api", "listening"),
    "Kafka's data made": ("dev", "starting Kafka"),
    "topics made": ("dev", "created the topics"),
    "relay owns its shards": ("relay", "shards_owned"),
    "orchestrator leads": ("orchestrator", "lease_acquired"),
    "runner ready": ("runner", "runner_ready"),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    given = arguments.parse_args()
    broker_s, done, used_s = [], [], []
    for _ in range(given.runs):
        broker_s.append(bare_broker_s())
        with stack() as running:
            used_s.append(
                {name: sum(map(all_cpu_s, pids)) for name, pids in processes_by_role(running.process.pid).items()}
            )
            done.append(
                {name: first_said_s(running, *said) for name, said in STEPS.items()} | {"ready": running.ready_s}
            )
    print(f"{platform.platform()}, {os.cpu_count()} cores, {given.runs} runs; seconds since the start")
    print(f"{'':24}{'median':>8}{'least':>8}{'most':>8}")
    for name in [*STEPS, "ready"]:
        show(name, [one[name] for one in done])
    show("bare broker", broker_s)
    print(f"{'CPU until then':24}{'median':>8}{'least':>8}{'most':>8}")
    for name in used_s[0]:
        show(name, [one.get(name, 0.0) for one in used_s])
    show("all", [sum(one.values()) for one in used_s])
    ratios = [one["ready"] / bare for one, bare in zip(done, broker_s, strict=True)]
    print(f"ready / bare broker: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def first_said_s(running: DevProcess, name: str, words: str) -> float:
    """When `name` said the words first."""
    return next(seconds for seconds, who, line in running.lines if who == name and words in line)


def all_cpu_s(pid: int) -> float:
    return cpu_s(pid, with_ended=True)


def bare_broker_s() -> float:
    """Seconds until a broker alone answers, from an empty folder."""
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        broker = EmbeddedKafka(Path(folder), notify=lambda _: None, stop=Stop())
        began_s = time.perf_counter()
        try:
            broker.start()
            return time.perf_counter() - began_s
        finally:
            broker.stop()


def show(name: str, seconds: list[float]) -> None:
    print(f"{name:24}{statistics.median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}")


if __name__ == "__main__":
    main()
