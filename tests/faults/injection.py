"""Faults: find the processes of a victim, and kill, freeze or terminate them. Also used by bench/recovery.py."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import psycopg
from tests.faults.system_under_test import Processes
from tests.integration.processes import children, descendants, is_alive, name_of
from tests.integration.server_owner import wait_until

from vidflow.roles.inference.start import PROCESS_NAME

FIND_LIMIT_S: Final = 60.0
GRACE_S: Final = {"runner": 30.0, "machine": 30.0}
DEFAULT_GRACE_S: Final = 10.0
LEADER_CONNECTION_NAME: Final = "vidflow leader reads"
"""The application_name of a connection that an orchestrator opens only while it leads."""


class Victim(StrEnum):
    """The processes that a fault is injected into. `machine` is a runner with its workers: a host that hangs or loses power."""

    API = "api"
    INBOX = "inbox"
    RELAY = "relay"
    LEADER = "leader"
    STANDBY = "standby"
    RUNNER = "runner"
    WORKER = "worker"
    INFERENCE = "inference"
    MACHINE = "machine"
    POSTGRES = "postgres"
    KAFKA = "kafka"


class Fault(StrEnum):
    """The kinds of faults. `term` is what a container orchestrator does: SIGTERM, then SIGKILL after the grace period."""

    KILL = "kill"
    FREEZE = "freeze"
    TERM = "term"


def wait_for_victim(processes: Processes, victim: Victim, chance: random.Random) -> list[int]:
    """Return the pids of the victim. Waits until it exists."""
    pids: list[int] = []

    def is_found() -> bool:
        pids[:] = find_victim(processes, victim, chance)
        return bool(pids)

    wait_until(is_found, f"a {victim} exists", FIND_LIMIT_S)
    return pids


def find_victim(processes: Processes, victim: Victim, chance: random.Random) -> list[int]:
    """Return the pids of the victim, parents first, or an empty list if it does not exist now. `chance` picks among equals."""
    try:
        return _processes(processes, victim, chance)
    except psycopg.OperationalError:  # the leader cannot be determined
        return []


def inject(fault: Fault, victim: Victim, pids: list[int], freeze_s: float) -> float | None:
    """Inject the fault and return once it is over.

    Returns the time of the injection (monotonic seconds), or None if the processes did not exist any more.
    """
    alive, injected_s = [pid for pid in pids if is_alive(pid)], time.monotonic()
    match fault:
        case Fault.KILL:
            _send(signal.SIGKILL, alive)
        case Fault.FREEZE:
            with frozen(alive):
                threading.Event().wait(freeze_s)
        case Fault.TERM:
            _end(alive[:1], GRACE_S.get(victim, DEFAULT_GRACE_S))
    return injected_s if alive else None


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Freeze the processes while the block runs."""
    _send(signal.SIGSTOP, pids)
    try:
        yield
    finally:
        _send(signal.SIGCONT, reversed(pids))


def leader_pids(processes: Processes) -> list[int]:
    """Return the pids of the orchestrators that hold a leader's connection, the newest connection first.

    Raises psycopg.OperationalError if the database cannot be reached.
    """
    with psycopg.connect(processes.database_url, connect_timeout=2) as connection:
        ports = connection.execute(
            "SELECT client_port FROM pg_stat_activity WHERE application_name = %s ORDER BY backend_start DESC",
            (LEADER_CONNECTION_NAME,),
        ).fetchall()
    return [pid for (port,) in ports for pid in processes.pids()["orchestrator"] if _inode_of(port) in _sockets(pid)]


def workers_of(runner: int) -> list[int]:
    """Return the pids of a runner's workers, which are children of its forkservers."""
    return [child for child in _forked_by(runner) if name_of(child) != PROCESS_NAME]


def inference_processes_of(runner: int) -> list[int]:
    """Return the pids of a runner's inference processes, which are children of its forkservers too."""
    return [child for child in _forked_by(runner) if name_of(child) == PROCESS_NAME]


def _forked_by(runner: int) -> list[int]:
    return [child for forkserver in children(runner) for child in children(forkserver)]


def _processes(processes: Processes, victim: Victim, chance: random.Random) -> list[int]:
    pids = processes.pids()
    match victim:
        case Victim.LEADER:
            return leader_pids(processes)[:1]
        case Victim.STANDBY:
            leaders = leader_pids(processes)[:1]
            return [pid for pid in pids["orchestrator"] if leaders and pid not in leaders][:1]
        case Victim.WORKER:
            return sorted(worker for runner in pids["runner"] for worker in workers_of(runner))[-1:]  # the youngest
        case Victim.INFERENCE:
            runners = [runner for runner in pids["runner"] if workers_of(runner)]
            return _choose_one([pid for runner in runners for pid in inference_processes_of(runner)], chance)
        case Victim.RUNNER:
            return _choose_one(_with_workers(pids["runner"]), chance)
        case Victim.MACHINE:
            runners = _choose_one(_with_workers(pids["runner"]), chance)
            return [pid for runner in runners for pid in (runner, *descendants(runner))]
        case Victim.POSTGRES:
            return [pid for server in pids["postgres"] for pid in (server, *descendants(server))]
        case _:
            return _choose_one(pids[victim], chance)


def _with_workers(runners: list[int]) -> list[int]:
    """Return the runners that have workers, or all if none has."""
    return [runner for runner in runners if workers_of(runner)] or runners


def _choose_one(pids: list[int], chance: random.Random) -> list[int]:
    return [chance.choice(sorted(pids))] if pids else []


def _end(pids: list[int], grace_s: float) -> None:
    _send(signal.SIGTERM, pids)
    try:
        wait_until(lambda: not any(map(is_alive, pids)), "the processes have ended", grace_s)
    except AssertionError:
        _send(signal.SIGKILL, pids)


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _inode_of(port: int) -> str:
    """Return the socket, as /proc/PID/fd names it, whose local end is bound to the port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            return f"socket:[{fields[9]}]"
    return ""


def _sockets(pid: int) -> set[str]:
    sockets = set()
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(str(file.readlink()))
    return sockets
