"""The worker processes of a runner: started, watched and ended. What their entries become is decided in domain/runner.py.

A worker is made by a forkserver that has imported the heavy libraries. It is watched by three pipes (what it tells, what it
is ordered, its standard error) and by the end of its process; everything that happens comes out of `Workers.wait`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason, WorkerWait
from vidflow.domain.redaction import find_secrets, redact
from vidflow.domain.runner import DETAIL_CHARACTERS, default_memory_cap
from vidflow.infra.process import memory
from vidflow.infra.process.crashpoint import crashpoint, disarm
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.roles.runner.forkservers import Forkservers, without_main
from vidflow.roles.worker import link
from vidflow.roles.worker.start import run_worker
from vidflow.settings import RunnerOptions

TAIL_BYTES: Final = DETAIL_CHARACTERS
"""What is kept of a worker's standard error: its last words."""
FINISH_S: Final = 15.0
"""How long a worker may take to finish what it has in hand before it is ended; the broker's absence not counted."""
MEMORY_CHECK_S: Final = 0.5
PAUSED_S: Final = 5.0
"""A longer break between two looks means that this process itself stood still: then no worker is to blame."""
_EXIT_S: Final = 5.0
_READS: Final = 16
_PIECES: Final = 2000
"""What is read of one worker at once: more than its pipes hold, and no more, so that one that writes without end holds up no other."""
_log = log("runner")


class WorkerEvent(msgspec.Struct, frozen=True):
    """What a worker told, or that it ended (`message` is an Ended). `detail` is the tail of its standard error."""

    scenario_uuid: str
    epoch: int
    message: link.WorkerProgress | link.WorkerEnd
    first_frame: bool = False
    detail: str | None = None


class Workers:
    """All workers of a runner, by scenario and epoch. Used by one thread."""

    def __init__(self, options: RunnerOptions) -> None:
        self._options = options
        self.memory_cap_bytes = _memory_cap(options)
        """The most resident memory of a worker; 0 for no cap."""
        self._forkservers = Forkservers()
        self._running: dict[tuple[str, int], _Worker] = {}
        self._checked_s = time.monotonic()
        self._memory_checked_s = 0.0

    def prepare(self) -> None:
        """Waits until workers can be started without delay."""
        self._forkservers.prepare()

    def launch(self, deploy: Deploy) -> None:
        """Starts a worker for this deployment."""
        options = self._options
        task = link.Task(
            deploy, options.kafka, options.media_root, options.any_file, options.models_dir, options.any_onnx,
            crashpoints=disarm("worker."),
        )  # fmt: skip
        self._running[deploy.scenario_uuid, deploy.epoch] = _Worker(self._forkservers.context, task)
        crashpoint("runner.after_launch")

    def finish(self, scenario_uuid: str, epoch: int, reason: EndReason) -> None:
        """Asks the worker to finish what it has in hand and to give this reason in its end marker."""
        worker = self._running.get((scenario_uuid, epoch))
        if worker is not None:
            worker.finish(reason)

    def kill(self, scenario_uuid: str, epoch: int) -> None:
        """Ends the worker at once, and says nothing of it any more."""
        worker = self._running.pop((scenario_uuid, epoch), None)
        if worker is not None:
            worker.kill(EndReason.STOPPED)
            worker.close()

    def kill_all(self, reason: EndReason) -> None:
        """Ends all workers at once; `wait` tells their ends, for this reason."""
        for worker in self._running.values():
            worker.kill(reason)

    def wait(self, seconds: float, wakeup_reader: Connection) -> list[WorkerEvent]:
        """What happens within `seconds`, as soon as anything does; nothing where the bell rings first."""
        doors: dict[object, tuple[tuple[str, int], _Worker]] = {
            door: (key, worker) for key, worker in self._running.items() for door in worker.waitables()
        }
        ready = wait([*doors, wakeup_reader], seconds)  # type: ignore[list-item]
        stirred = {doors[door][0]: doors[door][1] for door in ready if door is not wakeup_reader}
        happened = [one for key, worker in stirred.items() for one in self._read_events(key, worker)]
        self._check_workers()
        self._forkservers.poll()
        return happened

    def _read_events(self, key: tuple[str, int], worker: _Worker) -> Iterator[WorkerEvent]:
        uuid, epoch = key
        exit_code = worker.exit_code()  # before its last words are read: behind them nothing comes
        for told in worker.read_messages():
            if isinstance(told, link.WorkerMeasurements):
                _export(told)
            first = worker.reports_first_frame(told)
            if isinstance(told, link.WorkerProgress):
                yield WorkerEvent(uuid, epoch, told, first)
        if exit_code is not None:
            del self._running[key]
            yield WorkerEvent(uuid, epoch, worker.determine_end(exit_code, self.memory_cap_bytes), detail=worker.tail())
            worker.close()

    def _check_workers(self) -> None:
        """Ends workers that hang, take too long to finish or have grown too large."""
        now_s = time.monotonic()
        paused, self._checked_s = now_s - self._checked_s > PAUSED_S, now_s
        check_memory = self.memory_cap_bytes > 0 and now_s - self._memory_checked_s > MEMORY_CHECK_S
        self._memory_checked_s = now_s if check_memory else self._memory_checked_s
        for worker in self._running.values():
            if paused:
                worker.restart_clocks(now_s)
            if reason := worker.find_overdue_reason(now_s, self._deadlines()):
                worker.kill(reason)
            elif check_memory and memory.resident_bytes(worker.pid) > self.memory_cap_bytes:
                worker.kill(EndReason.MEMORY)

    def _deadlines(self) -> dict[WorkerWait, float]:
        return {
            WorkerWait.START: self._options.start_deadline_s,
            WorkerWait.INFERENCE: self._options.inference_deadline_s,
        }


