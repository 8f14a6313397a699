"""The pipes between an inference process and its runner: its task, what it reports, and the runner's orders."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final, NoReturn

import msgspec

from vidflow.domain.device import AUTO, Device
from vidflow.infra.models.thread_budget import ThreadBudget, ThreadsCommand

MAX_MESSAGE_BYTES: Final = 4000
"""A pipe carries up to 4096 bytes whole."""
ALIVE_INTERVAL_S: Final = 1.0

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class InferenceTask(msgspec.Struct, frozen=True):
    """The model of an inference process, as its deployments name it, and the permissions under which it is read.

    `cores`: the most threads that it may ever use. `threads`: how many it may use at first. `confined`: it gives up all other rights
    before it opens the model.
    """

    model: str
    model_sha256: str | None = None
    models_dir: Path | None = None
    any_onnx: bool = False
    cores: int = 1
    threads: int = 1
    device: Device = AUTO
    crashpoints: str = ""
    confined: bool = False


class InferenceAlive(msgspec.Struct, frozen=True, tag="alive"):
    """Sent each ALIVE_INTERVAL_S. `is_loaded`: whether the model is loaded, or refused. `running_s`: how long the current batch runs.

    `batches` and `frames` are those since the last message.
    """

    is_loaded: bool
    running_s: Seconds = 0.0
    batches: Annotated[int, msgspec.Meta(ge=0)] = 0
    frames: Annotated[int, msgspec.Meta(ge=0)] = 0


_decoder: Final = msgspec.json.Decoder(InferenceAlive)
_order_decoder: Final = msgspec.json.Decoder(ThreadsCommand)


def send(messages: Connection, alive: InferenceAlive) -> None:
    """Send a report. Raises OSError if the runner is gone."""
    messages.send_bytes(msgspec.json.encode(alive))


def receive(messages: Connection) -> InferenceAlive:
    """Return the next report. Raises EOFError, OSError, or msgspec.DecodeError if it is not valid."""
    return _decoder.decode(messages.recv_bytes(MAX_MESSAGE_BYTES))


def follow_orders(orders: Connection, budget: ThreadBudget) -> NoReturn:
    """Obey the runner's orders, and die with it."""
    while True:
        try:
            order = _order_decoder.decode(orders.recv_bytes(MAX_MESSAGE_BYTES))
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGKILL)  # the runner is gone; nothing that it started must outlive it
        budget.threads = order.threads
