"""Start and stop child processes that end together with this process.

The kernel sends the death signal when the forking *thread* ends, not the process. So one thread, which lives as long as the
process, starts all children.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

import msgspec

from vidflow.domain.errors import SetupError, Unavailable, VidflowError
from vidflow.infra.process.stopping import Stop

Notify = Callable[[str], None]
"""Receives progress messages of a long step."""

POLL_S: Final = 0.01  # interval of readiness checks: a server does not report that it is ready
_LOG_LIMIT_BYTES: Final = 10_000_000
_EXEC: Final = Path(__file__).with_name("exec.py")
_forking_thread: Final = ThreadPoolExecutor(1, thread_name_prefix="fork-children")


class StartCancelled(VidflowError):
    """A start was cancelled by a stop request."""

    default_code = "given_up"


class Account(msgspec.Struct, frozen=True):
    """The user that a child runs as. `capability` is the number of a capability that it keeps to reach private folders."""

    name: str
    uid: int
    gid: int
    capability: int | None = None


def start_child(
    command: Sequence[str | Path],
    *,
    output: int | IO[bytes],
    death_signal: signal.Signals,
    environment: Mapping[str, str] | None = None,
    account: Account | None = None,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in its own session, so that the terminal's Ctrl-C does not reach it.

    It gets `death_signal` when this process ends in any way. Standard output and error go to `output`. The file descriptors in
    `keep_open` stay open in the child. `environment` is added to this process's environment.
    """
    user = f"{account.uid}:{account.gid}" if account else "-"
    capability = str(account.capability) if account and account.capability is not None else "-"
    launcher = [sys.executable, "-I", "-S", str(_EXEC), str(int(death_signal)), str(os.getpid()), user, capability]

    def fork() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*launcher, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            pass_fds=keep_open,
            start_new_session=True,
        )

    return _forking_thread.submit(fork).result()


def stop_child(process: subprocess.Popen[bytes], number: signal.Signals, grace_s: float) -> int:
    """Send a child the signal `number`. If it does not end within `grace_s`, kill its process group. Return its exit code."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def run_to_end(
    label: str, command: Sequence[str | Path], *, log: Path, stop: Stop, limit_s: float, account: Account | None = None
) -> None:
    """Run a program until it ends. `label` names it in errors.

    Raises Unavailable with the end of its log if it fails or takes longer than `limit_s`, StartCancelled on a stop.
    """
    with log_file(log) as output:
        process = start_child(command, output=output, death_signal=signal.SIGKILL, account=account)
    try:
        for _ in poll_until_ready(label, process, log, stop, limit_s, may_end=True):
            if process.poll() is not None:
                break
    finally:
        stop_child(process, signal.SIGKILL, grace_s=limit_s)
    if process.returncode != 0:
        raise Unavailable(f"{label} failed with exit code {process.returncode}: {tail(log)}")


def poll_until_ready(
    label: str, process: subprocess.Popen[bytes], log: Path, stop: Stop, limit_s: float, *, may_end: bool = False
) -> Iterator[None]:
    """Yield every POLL_S until the caller sees that the program is ready and leaves the loop.

    Raises Unavailable with the end of the program's log if it ends first (unless `may_end`) or is not ready within `limit_s`.
    Raises StartCancelled on a stop.
    """
    deadline_s = time.monotonic() + limit_s
    while not stop.requested:
        if process.poll() is not None and not may_end:
            raise Unavailable(f"{label} ended with exit code {process.returncode}: {tail(log)}")
        yield
        if time.monotonic() > deadline_s:
            raise Unavailable(f"{label} was not ready within {limit_s:.0f} s: {tail(log)}")
        stop.wait(POLL_S)
    raise StartCancelled(f"{label} was cancelled by a stop request.")


def log_file(path: Path) -> IO[bytes]:
    """Open a child's log for appending. A log of more than 10 MB is deleted first."""
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.unlink()
    return path.open("ab")


def tail(path: Path, lines: int = 5) -> str:
    """Return the last lines of a child's log and the path of the log, as one line."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            last_lines = log.read().decode(errors="replace").strip().splitlines()[-lines:]
    except OSError as error:
        return f"no log ({error})"
    return " | ".join(line.strip() for line in last_lines) + f" (log: {path})"


def find_free_ports(count: int) -> list[int]:
    """Return `count` different ports of the loopback interface that are free at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def choose_ports(file: Path, count: int, requested: Sequence[int] = ()) -> list[int]:
    """Return a server's ports and write them to `file`: the requested ones, or the last ones if they are free, or new ones."""
    ports = list(requested) or _read_last_ports(file)
    if len(ports) != count or (not requested and any(map(is_listening, ports))):
        ports = find_free_ports(count)
    file.write_text(" ".join(map(str, ports)) + "\n")
    return ports


def _read_last_ports(file: Path) -> list[int]:
    words = file.read_text().split() if file.exists() else []
    return [int(word) for word in words if word.isdecimal()]


_CAP_DAC_OVERRIDE: Final = 1
_CAP_DAC_READ_SEARCH: Final = 2
_CAP_SETPCAP: Final = 8


def unprivileged_account(name: str, must_reach: Sequence[Path]) -> Account | None:
    """Return an account for a program that refuses to run as root, None if this process does not run as root.

    If the account cannot reach one of the paths `must_reach`, such as a virtual environment in root's home, it keeps one capability
    that overrides read and search permissions. Raises SetupError if the account does not exist or root lacks that capability.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise SetupError(
            f"PostgreSQL refuses to run as root, and this machine has no user {name}. Start vidflow as an ordinary user."
        ) from error
    account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    blocked = [path for path in must_reach if not _may_reach(account, path)]
    if not blocked:
        return account
    return msgspec.structs.replace(account, capability=_capability_to_reach(account, blocked[0]))


def _may_reach(account: Account, path: Path) -> bool:
    return all(_may_enter(account, folder.stat()) for folder in path.resolve().parents)


def _may_enter(account: Account, folder: os.stat_result) -> bool:
    if folder.st_uid == account.uid:
        return bool(folder.st_mode & 0o100)
    return bool(folder.st_mode & (0o010 if folder.st_gid == account.gid else 0o001))


def _capability_to_reach(account: Account, path: Path) -> int:
    """Return CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE if root lacks it, as is usual in a container."""
    held = _capabilities()
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        if {capability, _CAP_SETPCAP} <= held:
            return capability
    raise SetupError(
        f"PostgreSQL refuses to run as root, and user {account.name} cannot reach {path}. "
        "Start vidflow as an ordinary user, or make the folders above it accessible (chmod o+x)."
    )


def _capabilities() -> set[int]:
    """Return the numbers of this process's effective capabilities, none on a system without capabilities."""
    status = Path("/proc/self/status")
    if not status.exists():
        return set()
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    mask = int(fields["CapEff"], 16)
    return {number for number in range(mask.bit_length()) if mask >> number & 1}
