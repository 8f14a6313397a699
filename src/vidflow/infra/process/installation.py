"""What a confined process needs of this machine's programs: Python's folders, certificates, caches and the device files of GPUs."""

from __future__ import annotations

import functools
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import vidflow
from vidflow.domain.sandbox import Installation, choose_program_folders

_GPU_DEVICES: Final = ("nvidia*", "nvhost*", "nvmap", "dxg", "dri")
"""Device files of NVIDIA's drivers: on a server or desktop, on a Jetson and in WSL."""

_SHALLOW: Final = 2
"""Parts of a path such as /run or /etc, the root among them."""


@functools.cache
def find_installation() -> Installation:
    """Return what this machine's programs need."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises for a user without one
    cache = os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    gpus = tuple(str(path) for pattern in _GPU_DEVICES for path in sorted(Path("/dev").glob(pattern)))
    compiled = os.environ.get("CUDA_CACHE_PATH") or f"{home}/.nv/ComputeCache"
    return Installation(
        programs=tuple(dict.fromkeys(_list_program_folders(home))),
        settings=tuple(dict.fromkeys(_list_settings())),
        cache=cache,
        weights=f"{os.environ.get('TORCH_HOME') or f'{cache}/torch'}/hub",
        gpus=gpus,
        gpu_folders=(compiled, *_list_shared_folders()) if gpus else (),
    )


def _list_shared_folders() -> Iterator[str]:
    """Yield the folders through which processes share a GPU: its memory, and NVIDIA's multi-process service if that runs."""
    yield "/dev/shm"  # noqa: S108 - shared memory
    service = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"  # noqa: S108 - its default
    if Path(service).is_dir():
        yield service


def _list_program_folders(home: str) -> Iterator[str]:
    named = [
        folder for name in ("PYTHONPATH", "LD_LIBRARY_PATH") for folder in os.environ.get(name, "").split(os.pathsep)
    ]
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, str(Path(vidflow.__file__).parent))
    folders = choose_program_folders([*sys.path, *named], os.getcwd(), home, named)  # noqa: PTH109
    yield from folders
    yield from (target for folder in folders for target in _list_linked(folder))


def _list_linked(folder: str) -> Iterator[str]:
    """Yield the targets of links in a folder of packages: some installers link packages from a cache instead of copying them."""
    try:
        targets = [os.path.realpath(entry.path) for entry in os.scandir(folder) if entry.is_symlink()]
    except OSError:  # not a folder, such as an archive of modules
        return
    yield from (target for target in targets if len(Path(target).parts) > _SHALLOW)


def _list_settings() -> Iterator[str]:
    """Yield the certificates of OpenSSL, and the folder of a resolver's settings that are a link: they are replaced by others there.

    A folder such as /run has more than that in it.
    """
    paths = ssl.get_default_verify_paths()
    candidates = (
        paths.cafile, paths.capath, paths.openssl_cafile, paths.openssl_capath,
        os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"),
    )  # fmt: skip
    yield from (path for path in candidates if path)
    resolver = Path("/etc/resolv.conf").resolve()
    if len(resolver.parent.parts) > _SHALLOW:
        yield str(resolver.parent)
