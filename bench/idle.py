"""Measure an idle vidflow: CPU and memory of each process, compared with a process that only imports the client libraries.

    python bench/idle.py [--seconds 30] [--settle 10]

Linux only: it reads /proc. CPU is in percent of one core. `resident` counts shared pages in full; `own` divides them among the
processes that share them.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stack import SERVERS, cpu_s, processes_by_role, stack

CLIENTS = "import psycopg, confluent_kafka, confluent_kafka.admin, msgspec, time; print(flush=True); time.sleep(1e6)"


@dataclass(frozen=True)
class Cost:
    """Number of processes of one part, their CPU in percent of a core, and their memory in MB."""

    processes: int
    cpu: float
    resident: float
    own: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--settle", type=float, default=10.0, help="seconds to wait between readiness and the measurement"
    )
    args = parser.parse_args()
    with stack() as running, subprocess.Popen([sys.executable, "-c", CLIENTS], stdout=subprocess.PIPE) as clients:
        assert clients.stdout is not None
        clients.stdout.readline()
        time.sleep(args.settle)
        parts = processes_by_role(running.process.pid)
        costs = measure(parts | {"clients only": [clients.pid]}, args.seconds)
        clients.kill()
    print(f"{platform.platform()}, {os.cpu_count()} cores, {args.seconds:g} s idle")
    print(f"{'':20}{'processes':>10}{'CPU %':>8}{'resident MB':>13}{'own MB':>8}")
    for name, cost in costs.items():
        show(name, cost)
    show("all of vidflow", total(cost for name, cost in costs.items() if name in parts and name not in SERVERS))


def measure(parts: dict[str, list[int]], seconds: float) -> dict[str, Cost]:
    began_cpu_s = {name: sum(map(cpu_s, pids)) for name, pids in parts.items()}
    began_s = time.perf_counter()
    time.sleep(seconds)
    elapsed_s = time.perf_counter() - began_s
    return {
        name: Cost(
            len(pids),
            100 * (sum(map(cpu_s, pids)) - began_cpu_s[name]) / elapsed_s,
            sum(memory_mb(pid, "Rss") for pid in pids),
            sum(memory_mb(pid, "Pss") for pid in pids),
        )
        for name, pids in parts.items()
    }


def memory_mb(pid: int, kind: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024 / 1e6


def total(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return Cost(
        sum(cost.processes for cost in costs),
        sum(cost.cpu for cost in costs),
        sum(cost.resident for cost in costs),
        sum(cost.own for cost in costs),
    )


def show(name: str, cost: Cost) -> None:
    print(f"{name:20}{cost.processes:>10}{cost.cpu:>8.1f}{cost.resident:>13.0f}{cost.own:>8.0f}")


if __name__ == "__main__":
    main()
