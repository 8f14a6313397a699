"""Imported once by the runner's forkserver: what takes a worker long to import, so that each worker starts with it. Not torch.

Nothing here makes a thread, a client or a GPU context: those do not survive the fork that makes a worker.
"""

from __future__ import annotations

import contextlib
import importlib
import signal

_HEAVY = ("confluent_kafka", "numpy", "scipy.ndimage", "av", "vidflow.infra.models.ort")


def _load() -> None:
    # A supervisor that ends a whole group of processes means the runner, which ends its workers in order.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ModuleNotFoundError):  # what is missing is told by the first worker that needs it
        importlib.import_module("vidflow.roles.worker.main")


_load()
