"""Preloaded once by the runner's forkserver: everything that is slow to import except torch, so that workers start with it.

Nothing here may create a thread, a client or a GPU context: those do not survive the fork of a worker.
"""

from __future__ import annotations

import contextlib
import importlib
import signal

_HEAVY = ("confluent_kafka", "numpy", "scipy.ndimage", "av", "vidflow.infra.models.ort")


def _load() -> None:
    # A SIGTERM to the whole process group is meant for the runner, which ends its workers in an orderly way.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ModuleNotFoundError):  # the first worker that needs a missing module reports it
        importlib.import_module("vidflow.roles.worker.main")
        importlib.import_module("vidflow.roles.inference.main")


_load()
