"""Starts the measuring processes of `vidflow bench`, from a forkserver like that of a runner, and gives them orders."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from vidflow.commands.bench.process import run_process
from vidflow.commands.bench.protocol import BenchMessage, BenchOrder, BenchStep, BenchTask, Failure, Measurement, Ready
from vidflow.domain.errors import VidflowError, build_error_from_code
from vidflow.roles.runner.forkservers import Forkservers, without_main

START_DEADLINE_S: Final = 120.0
"""How long a process may take to load the model. All of them load it at the same time."""
BATCH_DEADLINE_S: Final = 60.0
"""How much longer than ordered a measurement may take, for a batch that is slow."""

T = TypeVar("T", Ready, Measurement)


class Processes:
    """The measuring processes: a context manager that ends them."""

    def __init__(self, task: BenchTask) -> None:
        self._task = task
        self._context = (forkservers := Forkservers()).context
        forkservers.prepare()
        self._running: list[_Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            process.kill()

    def start(self, count: int) -> Ready:
        """Start processes until there are `count`, and wait until all are ready. Return what the last one says of the source.

        Raises the error of one that fails.
        """
        new = [_Process(self._context, self._task) for _ in range(count - len(self._running))]
        self._running += new
        for process in new:
            self._ready = process.receive(Ready, START_DEADLINE_S)
        return self._ready

    def measure(self, step: BenchStep, count: int, seconds: float) -> list[Measurement]:
        """Let the first `count` processes measure a step at the same time. Raises the error of one that fails."""
        order = BenchOrder(step, seconds)
        for process in self._running[:count]:
            process.send(order)
        return [process.receive(Measurement, seconds + BATCH_DEADLINE_S) for process in self._running[:count]]


class _Process:
    """A process and the ends of its pipes."""

    def __init__(self, context: ForkServerContext, task: BenchTask) -> None:
        self._messages, messages = context.Pipe(duplex=False)
        orders, self._orders = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(target=run_process, args=(task, messages, orders), name="bench")
        with without_main():
            self._process.start()
        for end in (messages, orders):
            end.close()

    def send(self, order: BenchOrder) -> None:
        """Give an order. A process that is gone is noticed by `receive`."""
        try:
            self._orders.send_bytes(msgspec.json.encode(order))
        except OSError:
            return

    def receive(self, expected: type[T], deadline_s: float) -> T:
        """Return the next message. Raises the error that it reports, VidflowError if it takes too long or the process has died."""
        if not self._messages.poll(deadline_s):
            raise VidflowError(
                f"A measuring process has not answered for {deadline_s:.0f} s. Try a smaller model or video."
            )
        try:
            message = msgspec.json.decode(self._messages.recv_bytes(), type=BenchMessage)
        except EOFError:
            self._process.join()
            raise VidflowError(
                f"A measuring process died (exit code {self._process.exitcode}; -9 is usually a lack of memory). Try a smaller"
                " model or video."
            ) from None
        if isinstance(message, Failure):
            raise build_error_from_code(message.error.message, message.error.code)
        if not isinstance(message, expected):
            raise TypeError(f"a measuring process sent {message!r}")
        return message

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._messages.close()
        self._orders.close()
