"""The line between a worker and its runner: the task, what the worker tells, what it is told. Not what is sent over Kafka.

What goes up the line is JSON in pieces that a pipe carries whole: a worker reads hostile files, and its runner trusts
nothing that it says. The line is also how a worker learns that its runner is gone.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason, Number, Waiting
from vidflow.domain.redaction import redacted
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.metrics import WORKER_BOUNDS_S

PIECE_BYTES: Final = 4000
"""A pipe carries up to 4096 bytes whole: the runner never waits for the rest of a piece."""
BUCKETS: Final = len(WORKER_BOUNDS_S) + 1
_MESSAGE_CHARACTERS: Final = 500
"""Of an error's sentence: even with each character escaped it fits into a piece."""


Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Counts = Annotated[tuple[Count, ...], msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Task(msgspec.Struct, frozen=True):
    """What a worker is to do and may do. `crashpoints` arms places for a fault test."""

    deploy: Deploy
    kafka: KafkaSettings
    media_root: Path | None = None
    any_file: bool = False
    models_dir: Path | None = None
    any_onnx: bool = False
    crashpoints: str = ""


class Progressed(msgspec.Struct, frozen=True, tag="progressed"):
    """The number of the frame that the worker sends next, and what it waits for from now on."""

    next_frame: Number
    waits_for: Waiting


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """What the worker has measured since the last time: how many batches took how long, as counts a bucket, and the frames."""

    decode: Counts
    decode_s: Seconds
    inference: Counts
    inference_s: Seconds
    frames: Count


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The worker's last words: why it ends."""

    reason: EndReason
    error: ErrorInfo | None = None
    fatal: bool = False


Told = Progressed | Measured | Ended
_told: Final = msgspec.json.Decoder(Progressed | Measured | Ended)
_order: Final = msgspec.json.Decoder(EndReason)


def hear(line: Connection) -> Told:
    """The runner's end: the next piece that the worker told.

    Raises EOFError where the worker is gone and all is read, OSError or msgspec.DecodeError where it talks nonsense.
    """
    piece: Told = _told.decode(line.recv_bytes(PIECE_BYTES))
    return piece


def order(line: Connection, reason: EndReason) -> None:
    """The runner's end: asks the worker to finish, for `reason` (stopped or handed_over). One that is gone needs no order."""
    try:
        line.send_bytes(msgspec.json.encode(reason))
    except OSError:
        return


class Link:
    """The worker's end of the line. One thread works and tells; a second one listens for orders and for the runner's death."""

    def __init__(
        self, told: Connection, orders: Connection, next_frame: int = 0, secrets: tuple[str, ...] = ()
    ) -> None:
        """`secrets`: strings that are masked in the error of `ended`."""
        self._told = told
        self._orders = orders
        self._next_frame = next_frame
        self._secrets = secrets
        self._waits_for = Waiting.START
        self._finish: EndReason | None = None
        self.at_frame: int | None = None
        """The one frame that the model has before it; None where it has none, or several."""
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    @property
    def waiting(self) -> Waiting:
        """What the worker told last that it waits for."""
        return self._waits_for

    @property
    def finish(self) -> EndReason | None:
        """Why the worker is to end after what it has in hand; None while it is to go on."""
        return self._finish

    def waits_for(self, what: Waiting) -> None:
        """Tells what the worker waits for from now on. The runner's deadlines run from here."""
        self._waits_for = what
        self._tell(Progressed(self._next_frame, what))

    def reached(self, next_frame: int) -> None:
        """The worker has sent all frames below `next_frame`; told with what it waits for next."""
        self._next_frame = next_frame

    def measured(self, measured: Measured) -> None:
        """Reports measurements. What was measured since is lost with a worker that is killed."""
        self._tell(measured)

    def ended(self, reason: EndReason, error: ErrorInfo | None = None, *, fatal: bool = False) -> None:
        """The last words."""
        if error is not None:
            message = redacted(error.message, self._secrets)[
                :_MESSAGE_CHARACTERS
            ]  # cut first, a secret may not be known as one
            error = msgspec.structs.replace(error, code=error.code[:100], message=message)
        self._tell(Progressed(self._next_frame, self._waits_for))
        self._tell(Ended(reason, error, fatal))

    def _tell(self, piece: Told) -> None:
        self._told.send_bytes(msgspec.json.encode(piece))

    def _listen(self) -> None:
        while True:
            try:
                self._finish = _order.decode(self._orders.recv_bytes(PIECE_BYTES))
            except (EOFError, OSError):
                os.kill(os.getpid(), signal.SIGKILL)  # the runner is gone, and its workers go with it
