"""What a vidflow costs that has nothing to do: CPU and memory of each of its processes, beside one that only imports the clients.

    python bench/idle.py [--seconds 30] [--settle 10]

Linux only: it reads /proc. CPU is of one core. `resident` counts what is shared with others in full, `own` counts such a page
once among all that share it.
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
    """Of one part: how many processes, their CPU in %, their memory in MB."""

    processes: int
    cpu: float
    resident: float
    own: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=30.0)
    arguments.add_argument("--settle", type=float, default=10.0, help="seconds between ready and the measurement")
    given = arguments.parse_args()
    with stack() as running, subprocess.Popen([sys.executable, "-c", CLIENTS], stdout=subprocess.PIPE) as clients:
        assert clients.stdout is not None
        clients.stdout.readline()
        time.sleep(given.settle)
        parts = processes_by_role(running.process.pid)
        costs = measure(parts | {"only the clients": [clients.pid]}, given.seconds)
        clients.kill()
    print(f"{platform.platform()}, {os.cpu_count()} cores, {given.seconds:g} s with nothing to do")
    print(f"{'':20}{'processes':>10}{'CPU %':>8}{'resident MB':>13}{'own MB':>8}")
    for name, cost in costs.items():
        show(name, cost)
    show("all of vidflow's", total(cost for name, cost in costs.items() if name in parts and name not in SERVERS))


def measure(parts: dict[str, list[int]], seconds: float) -> dict[str, Cost]:
    before = {name: sum(map(cpu_s, pids)) for name, pids in parts.items()}
    began_s = time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - began_s
    return {
        name: Cost(
            len(pids),
            100 * (sum(map(cpu_s, pids)) - before[name]) / took_s,
            sum(memory_mb(pid, "Rss") for pid in pids),
            sum(memory_mb(pid, "Pss") for pid in pids),
        )
        for name, pids in parts.items()
    }


def memory_mb(pid: int, kind: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024 / 1e6


def total(costs: Iterable[Cost]) -> Cost:
    given = list(costs)
    return Cost(
        sum(c.processes for c in given),
        sum(c.cpu for c in given),
        sum(c.resident for c in given),
        sum(c.own for c in given),
    )


def show(name: str, cost: Cost) -> None:
    print(f"{name:20}{cost.processes:>10}{cost.cpu:>8.1f}{cost.resident:>13.0f}{cost.own:>8.0f}")


if __name__ == "__main__":
    main()
