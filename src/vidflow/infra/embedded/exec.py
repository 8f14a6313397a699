"""Becomes another program, one that dies with its parent. Run by its path as a program of its own; nothing imports it.

Called as: exec.py SIGNAL PARENT USER CAPABILITY PROGRAM [ARGUMENT…], where SIGNAL is what the program gets when its parent is
gone, PARENT the parent's pid, USER `uid:gid` or `-` (stay who you are) and CAPABILITY the number of the one capability to keep
across the change of user, or `-`.

A program between the fork and the exec, rather than Python between them (`preexec_fn`): the parent has threads, and a
forked copy of a process with threads may run nothing but async-signal-safe code. It needs the standard library alone, and so
starts in some 20 ms, without site-packages. The order matters: a change of user clears the death signal that was asked for before it.
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
# The capability must outlive setuid, and count in access(2), which otherwise drops all of a user who is not root.
_SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522


def main(arguments: list[str]) -> None:
    """Changes the user, ties its life to the parent's, and becomes the program. Raises OSError where the system refuses."""
    number, parent, user, capability, *program = arguments
    if user != "-":
        uid, gid = map(int, user.split(":"))
        _become(uid, gid, None if capability == "-" else int(capability))
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, int(number))
    else:
        _watch(int(parent), int(number))
    if os.getppid() != int(parent):  # it went before it was watched
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - there is no shell, and none is wanted


def _become(uid: int, gid: int, capability: int | None) -> None:
    if capability is not None:
        _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if capability is not None:
        _keep_only(capability)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _keep_only(capability: int) -> None:
    """Gives up all capabilities but one (capset of linux/capability.h: a header, and two words of each of three sets)."""
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
    """The way of macOS and the BSDs, untested: a small process, its own session's, waits for the end of either of the two.

    Forked twice, so that the program finds no child of which it does not know.
    """
    program = os.getpid()
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        return
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    os.closerange(0, 1024)  # not the pipes and locks that the program holds
    queue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
    ends = [
        select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)  # type: ignore[attr-defined,unused-ignore]
        for pid in (parent, program)
    ]
    try:
        gone = queue.control(ends, 1)[0].ident
    except ProcessLookupError:
        gone = parent
    if gone == parent:
        os.kill(program, signal.Signals(number))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
