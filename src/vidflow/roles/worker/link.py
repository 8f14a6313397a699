"""The pipes between a worker and its runner: the task, the worker's messages and the runner's orders. Results go over Kafka instead.

Messages to the runner are JSON, each small enough that a pipe carries it whole. A worker reads hostile files, so the runner
validates everything that it sends. The pipes also show a worker that its runner is gone.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final

import msgspec

from vidflow.domain.device import AUTO, Device
from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason, NonNegativeInt, WorkerWait
from vidflow.domain.redaction import redact
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.models.thread_budget import ThreadBudget, ThreadsCommand
from vidflow.infra.telemetry.metrics import WORKER_BOUNDS_S

PIECE_BYTES: Final = 4000
"""Maximum size of a message. A pipe carries up to 4096 bytes whole, so the runner never waits for the rest of one."""
BUCKETS: Final = len(WORKER_BOUNDS_S) + 1
_MESSAGE_CHARACTERS: Final = 500
"""Maximum length of an error message: it fits in `PIECE_BYTES` even if every character is escaped."""


Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Counts = Annotated[tuple[Count, ...], msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Task(msgspec.Struct, frozen=True):
    """A worker's deployment and permissions.

    `crashpoints` arms crash points for a fault test. `threads`: how many its model may use. `inference_socket`: the name of the socket of a
    process that runs the model for several workers, if it can be shared. `confined`: it gives up all other rights before it opens
    anything.
    """

    deploy: Deploy
    kafka: KafkaSettings
    media_root: Path | None = None
    any_file: bool = False
    models_dir: Path | None = None
    any_onnx: bool = False
    sources: SourceAccess = SourceAccess()
    crashpoints: str = ""
    threads: int = 1
    inference_socket: str | None = None
    device: Device = AUTO
    confined: bool = False


class WorkerProgress(msgspec.Struct, frozen=True, tag="progressed"):
    """The number of the next frame that the worker sends, and what it waits for from now on."""

    next_frame: NonNegativeInt
    waits_for: WorkerWait


class WorkerMeasurements(msgspec.Struct, frozen=True, tag="measured"):
    """Measurements since the last message: histograms of batch durations (counts per bucket, sum) and the number of frames."""

    decode: Counts
    decode_s: Seconds
    inference: Counts
    inference_s: Seconds
    frames: Count


class WorkerEnd(msgspec.Struct, frozen=True, tag="ended"):
    """The worker's last message: why it ends."""

    reason: EndReason
    error: ErrorInfo | None = None
    fatal: bool = False


class WorkerOutage(msgspec.Struct, frozen=True, tag="outage"):
    """Why the live source sends nothing from now on. Without an error, it sends again."""

    error: ErrorInfo | None


WorkerMessage = WorkerProgress | WorkerMeasurements | WorkerOutage | WorkerEnd
_message_decoder: Final = msgspec.json.Decoder(WorkerProgress | WorkerMeasurements | WorkerOutage | WorkerEnd)


class FinishCommand(msgspec.Struct, frozen=True, tag="finish"):
    """Finish the current work, and end for `reason` (stopped or handed_over)."""

    reason: EndReason


_order_decoder: Final = msgspec.json.Decoder(FinishCommand | ThreadsCommand)


def receive_message(messages: Connection) -> WorkerMessage:
    """Return the worker's next message. Called by the runner.

    Raises EOFError if the worker is gone and everything is read, OSError or msgspec.DecodeError if the message is invalid.
    """
    message: WorkerMessage = _message_decoder.decode(messages.recv_bytes(PIECE_BYTES))
    return message


class FinishOrder:
    """The runner's order to finish, as an interruption of reading. A wait is reported, so that no deadline ends it.

    The link's owner is the thread that creates it. A thread that reads ahead of it reports nothing: the owner does not wait for it.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._owner = threading.get_ident()
        self._given = threading.Event()

    def give(self) -> None:
        """Record the order. A worker that ends with an error gives it itself."""
        self._given.set()

    def is_set(self) -> bool:
        """Return whether the order was given."""
        return self._given.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the source. Return at once if the order is given, and whether it is."""
        if threading.get_ident() != self._owner:
            return self._given.wait(timeout)
        before = self._link.current_wait
        self._link.report_wait(WorkerWait.SOURCE)
        try:
            return self._given.wait(timeout)
        finally:
            self._link.report_wait(before)


class Link:
    """The worker's ends of the pipes. A second thread receives orders and notices the death of the runner."""

    def __init__(
        self,
        messages: Connection,
        orders: Connection,
        next_frame: int = 0,
        secrets: tuple[str, ...] = (),
        threads: int = 1,
    ) -> None:
        """`secrets`: strings to mask in the error of `report_end`."""
        self._messages = messages
        self._orders = orders
        self._next_frame = next_frame
        self._secrets = secrets
        self._waits_for = WorkerWait.START
        self._finish_reason: EndReason | None = None
        self.finish_order = FinishOrder(self)
        self.thread_budget = ThreadBudget(threads)
        """How many threads the model may use. The runner changes it."""
        self.current_frame: int | None = None
        """The number of the frame in inference, or None if there is no frame or more than one."""
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    @property
    def current_wait(self) -> WorkerWait:
        """What the worker waits for, as last reported."""
        return self._waits_for

    @property
    def finish_reason(self) -> EndReason | None:
        """Why the worker must end after its current work, or None if it has no order to finish."""
        return self._finish_reason

    def report_wait(self, waits_for: WorkerWait) -> None:
        """Report what the worker waits for from now on. The runner's deadlines start here."""
        self._waits_for = waits_for
        self._send(WorkerProgress(self._next_frame, waits_for))

    def set_next_frame(self, next_frame: int) -> None:
        """Record that all frames below `next_frame` are sent. The next `report_wait` reports it."""
        self._next_frame = next_frame

    def report_measurements(self, measured: WorkerMeasurements) -> None:
        """Report measurements. A worker that is killed loses those since its last report."""
        self._send(measured)

    def report_outage(self, error: ErrorInfo | None) -> None:
        """Report why the live source sends nothing, or that it sends again. The runner logs it."""
        self._send(WorkerOutage(error))

    def report_end(self, reason: EndReason, error: ErrorInfo | None = None, *, fatal: bool = False) -> None:
        """Report the end of the worker."""
        self._send(WorkerProgress(self._next_frame, self._waits_for))
        self._send(WorkerEnd(reason, error and self.redact(error), fatal))

    def redact(self, error: ErrorInfo) -> ErrorInfo:
        """Return the error without secrets, and not longer than a message may be."""
        # Mask before cutting: a secret that is cut in half would not be recognised.
        message = redact(error.message, self._secrets)[:_MESSAGE_CHARACTERS]
        return msgspec.structs.replace(error, code=error.code[:100], message=message)

    def _send(self, message: WorkerMessage) -> None:
        self._messages.send_bytes(msgspec.json.encode(message))

    def _listen(self) -> None:
        while True:
            try:
                order = _order_decoder.decode(self._orders.recv_bytes(PIECE_BYTES))
            except (EOFError, OSError):
                os.kill(os.getpid(), signal.SIGKILL)  # the runner is gone; its workers must not outlive it
            if isinstance(order, ThreadsCommand):
                self.thread_budget.threads = order.threads
            else:
                self._finish_reason = order.reason
                self.finish_order.give()
