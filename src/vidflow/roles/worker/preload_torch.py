"""Preloaded once by the runner's second forkserver: torch and everything in preload.py."""

from __future__ import annotations

import contextlib
import importlib

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)  # before torch runs anything: once two threads ran here, two threads in a child hang
    importlib.import_module("torchvision")

importlib.import_module("vidflow.roles.worker.preload")
