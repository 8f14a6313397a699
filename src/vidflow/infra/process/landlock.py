"""Landlock: give up all access to files but to those that are granted. Needs Linux 5.13, and no privileges.

What is not granted fails with EACCES. The calling thread gives it up, and every thread and process that it starts later; other
threads do not. docs.kernel.org/userspace-api/landlock.html describes the calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterable
from typing import Final

from vidflow.domain.sandbox import Access, Grant

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The numbers of the system calls, which are the same on all architectures."""
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(13, 16))
_FILE_RIGHTS: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The rights that a rule for a file, not a folder, may have."""
_RIGHTS: Final = {
    Access.LIST: READ_DIR,
    Access.READ: READ_FILE | READ_DIR,
    Access.WRITE: READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | REMOVE_FILE | REMOVE_DIR | MAKE_REG | MAKE_DIR,
    Access.DEVICE: READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV,
}
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2


def find_version() -> int:
    """Return the version of Landlock's interface, 0 if this system has no Landlock or does not let this process use it."""
    if sys.platform != "linux":
        return 0
    version: int = ctypes.CDLL(None, use_errno=True).syscall(
        _CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION)
    )
    return max(version, 0)


def build_ruleset(version: int, *, network: bool, unix_sockets: bool) -> bytes:
    """Return the kernel's landlock_ruleset_attr with everything that this version can take away.

    No process may accept TCP connections. `network`: it may open them. `unix_sockets`: it may connect to abstract names of this machine.
    """
    newest = {1: MAKE_SYM, 2: REFER, 3: TRUNCATE, 4: TRUNCATE}.get(version, IOCTL_DEV)
    files = (newest << 1) - 1
    if version < 4:
        return struct.pack("=Q", files)
    sockets = _BIND_TCP if network else _BIND_TCP | _CONNECT_TCP
    if version < 6:
        return struct.pack("=QQ", files, sockets)
    scopes = _SCOPE_SIGNALS if unix_sockets else _SCOPE_SIGNALS | _SCOPE_ABSTRACT_SOCKETS
    return struct.pack("=QQQ", files, sockets, scopes)


def choose_rights(access: Access, version: int, *, is_folder: bool) -> int:
    """Return the rights of a rule, without those that this version does not know or a file cannot have."""
    handled: int = struct.unpack_from("=Q", build_ruleset(version, network=True, unix_sockets=True))[0]
    return _RIGHTS[access] & handled & (~0 if is_folder else _FILE_RIGHTS)


def restrict(grants: Iterable[Grant], version: int, *, network: bool, unix_sockets: bool) -> None:
    """Give up the access to everything else. Call it before this process has a second thread. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = build_ruleset(version, network=network, unix_sockets=unix_sockets)
    ruleset = _check(
        libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)),
        "landlock_create_ruleset",
    )
    try:
        for grant in grants:
            _add_rule(libc, ruleset, grant, version)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        _check(libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _add_rule(libc: ctypes.CDLL, ruleset: int, grant: Grant, version: int) -> None:
    """Add a rule for a path, unless it cannot be reached or is no folder to be listed: then nothing is granted."""
    try:
        descriptor = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = choose_rights(grant.access, version, is_folder=stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if not rights:
            return
        rule = struct.pack("=Qi", rights, descriptor)
        _check(
            libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0)),
            "landlock_add_rule",
        )
    finally:
        os.close(descriptor)


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno() or errno.EINVAL
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
