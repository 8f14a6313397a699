"""A child process of the runner, with three pipes: its messages, the runner's orders, and its standard error.

What the messages mean is decided by the subclasses, for workers (supervision.py) and inference processes (inference_processes.py).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, Final, Generic, TypeVar

import msgspec

from vidflow.infra.models.thread_budget import ThreadsCommand
from vidflow.infra.process import memory
from vidflow.infra.telemetry.logs import log
from vidflow.roles.runner.forkservers import without_main
from vidflow.roles.runner.output_tail import OutputTail

MEMORY_CHECK_S: Final = 0.5
_EXIT_S: Final = 5.0
_MAX_MESSAGES: Final = 2000
"""Messages of one process per call: more than its pipe holds, but bounded, so that an endless writer does not block the others."""
_log = log("runner")

MessageT = TypeVar("MessageT")
ReasonT = TypeVar("ReasonT")


class ChildProcess(Generic[MessageT, ReasonT]):
    """A started process and the runner's ends of its pipes."""

    def __init__(
        self,
        context: ForkServerContext,
        target: Callable[..., None],
        args: tuple[Any, ...],
        receive: Callable[[Connection], MessageT],
        invalid: ReasonT,
        *,
        name: str,
        threads: int,
        secrets: tuple[str, ...] = (),
    ) -> None:
        """Start `target` with `args` and the child's ends: messages, orders, standard error. Raises OSError or EOFError.

        `receive`: returns the next message, or raises what the functions of the link modules do. `invalid`: why a process that
        sends invalid messages is killed. `threads`: how many its model uses at first. `secrets`: strings to mask in its output.
        """
        self._messages, messages = context.Pipe(duplex=False)
        orders, self._orders = context.Pipe(duplex=False)
        self._stderr, stderr = context.Pipe(duplex=False)
        os.set_blocking(self._orders.fileno(), False)
        self._output = OutputTail(self._stderr)
        self._process = context.Process(target=target, args=(*args, messages, orders, stderr), name=name)
        with without_main():
            self._process.start()
        for child_end in (messages, orders, stderr):
            child_end.close()
        self._receive, self._invalid = receive, invalid
        self._can_send_messages = True
        self._threads, self._secrets = threads, secrets
        self._memory_checked_s = 0.0
        self.kill_reason: ReasonT | None = None
        """Why the runner has killed it, None if it has not."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid or 0

    def waitables(self, *, with_messages: bool = True) -> list[Connection | int]:
        """Return the pipes and the process sentinel, which become ready when something happens."""
        messages = [self._messages] if with_messages and self._can_send_messages else []
        return [*messages, *([self._stderr] if self._output.is_open else []), self._process.sentinel]

    def exit_code(self) -> int | None:
        """Return the exit code, -N if signal N ended the process, or None while it runs."""
        return self._process.exitcode

    def read_messages(self) -> Iterator[MessageT]:
        """Yield the messages that arrived since the last call, and read its output."""
        self._output.read()
        for _ in range(_MAX_MESSAGES):
            if not self._can_send_messages or not self._messages.poll():
                return
            try:
                message = self._receive(self._messages)
            except EOFError:
                self._can_send_messages = False
            except (OSError, msgspec.DecodeError) as error:
                _log.warning("invalid_message", process=self._process.name, error=str(error))
                self._can_send_messages = False
                self.kill(self._invalid)
            else:
                yield message

    def tail(self) -> str | None:
        """Return the end of its output without secrets, or None if it is empty."""
        return self._output.text(self._secrets)

    def send_order(self, order: msgspec.Struct) -> bool:
        """Send an order. Return whether it was sent: not to a process that is gone, or one that has left too many unread."""
        try:
            self._orders.send_bytes(msgspec.json.encode(order))
        except OSError:
            return False
        return True

    def set_threads(self, threads: int) -> None:
        """Order its model to use as many threads, unless it does already. An order that was not sent is repeated by the next call."""
        if threads != self._threads and self.send_order(ThreadsCommand(threads)):
            self._threads = threads

    def exceeds_memory(self, cap_bytes: int, now_s: float) -> bool:
        """Return whether it uses more memory than the cap, if it is time to check. 0 is no cap."""
        if not cap_bytes or now_s - self._memory_checked_s <= MEMORY_CHECK_S:
            return False
        self._memory_checked_s = now_s
        return memory.resident_bytes(self.pid) > cap_bytes

    def kill(self, reason: ReasonT) -> None:
        """Send SIGKILL. The first reason given is kept."""
        self.kill_reason = self.kill_reason or reason
        self._process.kill()

    def close(self) -> None:
        """Join the ended process and close its pipes."""
        self._process.join(_EXIT_S)
        for pipe in (self._messages, self._orders, self._stderr):
            pipe.close()


def signal_name(exit_code: int) -> str | None:
    """Return the name, or else the number, of the signal that ended a process, None if it exited."""
    if exit_code >= 0:
        return None
    return signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else str(-exit_code)
