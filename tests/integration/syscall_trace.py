"""What a program and all that it starts do with the network and with files, as the kernel sees it: strace, where there is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

_CALLS = "socket,connect,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
_INET = re.compile(r"sin6?_port=htons\((?P<port>\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"(?P<address>[^\"]+)\"")
_PATH = re.compile(r"(?:<(?P<folder>[^>]*)>, )?\"(?P<path>[^\"]*)\"")
_CHANGES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT")
_LOOK_UPS = {"/etc/resolv.conf", "/etc/hosts"}
"""Files that the C library, Java and others read before they look a name up: even where it then is found without a question."""


class SyscallTrace:
    """The trace of a program that has ended."""

    def __init__(self, trace: Path) -> None:
        self.connections: set[tuple[str, int]] = set()
        self.datagrams: list[str] = []
        self.name_lookups: list[str] = []
        self.changed_paths: set[Path] = set()
        for line in trace.read_text(errors="replace").splitlines():
            self._take(line)

    def _take(self, line: str) -> None:
        call = line.partition(" ")[2].lstrip()
        if call.startswith("connect("):
            if inet := _INET.search(call):
                self.connections.add((inet["address"].removeprefix("::ffff:"), int(inet["port"])))
        elif call.startswith("socket("):
            if "AF_INET" in call and "SOCK_STREAM" not in call:
                self.datagrams.append(line)
        elif "(" in call and not call.startswith(("<", "+", "-")):
            self._take_file(call)

    def _take_file(self, call: str) -> None:
        opens = call.startswith("open")
        paths = [Path(found["folder"] or "", found["path"]) for found in _PATH.finditer(call.partition(" = ")[0])]
        if opens and paths and str(paths[0]) in _LOOK_UPS:
            self.name_lookups.append(call)
        if not opens or _CHANGES.search(call):
            # A relative path without its folder is below the working directory of a server, where what it names was opened.
            self.changed_paths.update(path for path in paths if path.is_absolute())

    def changes_outside(self, allowed: Sequence[Path]) -> list[Path]:
        """Where something was made or changed that is in none of these folders."""
        return sorted(path for path in self.changed_paths if not any(path.is_relative_to(one) for one in allowed))


def start_traced(
    trace: Path, command: Sequence[str | Path], environment: Mapping[str, str], **more: object
) -> subprocess.Popen[str]:
    """Start a program under observation. Its own process is the child of the one that is returned."""
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-s", "4096", "-o", str(trace), "-e", f"trace={_CALLS}"]
    return subprocess.Popen([*strace, *map(str, command)], env={**os.environ, **environment}, text=True, **more)  # type: ignore[call-overload,no-any-return]


def require_strace(folder: Path) -> None:
    """Skip the test where nothing can be observed."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    trace = folder / "probe"
    probe = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    if (
        start_traced(trace, [sys.executable, "-c", probe], {}).wait()
        or ("127.0.0.1", 9) not in SyscallTrace(trace).connections
    ):
        pytest.skip("strace cannot observe here")
