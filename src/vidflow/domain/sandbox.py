"""What a process that reads hostile bytes may do: which variables it inherits, and which files, sockets and descriptors it may use.

These are decisions about names only. infra/process/sandbox.py enforces them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

SandboxMode = Literal["auto", "require", "off"]
"""Whether a runner confines its workers: as far as the system can, completely or not at all, or never."""

VARIABLES: Final = frozenset({
    "HOME", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOGNAME", "NO_PROXY", "PATH", "SSL_CERT_DIR",
    "SSL_CERT_FILE", "TEMP", "TMP", "TMPDIR", "TZ", "TZDIR", "USER", "XDG_CACHE_HOME", "http_proxy", "https_proxy", "no_proxy",
})  # fmt: skip
VARIABLE_PREFIXES: Final = (
    "BLIS_", "COVERAGE_", "CUBLAS_", "CUDA_", "CUDNN_", "GLIBC_", "GOMP_", "KMP_", "KRB5", "LC_", "MALLOC_", "MKL_", "NVIDIA_", "OMP_",
    "ONNXRUNTIME_", "OPENBLAS_", "ORT_", "PYTHON", "PYTORCH_", "TORCH_",
)  # fmt: skip
"""What the libraries of a worker read: where things are, how many threads to use, which devices. Only the URL of a proxy may have a
password: torchvision fetches weights through it."""

WORKER_OPEN_FILES: Final = 1024
INFERENCE_OPEN_FILES: Final = 8192
"""A shared model has a connection and two regions of memory for each lane of each worker."""


class Access(enum.Enum):
    """What may be done with a file, or with everything in a folder."""

    LIST = "list"
    """See the names of what is in a folder."""
    READ = "read"
    WRITE = "write"
    """Also read, create and remove."""
    DEVICE = "device"
    """Read, write and control a device."""


class Grant(msgspec.Struct, frozen=True):
    """A file or folder that may be used. A path that does not exist grants nothing."""

    path: str
    access: Access = Access.READ


class Permissions(msgspec.Struct, frozen=True):
    """What a process may do from now on.

    `unix_sockets`: connect to servers of this machine by a path. `network`: connect to others. `open_files`: the most descriptors.
    """

    grants: tuple[Grant, ...]
    unix_sockets: bool
    network: bool
    open_files: int


class Installation(msgspec.Struct, frozen=True):
    """What the programs of this machine need, whatever they work on.

    `programs`: folders of Python, its packages and libraries. `settings`: files and folders that a library reads, such as certificates.
    `cache`: the user's cache. `weights`: the folder into which torchvision fetches weights. `gpus`: the device files of GPUs.
    `gpu_folders`: folders that a GPU's libraries write.
    """

    programs: tuple[str, ...]
    settings: tuple[str, ...]
    cache: str
    weights: str
    gpus: tuple[str, ...] = ()
    gpu_folders: tuple[str, ...] = ()


SYSTEM: Final = (
    "/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store",
    # /proc shows little of other processes: a confined process cannot trace them, which their environment and memory require.
    "/proc",
    "/sys/bus", "/sys/class", "/sys/devices", "/sys/fs/cgroup", "/sys/kernel/mm", "/sys/module",
    "/dev/random", "/dev/urandom", "/dev/zero",
    "/etc/alternatives", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/gai.conf", "/etc/host.conf", "/etc/hosts",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/nvidia", "/etc/passwd", "/etc/pki/ca-trust", "/etc/pki/tls",
    "/etc/protocols", "/etc/resolv.conf", "/etc/services", "/etc/ssl/cert.pem", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/timezone",
)  # fmt: skip
"""What programs read on every Linux. Nothing in /etc that may hold a secret."""


def inherited_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that a confined process inherits: those of its libraries, without anything of vidflow's."""
    return {
        name: value for name, value in environment.items() if name in VARIABLES or name.startswith(VARIABLE_PREFIXES)
    }


def plan_permissions(
    installation: Installation,
    *,
    files: Iterable[str],
    models_dir: str | None,
    network: bool,
    open_files: int = WORKER_OPEN_FILES,
    camera: bool = False,
    weights: bool = False,
    plugin: bool = False,
    gpu: bool = False,
    local_servers: bool = False,
) -> Permissions:
    """Return what a process may do that reads these files.

    `models_dir`: the folder of models, in which it finds its own by name. `camera`: it opens a camera of this machine. `weights`:
    torchvision fetches its model's weights. `plugin`: its model belongs to another package, which may read all files beside its spec
    and in the user's cache. `gpu`: its model may run on a GPU. `local_servers`: it connects to a server of this machine by a path.
    """
    has_gpu = gpu and bool(installation.gpus)
    grants = [Grant(path) for path in (*SYSTEM, *installation.programs, *installation.settings, *files)]
    grants.append(Grant("/dev/null", Access.DEVICE))
    if models_dir is not None:
        grants.append(Grant(models_dir, Access.READ if plugin else Access.LIST))
    if has_gpu:
        grants += [Grant(path, Access.DEVICE) for path in installation.gpus]
        grants += [Grant(path, Access.WRITE) for path in installation.gpu_folders]
    if camera:  # not the device itself: one that is plugged in again is another file
        grants.append(Grant("/dev", Access.DEVICE))
    if weights:
        grants.append(Grant(installation.weights, Access.WRITE))
    if plugin:
        grants.append(Grant(installation.cache))
    return Permissions(tuple(grants), local_servers or has_gpu, network, open_files)


def choose_program_folders(
    entries: Iterable[str], working_folder: str, home: str, named: Iterable[str]
) -> tuple[str, ...]:
    """Return the entries of sys.path that a confined process may read.

    `named`: those that the operator has named in PYTHONPATH. The working folder is an entry only because Python was started there, and
    an entry that contains the home folder would grant all of it.
    """
    kept = set(named)
    return tuple(
        entry
        for entry in entries
        if entry.startswith("/")
        and (entry != working_folder or entry in kept)
        and not f"{home.rstrip('/')}/".startswith(f"{entry.rstrip('/')}/")
    )


def describe_missing(missing: Mapping[str, str]) -> str:
    """Return what a system lacks in one line: each feature with the reason."""
    return "; ".join(f"{feature}: {reason}" for feature, reason in sorted(missing.items()))


def is_looked_up_locally(host: str) -> bool:
    """Return whether a host's name is looked up through a service of this machine (mDNS), to which a process connects by a path."""
    return host.lower().rstrip(".").endswith(".local") and host.rstrip(".").count(".") == 1
