"""Starts and ends the programs that belong to this process and die with it. What the programs are is not its matter.

The kernel sends the death signal when the *thread* that forked is gone, not the process. So all children are started by one
thread that lives as long as the process does, whichever thread asks for them.
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
"""Where the sentences of a long step go: what is done, and how far it is."""

POLL_S: Final = 0.01  # how often a server that starts is asked; nothing tells when it is ready
_LOG_LIMIT_BYTES: Final = 10_000_000
_EXEC: Final = Path(__file__).with_name("exec.py")
_forking_thread: Final = ThreadPoolExecutor(1, thread_name_prefix="parent-of-children")


class StartCancelled(VidflowError):
    """A start was given up because a stop was asked for."""

    default_code = "given_up"


class Account(msgspec.Struct, frozen=True):
    """Whom a child runs as. `capability` is the number of the one it keeps to reach private folders, None mostly."""

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
    """Starts a program in a session of its own, out of reach of the terminal's Ctrl-C.

    It gets `death_signal` when this process ends, however that ends. Standard output and error go to `output`, and
    the file descriptors `keep_open` stay open in it. `environment` is set beside this process's own.
    """
    user = f"{account.uid}:{account.gid}" if account else "-"
    capability = str(account.capability) if account and account.capability is not None else "-"
    become = [sys.executable, "-I", "-S", str(_EXEC), str(int(death_signal)), str(os.getpid()), user, capability]

    def fork() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*become, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            pass_fds=keep_open,
            start_new_session=True,
        )

    return _forking_thread.submit(fork).result()


def stop_child(process: subprocess.Popen[bytes], number: signal.Signals, grace_s: float) -> int:
    """Asks a child to end, waits for at most `grace_s`, then kills it and all of its session; returns its exit code."""
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
    """Runs a program that ends by itself. Raises Unavailable with the end of its log where it fails or takes too long."""
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
    """Yields until the caller sees that the program is ready and leaves the loop.

    Raises Unavailable, with the end of its log, where it ends before (unless it `may_end`) or is not ready in
    `limit_s`, and GivenUp at a stop.
    """
    until = time.monotonic() + limit_s
    while not stop.requested:
        if process.poll() is not None and not may_end:
            raise Unavailable(f"{label} ended with exit code {process.returncode}: {tail(log)}")
        yield
        if time.monotonic() > until:
            raise Unavailable(f"{label} was not ready within {limit_s:.0f} s: {tail(log)}")
        stop.wait(POLL_S)
    raise StartCancelled(f"{label} was given up: a stop was asked for")


def log_file(path: Path) -> IO[bytes]:
    """A child's log, open to be written on; begun anew where it has grown past 10 MB."""
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.unlink()
    return path.open("ab")


def tail(path: Path, lines: int = 5) -> str:
    """The last lines of a child's log, in one line, and where the rest of it is."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            last = log.read().decode(errors="replace").strip().splitlines()[-lines:]
    except OSError as error:
        return f"no log ({error})"
    return " | ".join(line.strip() for line in last) + f" (log: {path})"


def find_free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_listening(port: int) -> bool:
    """Whether somebody takes connections at this port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def choose_ports(file: Path, count: int, requested: Sequence[int] = ()) -> list[int]:
    """The ports of a server: those given, else the ones of last time if they are free, else new ones. Remembers them."""
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
    """The account for a program that refuses to run as root; None where this process is not root.

    A virtual environment or data in a folder that only root may enter is out of that account's reach: it then keeps one
    capability, to read and search. Raises SetupError where there is no such account, or root itself may not give that.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise SetupError(
            f"PostgreSQL refuses to run as root, and this machine has no user {name} to run it as"
        ) from error
    account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    closed = [path for path in must_reach if not _may_reach(account, path)]
    return msgspec.structs.replace(account, capability=_capability_to_reach(account, closed[0])) if closed else account


def _may_reach(account: Account, path: Path) -> bool:
    return all(_may_enter(account, folder.stat()) for folder in path.resolve().parents)


def _may_enter(account: Account, folder: os.stat_result) -> bool:
    if folder.st_uid == account.uid:
        return bool(folder.st_mode & 0o100)
    return bool(folder.st_mode & (0o010 if folder.st_gid == account.gid else 0o001))


def _capability_to_reach(account: Account, path: Path) -> int:
    """Reading and searching is less than overriding all, but is not what a container usually has."""
    held = _capabilities()
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        if {capability, _CAP_SETPCAP} <= held:
            return capability
    raise SetupError(
        f"PostgreSQL refuses to run as root, and as the user {account.name} it cannot reach {path}: "
        "start vidflow as an ordinary user, or open the folders above it to all (chmod o+x)"
    )


def _capabilities() -> set[int]:
    """The numbers of the capabilities that this process has; none on a system without them."""
    status = Path("/proc/self/status")
    if not status.exists():
        return set()
    words = dict(line.split(":", 1) for line in status.read_text().splitlines())
    mask = int(words["CapEff"], 16)
    return {number for number in range(mask.bit_length()) if mask >> number & 1}
