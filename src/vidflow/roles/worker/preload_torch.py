"""Imported once by the runner's second forkserver: torch, and all that the first one has (preload.py)."""

from __future__ import annotations

import contextlib
import importlib

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)  # before anything runs: after two threads here, two in a child hang
    importlib.import_module("torchvision")

importlib.import_module("vidflow.roles.worker.preload")
