"""Trace the network and file system calls of a program and its children with strace."""

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
_LOOKUP_FILES = {"/etc/resolv.conf", "/etc/hosts"}
"""Files that the C library, Java and others read before a name lookup, even if it needs no DNS query."""


class SyscallTrace:
    """The parsed trace of a program that has ended."""

    def __init__(self, file: Path) -> None:
        self.connections: set[tuple[str, int]] = set()
        self.datagrams: list[str] = []
        self.name_lookups: list[str] = []
        self.changed_paths: set[Path] = set()
        for line in file.read_text(errors="replace").splitlines():
            self._parse_line(line)

    def _parse_line(self, line: str) -> None:
        call = line.partition(" ")[2].lstrip()
        if call.startswith("connect("):
            if inet := _INET.search(call):
                self.connections.add((inet["address"].removeprefix("::ffff:"), int(inet["port"])))
        elif call.startswith("socket("):
            if "AF_INET" in call and "SOCK_STREAM" not in call:
                self.datagrams.append(line)
        elif "(" in call and not call.startswith(("<", "+", "-")):
            self._parse_file_call(call)

    def _parse_file_call(self, call: str) -> None:
        opens = call.startswith("open")
        paths = [Path(match["folder"] or "", match["path"]) for match in _PATH.finditer(call.partition(" = ")[0])]
        if opens and "O_PATH" not in call and paths and str(paths[0]) in _LOOKUP_FILES:  # which reads nothing
            self.name_lookups.append(call)
        if not opens or _CHANGES.search(call):
            # A relative path without a folder is in the working directory of a server, whose files are checked when it opens them.
            self.changed_paths.update(path for path in paths if path.is_absolute())

    def changes_outside(self, allowed: Sequence[Path]) -> list[Path]:
        """Return the created and changed paths outside the allowed folders."""
        return sorted(path for path in self.changed_paths if not any(path.is_relative_to(folder) for folder in allowed))


def start_traced(
    trace_file: Path, command: Sequence[str | Path], environment: Mapping[str, str], **options: object
) -> subprocess.Popen[str]:
    """Start a program under strace. The returned process is strace, and the program is its child."""
    strace = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-qq",
        "-s",
        "4096",
        "-o",
        str(trace_file),
        "-e",
        f"trace={_CALLS}",
    ]
    return subprocess.Popen([*strace, *map(str, command)], env={**os.environ, **environment}, text=True, **options)  # type: ignore[call-overload,no-any-return]


def require_strace(folder: Path) -> None:
    """Skip the test if strace is not installed or cannot trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace_file = folder / "probe"
    probe = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    if (
        start_traced(trace_file, [sys.executable, "-c", probe], {}).wait()
        or ("127.0.0.1", 9) not in SyscallTrace(trace_file).connections
    ):
        pytest.skip("strace cannot trace here")
