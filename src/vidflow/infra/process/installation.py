"""What a confined process needs of this machine's programs: Python's folders, certificates, caches and the device files of GPUs."""

from __future__ import annotations

import contextlib
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


@functools.cache
def find_installation() -> Installation:
    """Return what this machine's programs need. Nothing is created."""
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
        gpu_folders=(compiled, "/dev/shm") if gpus else (),  # noqa: S108 - shared memory
    )


def prepare_weights_folder() -> None:
    """Create the folder into which torchvision fetches weights, which a confined process could not. Does nothing where it may not."""
    with contextlib.suppress(OSError):
        Path(find_installation().weights).mkdir(parents=True, exist_ok=True)


def _list_program_folders(home: str) -> Iterator[str]:
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, str(Path(vidflow.__file__).parent))
    yield from choose_program_folders(sys.path, os.getcwd(), home, named)  # noqa: PTH109
    yield from filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))


def _list_settings() -> Iterator[str]:
    """Yield the certificates of OpenSSL, and the folder of a resolver's settings that are a link: they are replaced by others there."""
    paths = ssl.get_default_verify_paths()
    candidates = (
        paths.cafile, paths.capath, paths.openssl_cafile, paths.openssl_capath,
        os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"),
    )  # fmt: skip
    yield from (path for path in candidates if path)
    resolver = Path("/etc/resolv.conf").resolve()
    if resolver.parent != Path("/etc"):
        yield str(resolver.parent)
