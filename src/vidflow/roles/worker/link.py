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
from vidflow.domain.messages import Deploy, EndReason, NonNegativeInt, WorkerWait
from vidflow.domain.redaction import redact
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


class WorkerProgress(msgspec.Struct, frozen=True, tag="progressed"):
    """The number of the frame that the worker sends next, and what it waits for from now on."""

    next_frame: NonNegativeInt
    waits_for: WorkerWait


class WorkerMeasurements(msgspec.Struct, frozen=True, tag="measured"):
    """What the worker has measured since the last time: how many batches took how long, as counts a bucket, and the frames."""

    decode: Counts
    decode_s: Seconds
    inference: Counts
    inference_s: Seconds
    frames: Count


class WorkerEnd(msgspec.Struct, frozen=True, tag="ended"):
    """The worker's last words: why it ends."""

    reason: EndReason
    error: ErrorInfo | None = None
    fatal: bool = False


WorkerMessage = WorkerProgress | WorkerMeasurements | WorkerEnd
_message_decoder: Final = msgspec.json.Decoder(WorkerProgress | WorkerMeasurements | WorkerEnd)
_order_decoder: Final = msgspec.json.Decoder(EndReason)


def receive_message(line: Connection) -> WorkerMessage:
    """The runner's end: the next piece that the worker told.

    Raises EOFError where the worker is gone and all is read, OSError or msgspec.DecodeError where it talks nonsense.
    """
    piece: WorkerMessage = _message_decoder.decode(line.recv_bytes(PIECE_BYTES))
    return piece


def order_finish(line: Connection, reason: EndReason) -> None:
    """The runner's end: asks the worker to finish, for `reason` (stopped or handed_over). One that is gone needs no order."""
    try:
        line.send_bytes(msgspec.json.encode(reason))
    except OSError:
        return


class Link:
    """The worker's end of the line. One thread works and tells; a second one listens for orders and for the runner's death."""

    def __init__(
        self, messages: Connection, orders: Connection, next_frame: int = 0, secrets: tuple[str, ...] = ()
    ) -> None:
        """`secrets`: strings that are masked in the error of `report_end`."""
        self._messages = messages
        self._orders = orders
        self._next_frame = next_frame
        self._secrets = secrets
        self._waits_for = WorkerWait.START
        self._finish_reason: EndReason | None = None
        self.current_frame: int | None = None
        """The one frame that the model has before it; None where it has none, or several."""
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    @property
    def current_wait(self) -> WorkerWait:
        """What the worker told last that it waits for."""
        return self._waits_for

    @property
    def finish_reason(self) -> EndReason | None:
        """Why the worker is to end after what it has in hand; None while it is to go on."""
        return self._finish_reason

    def report_wait(self, waits_for: WorkerWait) -> None:
        """Tells what the worker waits for from now on. The runner's deadlines run from here."""
        self._waits_for = waits_for
        self._send(WorkerProgress(self._next_frame, waits_for))

    def set_next_frame(self, next_frame: int) -> None:
        """The worker has sent all frames below `next_frame`; told with what it waits for next."""
        self._next_frame = next_frame

    def report_measurements(self, measured: WorkerMeasurements) -> None:
        """Reports measurements. What was measured since is lost with a worker that is killed."""
        self._send(measured)

    def report_end(self, reason: EndReason, error: ErrorInfo | None = None, *, fatal: bool = False) -> None:
        """The last words."""
        if error is not None:
            message = redact(error.message, self._secrets)[
                :_MESSAGE_CHARACTERS
            ]  # cut first, a secret may not be known as one
            error = msgspec.structs.replace(error, code=error.code[:100], message=message)
        self._send(WorkerProgress(self._next_frame, self._waits_for))
        self._send(WorkerEnd(reason, error, fatal))

    def _send(self, piece: WorkerMessage) -> None:
        self._messages.send_bytes(msgspec.json.encode(piece))

    def _listen(self) -> None:
        while True:
            try:
                self._finish_reason = _order_decoder.decode(self._orders.recv_bytes(PIECE_BYTES))
            except (EOFError, OSError):
                os.kill(os.getpid(), signal.SIGKILL)  # the runner is gone, and its workers go with it
