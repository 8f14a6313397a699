"""Confine this process to its permissions, as far as this system can: Landlock, seccomp, limits and capabilities.

Nothing of it can be undone, and no privileges are needed. domain/sandbox.py decides what is permitted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import struct
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from vidflow.domain.errors import SetupError
from vidflow.domain.sandbox import Access, Permissions, describe_missing
from vidflow.infra.process import landlock, seccomp

FEATURES: Final = ("landlock", "seccomp")
"""The parts that a system may lack."""
GUARD_MODULE: Final = "vidflow.infra.process.forkserver_guard"
"""The module that lets a forkserver start processes for its runner only. No other process imports it."""
MAX_FILE_BYTES: Final = 4 * 1024**3
"""Weights that torchvision fetches are smaller, as is the memory that is shared with an inference process, which counts as a file."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION: Final = 0x2008_0522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_KEPT_CAPABILITIES: Final = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH
"""A runner that root started reads the files of all users. Landlock decides which."""


def find_missing() -> dict[str, str]:
    """Return which of FEATURES this system lacks, or does not let this process use, each with the reason."""
    missing = {}
    if not landlock.find_version():
        missing["landlock"] = (
            "needs Linux 5.13 with Landlock in its list of security modules, and a container that allows its calls"
            if sys.platform == "linux"
            else "needs Linux"
        )
    if fault := seccomp.find_fault():
        missing["seccomp"] = fault
    return missing


def require_complete(missing: Mapping[str, str]) -> None:
    """Raise SetupError if the system lacks a feature."""
    if missing:
        raise SetupError(
            f"--sandbox require: this system cannot confine workers ({describe_missing(missing)}). Run on a system that can, or use "
            "--sandbox auto to go on without."
        )


def hide_memory(*, hidden: bool = True) -> None:
    """Let no other process of this user read this one's memory and environment. It writes no core dump either. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, int(not hidden), 0, 0, 0)


def require_guard() -> None:
    """Raise OSError if this process comes from a forkserver without GUARD_MODULE. A forkserver goes on if it cannot import a module."""
    if GUARD_MODULE not in sys.modules:
        raise OSError(errno.EPERM, "its forkserver starts processes for anyone")


def confine(permissions: Permissions, descriptors: Collection[int]) -> None:
    """Give up everything but the permissions, as far as the system has the features.

    Call it before this process has a second thread and reads anything hostile. `descriptors`: those that stay open besides the standard
    ones. Raises OSError if a feature that is not missing fails, or if there are other threads.
    """
    missing = find_missing()
    if sys.platform == "linux" and len(list(Path("/proc/self/task").iterdir())) > 1:
        raise OSError(errno.EBUSY, "it has several threads already, which Landlock would not confine")
    with contextlib.suppress(FileNotFoundError):
        tempfile.gettempdir()  # remembered: torch's import asks for it, and to find it a file is written
    _create_folders(permissions)
    _close_others({0, 1, 2, *descriptors})
    _lower_limits(permissions.open_files)
    hide_memory()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _drop_capabilities()
    if "landlock" not in missing:
        version = landlock.find_version()
        landlock.restrict(
            permissions.grants, version, network=permissions.network, unix_sockets=permissions.unix_sockets
        )
    if "seccomp" not in missing:
        seccomp.install_filter(unix_sockets=permissions.unix_sockets, network=permissions.network)


def _create_folders(permissions: Permissions) -> None:
    """Create the folders that may be written, where that is possible: a confined process could not."""
    for grant in permissions.grants:
        if grant.access is Access.WRITE:
            with contextlib.suppress(OSError):
                Path(grant.path).mkdir(parents=True, exist_ok=True)


def _close_others(kept: Collection[int]) -> None:
    """Close the descriptors that came from the forkserver: through them a process could be started that is not confined."""
    folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    for name in os.listdir(folder):  # noqa: PTH208 - the listing has a descriptor itself, which is closed before the loop
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _lower_limits(open_files: int) -> None:
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
    ):
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (limit, limit))


def _drop_capabilities() -> None:
    """Give up root's capabilities but for reading files. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    effective, permitted, _, *_ = struct.unpack("=6I", held.raw)
    kept = struct.pack("=6I", effective & _KEPT_CAPABILITIES, permitted & _KEPT_CAPABILITIES, 0, 0, 0, 0)
    if libc.capset(header, kept) < 0:
        raise OSError(ctypes.get_errno(), "capset")
