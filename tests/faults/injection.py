"""The faults: whom they strike, which processes that are just now, and the blow itself. For people and tests who break a vidflow."""

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
from tests.integration.processes import children, descendants, is_alive
from tests.integration.server_owner import wait_until

FIND_LIMIT_S: Final = 60.0
GRACE_S: Final = {"runner": 30.0, "machine": 30.0}
DEFAULT_GRACE_S: Final = 10.0
LEADER_CONNECTION_NAME: Final = "vidflow leader reads"
"""What an orchestrator calls the connection that it opens once it leads."""


class Victim(StrEnum):
    """Who is struck. `machine` is a runner with its workers: a host that stands still or loses its power."""

    API = "api"
    INBOX = "inbox"
    RELAY = "relay"
    LEADER = "leader"
    STANDBY = "standby"
    RUNNER = "runner"
    WORKER = "worker"
    MACHINE = "machine"
    POSTGRES = "postgres"
    KAFKA = "kafka"


class Fault(StrEnum):
    """What befalls it. A `term` is what an orchestrator of containers does: SIGTERM, and SIGKILL after the grace time."""

    KILL = "kill"
    FREEZE = "freeze"
    TERM = "term"


def wait_for_victim(parts: Processes, victim: Victim, chance: random.Random) -> list[int]:
    """The processes of the victim; waits until there is one."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = find_victim(parts, victim, chance)
        return bool(found)

    wait_until(is_there, f"there is a {victim} to be struck", FIND_LIMIT_S)
    return found


def find_victim(parts: Processes, victim: Victim, chance: random.Random) -> list[int]:
    """The processes of the victim, parents first, as far as there is one just now. Of several that are alike, chance picks."""
    try:
        return _processes(parts, victim, chance)
    except psycopg.OperationalError:  # who leads is not to be told
        return []


def inject(fault: Fault, victim: Victim, pids: list[int], freeze_s: float) -> float | None:
    """Strikes, and returns when the fault itself is over: the blow's moment (monotonic), None where nobody was there any more."""
    alive, struck_s = [pid for pid in pids if is_alive(pid)], time.monotonic()
    match fault:
        case Fault.KILL:
            _send(signal.SIGKILL, alive)
        case Fault.FREEZE:
            with frozen(alive):
                threading.Event().wait(freeze_s)
        case Fault.TERM:
            _end(alive[:1], GRACE_S.get(victim, DEFAULT_GRACE_S))
    return struck_s if alive else None


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Lets the processes stand still, those that they have begun meanwhile too."""
    _send(signal.SIGSTOP, pids)
    try:
        yield
    finally:
        _send(signal.SIGCONT, reversed(pids))


def leader_pids(parts: Processes) -> list[int]:
    """The orchestrators at the other end of a connection that only a leader has; the newest first.

    Raises psycopg.OperationalError where the database cannot be asked.
    """
    with psycopg.connect(parts.database_url, connect_timeout=2) as tables:
        ports = tables.execute(
            "SELECT client_port FROM pg_stat_activity WHERE application_name = %s ORDER BY backend_start DESC",
            (LEADER_CONNECTION_NAME,),
        ).fetchall()
    return [pid for (port,) in ports for pid in parts.pids()["orchestrator"] if _inode_of(port) in _sockets(pid)]


def workers_of(runner: int) -> list[int]:
    """The children of a runner's forkservers."""
    return [worker for forkserver in children(runner) for worker in children(forkserver)]


def _processes(parts: Processes, victim: Victim, chance: random.Random) -> list[int]:
    pids = parts.pids()
    match victim:
        case Victim.LEADER:
            return leader_pids(parts)[:1]
        case Victim.STANDBY:
            leading = leader_pids(parts)[:1]
            return [pid for pid in pids["orchestrator"] if leading and pid not in leading][:1]
        case Victim.WORKER:
            return sorted(worker for runner in pids["runner"] for worker in workers_of(runner))[-1:]  # the youngest
        case Victim.RUNNER:
            return _choose_one(_with_workers(pids["runner"]), chance)
        case Victim.MACHINE:
            return [
                each for pid in _choose_one(_with_workers(pids["runner"]), chance) for each in (pid, *descendants(pid))
            ]
        case Victim.POSTGRES:
            return [each for pid in pids["postgres"] for each in (pid, *descendants(pid))]
        case _:
            return _choose_one(pids[victim], chance)


def _with_workers(runners: list[int]) -> list[int]:
    """Those that have workers, or all where none has."""
    return [runner for runner in runners if workers_of(runner)] or runners


def _choose_one(pids: list[int], chance: random.Random) -> list[int]:
    return [chance.choice(sorted(pids))] if pids else []


def _end(pids: list[int], grace_s: float) -> None:
    _send(signal.SIGTERM, pids)
    try:
        wait_until(lambda: not any(map(is_alive, pids)), "they have ended", grace_s)
    except AssertionError:
        _send(signal.SIGKILL, pids)


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _inode_of(port: int) -> str:
    """The socket of this machine that is bound to the port at its own end."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port:
            return f"socket:[{words[9]}]"
    return ""


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(file.readlink()))
    return found