class _Worker:
    """One worker process and the runner's ends of its pipes."""

    def __init__(self, context: ForkServerContext, task: link.Task) -> None:
        self.deploy = task.deploy
        self._messages, told = context.Pipe(duplex=False)
        orders, self._orders = context.Pipe(duplex=False)
        self._stderr, stderr = context.Pipe(duplex=False)
        os.set_blocking(self._stderr.fileno(), False)
        self._process: BaseProcess = context.Process(
            target=run_worker, args=(task, told, orders, stderr), name=f"worker {task.deploy.scenario_uuid}"
        )
        with without_main():
            self._process.start()
        for theirs in (told, orders, stderr):
            theirs.close()
        self._open: dict[str, Connection] = {"told": self._messages, "stderr": self._stderr}
        self._tail = b""
        self._tail_is_cut = False
        self._secrets = (*find_secrets(task.deploy.source), *task.kafka.secrets())
        self._reported_end: link.WorkerEnd | None = None
        self._kill_reason: EndReason | None = None
        self._waits_for = WorkerWait.START
        self._since_s = time.monotonic()
        self._finish_by_s: float | None = None
        self._finish_reason = EndReason.STOPPED
        self._first_frame_done = False

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid or 0

    def waitables(self) -> Iterable[object]:
        """What becomes readable when something happens."""
        return (*self._open.values(), self._process.sentinel)

    def exit_code(self) -> int | None:
        """None while it runs; -N where signal N ended it."""
        return self._process.exitcode

    def read_messages(self) -> Iterator[link.WorkerMessage]:
        """What it has told since the last time."""
        self._read_stderr()
        for _ in range(_PIECES):
            if "told" not in self._open or not self._messages.poll():
                return
            try:
                told = link.receive_message(self._messages)
            except EOFError:
                del self._open["told"]
            except (OSError, msgspec.DecodeError) as error:
                _log.warning("worker_talks_nonsense", scenario_uuid=self.deploy.scenario_uuid, error=str(error))
                self.kill(EndReason.CRASHED)
                del self._open["told"]
            else:
                self._record(told)
                yield told

    def reports_first_frame(self, told: link.WorkerMessage) -> bool:
        """Whether this is the first word of a frame done by this worker."""
        if self._first_frame_done or not isinstance(told, link.WorkerProgress):
            return False
        self._first_frame_done = told.next_frame > self.deploy.resume.next_frame
        return self._first_frame_done

    def finish(self, reason: EndReason) -> None:
        """Orders it to finish, once: the first reason counts."""
        if self._finish_by_s is None:
            self._finish_by_s, self._finish_reason = time.monotonic() + FINISH_S, reason
            link.order_finish(self._orders, reason)

    def restart_clocks(self, now_s: float) -> None:
        """Gives it all its time anew."""
        self._since_s = now_s
        if self._finish_by_s is not None:
            self._finish_by_s = now_s + FINISH_S

    def find_overdue_reason(self, now_s: float, deadlines: dict[WorkerWait, float]) -> EndReason | None:
        """Why it is to be ended now, None where it is not."""
        if self._kill_reason is not None:
            return None
        deadline_s = deadlines.get(self._waits_for)
        if self._reported_end is None and deadline_s is not None and now_s - self._since_s > deadline_s:
            return EndReason.HUNG
        late = self._finish_by_s is not None and now_s > self._finish_by_s
        return (
            self._finish_reason
            if late and (self._reported_end is not None or self._waits_for is not WorkerWait.KAFKA)
            else None
        )

    def kill(self, reason: EndReason) -> None:
        """Ends it as kill -9 does. The first reason counts."""
        self._kill_reason = self._kill_reason or reason
        self._process.kill()

    def determine_end(self, exit_code: int, memory_cap_bytes: int) -> link.WorkerEnd:
        """Why it ended: what it said itself, else what it was killed for, else the way its process ended."""
        if self._reported_end is not None:
            return (
                self._reported_end
                if self._reported_end.error is None
                else self._without_secrets(self._reported_end, self._reported_end.error)
            )
        if self._kill_reason is not None:
            error = _build_kill_error(self._kill_reason, self.deploy.scenario_uuid, self._waits_for, memory_cap_bytes)
            return link.WorkerEnd(self._kill_reason, error)
        return link.WorkerEnd(EndReason.CRASHED, _build_crash_error(exit_code, self.deploy.scenario_uuid))

    def tail(self) -> str | None:
        """The end of what it wrote to standard error, without secrets."""
        text = self._tail.decode(errors="replace")
        if self._tail_is_cut:
            text = _skip_partial_word(text)
        return redact(text, self._secrets).strip() or None

    def _without_secrets(self, last: link.WorkerEnd, error: ErrorInfo) -> link.WorkerEnd:
        """Its last words: a worker that hostile input has taken over may leave secrets in them."""
        message = redact(error.message, self._secrets)
        return msgspec.structs.replace(last, error=msgspec.structs.replace(error, message=message))

    def close(self) -> None:
        """Lets go of the process, which has ended, and of its pipes."""
        self._process.join(_EXIT_S)
        for pipe in (self._messages, self._orders, self._stderr):
            pipe.close()

    def _record(self, told: link.WorkerMessage) -> None:
        if isinstance(told, link.WorkerEnd):
            self._reported_end = told
            self._finish_by_s = time.monotonic() + FINISH_S  # to exit, which needs no more than a moment
        elif isinstance(told, link.WorkerProgress):
            self._waits_for, self._since_s = told.waits_for, time.monotonic()

    def _read_stderr(self) -> None:
        for _ in range(_READS):
            if "stderr" not in self._open:
                return
            try:
                chunk = os.read(self._stderr.fileno(), 16 * TAIL_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                del self._open["stderr"]
            self._tail += chunk
            self._tail_is_cut = self._tail_is_cut or len(self._tail) > TAIL_BYTES
            self._tail = self._tail[-TAIL_BYTES:]


def _export(measured: link.WorkerMeasurements) -> None:
    metrics.WORKER_DECODE_SECONDS.add(measured.decode, measured.decode_s)
    metrics.WORKER_INFERENCE_SECONDS.add(measured.inference, measured.inference_s)
    metrics.WORKER_FRAMES.inc(measured.frames)


def _skip_partial_word(text: str) -> str:
    """The text from its first whole line on, or its first whole word: what was cut may be the rest of a secret."""
    for end in ("\n", " "):
        if end in text:
            return text.partition(end)[2]
    return ""


def _memory_cap(options: RunnerOptions) -> int:
    if options.worker_memory_bytes is not None:
        return options.worker_memory_bytes
    return default_memory_cap(memory.available_bytes(), options.max_workers)


def _build_kill_error(
    reason: EndReason, scenario_uuid: str, waits_for: WorkerWait, memory_cap_bytes: int
) -> ErrorInfo | None:  # fmt: skip
    match reason:
        case EndReason.HUNG:
            text = f"the worker of scenario {scenario_uuid} did not get on with its {waits_for} within its deadline and was ended"
            return ErrorInfo(
                "worker_hung", f"{text}; if the model needs longer, raise the deadline (VIDFLOW_INFERENCE_DEADLINE_S)"
            )
        case EndReason.MEMORY:
            text = f"the worker of scenario {scenario_uuid} grew past its memory cap of {memory_cap_bytes} bytes and was ended"
            return ErrorInfo(
                "worker_memory",
                f"{text}; use a smaller model or video, or raise the runner's --worker-memory-bytes (VIDFLOW_WORKER_MEMORY_BYTES)",
            )
        case _:
            return None


def _build_crash_error(exit_code: int, scenario_uuid: str) -> ErrorInfo:
    if exit_code >= 0:
        return ErrorInfo(
            "worker_crashed", f"the worker of scenario {scenario_uuid} ended without a word (exit code {exit_code})"
        )
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else str(-exit_code)
    hint = (
        "; the system may have been out of memory: lower --max-workers or --worker-memory-bytes"
        if -exit_code == signal.SIGKILL
        else ""
    )
    return ErrorInfo("worker_crashed", f"the worker of scenario {scenario_uuid} was ended by signal {name}{hint}")
