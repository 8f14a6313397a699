"""Execute a program that ends with its parent. This file is run as a script by its path and is never imported.

Usage: exec.py SIGNAL PARENT USER CAPABILITY PROGRAM [ARGUMENT…]. The program gets SIGNAL when the process with the pid PARENT ends.
USER is `uid:gid`, or `-` for no change. CAPABILITY is the number of the only capability to keep across the change of user, or `-`.

A script is used instead of `preexec_fn`, because the parent has threads: between fork and exec, a copy of such a process may
only run async-signal-safe code. The script imports only the standard library and starts in about 20 ms without site-packages.
The death signal is set after the change of user, which clears it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_SECUREBITS: Final = 28
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
# Keeps the capability across setuid and in access(2), which otherwise drops all capabilities of a user other than root.
_SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522


def main(arguments: list[str]) -> None:
    """Change the user, set the death signal, and execute the program. Raises OSError if the system rejects a step."""
    number, parent, user, capability, *program = arguments
    if user != "-":
        uid, gid = map(int, user.split(":"))
        _change_user(uid, gid, None if capability == "-" else int(capability))
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, int(number))
    else:
        _watch(int(parent), int(number))
    if os.getppid() != int(parent):  # the parent ended before the death signal was set
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - without a shell on purpose


def _change_user(uid: int, gid: int, capability: int | None) -> None:
    if capability is not None:
        _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if capability is not None:
        _keep_only(capability)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _keep_only(capability: int) -> None:
    """Drop all capabilities but one. capset (linux/capability.h) takes a header and two words of each of three sets."""
    low, high = 1 << capability & 0xFFFFFFFF, 1 << capability >> 32
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, *values: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)][:4]
    if libc.prctl(option, *words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _watch(parent: int, number: int) -> None:
    """Fork a small process in its own session that waits until the parent or the program ends. For macOS and BSD; untested.

    It is forked twice, so that it is not a child of the program.
    """
    program = os.getpid()
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        return
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    os.closerange(0, 1024)  # release the pipes and locks inherited from the program
    queue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
    exits = [
        select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)  # type: ignore[attr-defined,unused-ignore]
        for pid in (parent, program)
    ]
    try:
        ended = queue.control(exits, 1)[0].ident
    except ProcessLookupError:
        ended = parent
    if ended == parent:
        os.kill(program, signal.Signals(number))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
