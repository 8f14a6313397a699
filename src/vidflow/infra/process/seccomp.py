"""seccomp: give up system calls that no worker needs and that an attacker in one would use. Needs Linux 3.17, and no privileges.

A refused call fails with EPERM. The filter is a program for the kernel's classic BPF machine, which sees a call's number and the values
of its arguments, but not what they point to: docs.kernel.org/userspace-api/seccomp_filter.html.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

Instruction = tuple[int, int, int, int]
"""Code, jumps if true and if false, and value of an instruction, as in the kernel's struct sock_filter."""

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_TSYNC: Final = 1
"""Apply the filter to all threads of the process."""
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW: Final = 0x7FFF_0000
ERROR: Final = 0x0005_0000
KILL: Final = 0x8000_0000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
"""Places in the kernel's struct seccomp_data. Each argument has 8 bytes, of which the lower half is compared: both architectures are
little-endian, and the kernel takes these arguments as 32 bits."""
_X32: Final = 0x4000_0000
"""Calls with this bit have other structures and would be another way around the filter."""
_CLONE_THREAD: Final = 0x0001_0000
_CLONE_NEW: Final = 0x7E02_0000
"""The flags of clone for namespaces."""
_INSERTING_IOCTLS: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type into the terminal that a runner was started from."""
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE: Final = 0

_DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # another program, or another process in disguise
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    # who may use a file, and when it was changed: Landlock does not know about these
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None), "fchown": (93, 55),
    "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "file_setattr": (469, 469),
    # memory and messages that other processes of this user have under a number, and the priority of such processes
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    # parts of the kernel in which errors were found again and again
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "personality": (135, 92),
    "modify_ldt": (154, None), "lookup_dcookie": (212, 18),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58),
}  # fmt: skip
"""Refused calls, with their numbers on x86_64 and on aarch64."""


class Architecture(msgspec.Struct, frozen=True):
    """An architecture's name for auditing, and the numbers of the calls that the filter knows.

    `denied` are refused. A `clone` may only start a thread. `clone3` does not exist, so that the C library uses clone. `kill` and
    `tgkill` may only name this process, and so may `prlimit64`. A `socket` must be of an allowed family.
    """

    audit: int
    seccomp: int
    denied: tuple[int, ...]
    clone: int
    clone3: int
    kill: int
    tgkill: int
    prlimit64: int
    socket: int
    ioctl: int
    has_x32: bool = False


def _list_denied(column: int) -> tuple[int, ...]:
    return tuple(number for numbers in _DENIED.values() if (number := numbers[column]) is not None)


ARCHITECTURES: Final = {
    "x86_64": Architecture(0xC000_003E, 317, _list_denied(0), 56, 435, 62, 234, 302, 41, 16, has_x32=True),
    "aarch64": Architecture(0xC000_00B7, 277, _list_denied(1), 220, 435, 129, 131, 261, 198, 29),
}


def find_fault() -> str | None:
    """Return why this process cannot use a filter, None if it can."""
    if sys.platform != "linux":
        return "needs Linux"
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        return f"no filter for {platform.machine()}"
    action = ctypes.c_uint32(ERROR)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(architecture.seccomp, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) < 0:
        return os.strerror(ctypes.get_errno())
    return None


def build_filter(architecture: Architecture, pid: int, *, unix_sockets: bool, network: bool) -> tuple[Instruction, ...]:
    """Return the filter's program for the process `pid`. `unix_sockets` and `network`: the sockets that it may open."""
    families = [
        *([_AF_UNIX] if unix_sockets else []),
        *([_AF_INET, _AF_INET6] if network else []),
    ]
    return (
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *(((_GREATER_OR_EQUAL, 0, 1, _X32), _fail()) if architecture.has_x32 else ()),
        *(step for number in architecture.denied for step in ((_EQUAL, 0, 1, number), _fail())),
        (_EQUAL, 0, 1, architecture.clone3),
        _fail(errno.ENOSYS),
        *_on(architecture.clone, _check_clone()),
        *_on(architecture.kill, _require(0, (pid,))),
        *_on(architecture.tgkill, _require(0, (pid,))),
        *_on(architecture.prlimit64, _require(0, (0, pid))),
        *_on(architecture.ioctl, _refuse(1, _INSERTING_IOCTLS)),
        *_on(architecture.socket, _check_socket(families, network=network)),
        (_RETURN, 0, 0, ALLOW),
    )


def install_filter(*, unix_sockets: bool, network: bool) -> None:
    """Apply the filter to all threads of this process, for good. Raises OSError."""
    architecture = ARCHITECTURES[platform.machine()]
    program = build_filter(architecture, os.getpid(), unix_sockets=unix_sockets, network=network)
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(architecture.seccomp, _SET_MODE_FILTER, _TSYNC, described):
        number = ctypes.get_errno() or errno.EAGAIN
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _fail(number: int = errno.EPERM) -> Instruction:
    return (_RETURN, 0, 0, ERROR | number)


def _load_argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)


def _on(number: int, check: Iterable[Instruction]) -> Iterator[Instruction]:
    """Yield a check for one call, which is skipped for others. The check returns in every case."""
    steps = tuple(check)
    yield (_EQUAL, 0, len(steps), number)
    yield from steps


def _require(index: int, values: Iterable[int]) -> Iterator[Instruction]:
    """Yield a check that an argument has one of these values."""
    yield _load_argument(index)
    for value in values:
        yield from ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, ALLOW))
    yield _fail()


def _refuse(index: int, values: Iterable[int]) -> Iterator[Instruction]:
    """Yield a check that an argument has none of these values."""
    yield _load_argument(index)
    for value in values:
        yield from ((_EQUAL, 0, 1, value), _fail())
    yield (_RETURN, 0, 0, ALLOW)


def _check_clone() -> Iterator[Instruction]:
    """Yield a check that a thread is started, in no other namespace."""
    yield _load_argument(0)
    yield from ((_ANY_BIT, 0, 1, _CLONE_NEW), _fail())
    yield from ((_ANY_BIT, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, ALLOW))
    yield _fail()


def _check_socket(families: Iterable[int], *, network: bool) -> Iterator[Instruction]:
    """Yield a check of a socket's family. With a network, the C library asks the kernel for this machine's addresses by netlink."""
    if network:
        yield _load_argument(0)
        yield (_EQUAL, 0, 4, _AF_NETLINK)
        yield _load_argument(2)
        yield from ((_EQUAL, 0, 1, _NETLINK_ROUTE), (_RETURN, 0, 0, ALLOW))
        yield _fail()
    yield from _require(0, families)
