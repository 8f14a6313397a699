"""Measure how long `vidflow dev` takes to become ready with Kafka's jars cached, by steps and CPU, compared with a bare broker.

    python bench/ready.py [--runs 5]

Each run starts with an empty data folder. The baseline is a lower bound: formatting, starting and querying the same broker, with
nothing else running.
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
    "command started": ("dev", "creating Kafka's data folder"),
    "PostgreSQL's data created": ("dev", "starting PostgreSQL"),
    "PostgreSQL answers": ("dev", "applying"),
    "schema applied": ("dev", "starting api"),
    "api listens": ("api", "listening"),
    "Kafka's data created": ("dev", "starting Kafka"),
    "topics created": ("dev", "created the topics"),
    "relay owns its shards": ("relay", "shards_owned"),
    "orchestrator leads": ("orchestrator", "lease_acquired"),
    "runner ready": ("runner", "runner_ready"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    broker_s, reached_s, used_s = [], [], []
    for _ in range(args.runs):
        broker_s.append(bare_broker_s())
        with stack() as running:
            used_s.append(
                {name: sum(map(all_cpu_s, pids)) for name, pids in processes_by_role(running.process.pid).items()}
            )
            reached_s.append(
                {name: first_line_s(running, *step) for name, step in STEPS.items()} | {"ready": running.ready_s}
            )
    print(f"{platform.platform()}, {os.cpu_count()} cores, {args.runs} runs; seconds since the start")
    print(f"{'':24}{'median':>8}{'min':>8}{'max':>8}")
    for name in [*STEPS, "ready"]:
        show(name, [run[name] for run in reached_s])
    show("bare broker", broker_s)
    print(f"{'CPU until ready':24}{'median':>8}{'min':>8}{'max':>8}")
    for name in used_s[0]:
        show(name, [run.get(name, 0.0) for run in used_s])
    show("all", [sum(run.values()) for run in used_s])
    ratios = [run["ready"] / bare for run, bare in zip(reached_s, broker_s, strict=True)]
    print(f"ready / bare broker: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def first_line_s(running: DevProcess, name: str, text: str) -> float:
    """Return when the process `name` first printed a line with this text."""
    return next(seconds for seconds, process, line in running.lines if process == name and text in line)


def all_cpu_s(pid: int) -> float:
    return cpu_s(pid, with_ended=True)


def bare_broker_s() -> float:
    """Return the seconds until a broker alone answers, starting with an empty folder."""
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
