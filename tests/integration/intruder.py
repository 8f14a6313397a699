"""Code of an attacker, for tests: it runs inside a real worker when the worker opens its source, and tries what a worker must not do.

`install` writes this module as sitecustomize, which every Python process with that folder in its PYTHONPATH imports at startup. What
each attempt gave comes back as the labels of the first frame: "refused", or what it got.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any

SOURCE = "hostile.mp4"
TARGETS = "targets.json"
REFUSED = "refused"
LABEL_CHARACTERS = 200
_REFUSALS = {errno.EPERM, errno.EACCES, errno.EPIPE, errno.ECONNRESET}


def install(folder: Path, targets: dict[str, str], *, harmless: bool = False) -> dict[str, str]:
    """Write the attacker and its targets to the folder. Return the environment variables that give them to a process.

    `harmless`: try only what leaves no trace, for a worker in which it succeeds.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"{Path(__file__).read_text()}\n_attack_when_a_source_is_opened()\n")
    (folder / TARGETS).write_text(json.dumps({"targets": targets, "harmless": harmless}))
    return {"PYTHONPATH": str(folder)}


def _attack_when_a_source_is_opened() -> None:
    if not {"vidflow", "forkserver"} & set(" ".join(sys.orig_argv).replace(".", " ").split()):
        return
    import av  # noqa: PLC0415
    import msgspec  # noqa: PLC0415

    from vidflow.domain.detections import Detection  # noqa: PLC0415
    from vidflow.roles.worker import infer  # noqa: PLC0415

    outcomes: list[str] = []
    real_open, real_detect = av.open, infer.detect

    def open_source(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file).endswith(SOURCE) and not outcomes:
            outcomes.extend(_attack(str(file)))
        return real_open(file, *arguments, **options)

    def detect(*arguments: Any) -> Iterator[Any]:
        for frame in real_detect(*arguments):
            found = [Detection(text[:LABEL_CHARACTERS], 0.5, (0.0, 0.0, 8.0, 8.0)) for text in outcomes]
            outcomes.clear()
            yield msgspec.structs.replace(frame, detections=(*found, *frame.detections))

    av.open, infer.detect = open_source, detect  # type: ignore[assignment]


def _attack(source: str) -> Iterator[str]:
    """Yield the name of each attempt and what it gave."""
    task = json.loads(Path(__file__).with_name(TARGETS).read_text())
    targets = task["targets"]
    runner = _parent_of(os.getppid())
    attempts: dict[str, Callable[[], object]] = {
        **{name: _bind(path, lambda path: Path(path).read_bytes()) for name, path in targets.items() if "read" in name},
        **{name: _bind(path, _connect_by_path) for name, path in targets.items() if "connect" in name},
        "start a process by the forkserver": _start_a_process_by_the_forkserver,
        "read the environment of the runner": lambda: Path(f"/proc/{runner}/environ").read_bytes(),
        "read the environment of the forkserver": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "write into the memory of the runner": lambda: _open_for_writing(f"/proc/{runner}/mem"),
        "see what the runner has open": Path(f"/proc/{runner}/fd/1").readlink,
    }
    harmful: dict[str, Callable[[], object]] = {
        "write a file": lambda: Path(source).with_name("new").write_text("x"),
        "write a temporary file": lambda: Path("/tmp/intruder").write_text("x"),
        "change the source": lambda: _open_for_writing(source),
        "shorten the source": lambda: os.truncate(source, 0),
        "remove the source": lambda: Path(source).unlink(),
        "change who may read the source": lambda: Path(source).chmod(0o777),
        "see the folder of the source": lambda: list(Path(source).parent.iterdir()),
        "see the home folder": lambda: list(Path(os.environ["HOME"]).iterdir()),
        "run a shell": lambda: subprocess.run(["/bin/sh", "-c", "true"], check=True),
        "run a program in its place": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "fork": os.fork,
        "signal the runner": lambda: os.kill(runner, 0),
        "signal the forkserver": lambda: os.kill(os.getppid(), 0),
        "signal every process": lambda: os.kill(-1, 0),
        "limit the runner": lambda: resource.prlimit(runner, resource.RLIMIT_NOFILE),
        "raise its own limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100_000, 100_000)),
        "trace the runner": lambda: _call("ptrace", 16, runner, 0, 0),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "open a socket of packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "open a socket of audit": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9),
        "load a program into the kernel": lambda: _call_number(321, 280, 0, 0, 0),
        "use io_uring": lambda: _call_number(425, 425, 8, ctypes.create_string_buffer(256)),
        "make a namespace of users": lambda: _call("unshare", 0x1000_0000),
        "make a namespace of mounts": lambda: _call("unshare", 0x0002_0000),
        "mount": lambda: _call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "use keyrings": lambda: _call_number(250, 219, 0, -3, 1),
        "watch pages": lambda: _call_number(323, 282, 1),
        "change its personality": lambda: _call("personality", 0x0040000),
        "read the log of the kernel": lambda: _call_number(103, 116, 3, ctypes.create_string_buffer(64), 64),
    }
    for name, attempt in (attempts if task["harmless"] else attempts | harmful).items():
        yield f"{name}: {_outcome(attempt)}"
    yield f"variables: {','.join(sorted(_secret_names()))}"
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kept = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    yield f"capabilities: {int(status['CapPrm'], 16) & ~kept:x}"
    yield f"core dump: {resource.getrlimit(resource.RLIMIT_CORE)}"
    yield f"see the root folder on another thread: {_in_a_thread(lambda: list(Path('/').iterdir()))}"
    yield f"signal the runner on another thread: {_in_a_thread(lambda: os.kill(runner, 0))}"


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        return f"got {attempt()!r}"
    except OSError as error:
        return REFUSED if error.errno in _REFUSALS else f"{type(error).__name__} {error}"
    except EOFError:
        return REFUSED
    except ValueError as error:  # resource.setrlimit
        return REFUSED if "not allowed" in str(error) else str(error)


def _in_a_thread(attempt: Callable[[], object]) -> str:
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(_outcome(attempt)))
    thread.start()
    thread.join()
    return outcomes[0]


def _open_for_writing(path: str) -> str:
    with Path(path).open("r+b") as file:
        return f"{path} {file.mode}"


def _start_a_process_by_the_forkserver() -> int:
    """Ask as the runner does, and return the id of the new process."""
    server: Any = forkserver._forkserver
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server._forkserver_address)
        (status, child_status), (child_task, task) = os.pipe(), os.pipe()
        try:
            reduction.sendfds(connection, [child_task, child_status, child_task, child_task])
        finally:
            for descriptor in (child_status, child_task, task):
                os.close(descriptor)
    with open(status, "rb"):  # noqa: PTH123 - a file descriptor
        return int(forkserver.read_signed(status))


def _bind(path: str, attempt: Callable[[str], object]) -> Callable[[], object]:
    return lambda: attempt(path)


def _connect_by_path(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _call(name: str, *arguments: Any) -> int:
    return _check(getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments))


def _call_number(x86_64: int, aarch64: int, *arguments: Any) -> int:
    number = x86_64 if os.uname().machine == "x86_64" else aarch64
    return _check(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _secret_names() -> set[str]:
    """Return the names of variables that a worker does not need, in its own environment."""
    recorded = Path("/proc/self/environ").read_bytes().decode().split("\0")
    names = {entry.partition("=")[0] for entry in recorded} | set(os.environ)
    return {name for name in names if name.startswith(("VIDFLOW", "AWS", "GOOGLE", "AZURE", "PG", "SECRET"))}
