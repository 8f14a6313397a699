"""Starts, watches and ends the worker processes of a runner. domain/runner.py decides what becomes of their entries.

Workers are forked by a forkserver that has imported the heavy libraries. Each has three pipes (its messages, its orders, its
standard error). `Workers.wait` returns everything that happens, including the end of a process.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason, WorkerWait
from vidflow.domain.redaction import find_secrets, redact_error
from vidflow.domain.runner import default_memory_cap, divide_cores
from vidflow.infra.process import memory
from vidflow.infra.process.cores import available_cores
from vidflow.infra.process.crashpoint import crashpoint, disarm
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.roles.runner.child_process import ChildProcess, signal_name
from vidflow.roles.runner.forkservers import Forkservers
from vidflow.roles.runner.inference_processes import FROZEN_S, InferenceProcesses, model_key
from vidflow.roles.worker import link
from vidflow.roles.worker.start import run_worker
from vidflow.settings import RunnerOptions

FINISH_S: Final = 15.0
"""How long a worker may take to finish its current work before it is killed. Waiting for Kafka does not count."""
PAUSED_S: Final = 5.0
"""A longer interval between two checks means that this process itself was suspended, which must not count against workers."""
MAX_SHARED_BATCHES: Final = 3
"""As many batches of a shared model may run until a worker has its result: the one that runs, others, its own."""
READ_INTERVAL_S: Final = 0.05
"""Shortest interval between two reads of the workers' messages. Each wakes this process, and a worker sends two per batch."""
_log = log("runner")


class WorkerEvent(msgspec.Struct, frozen=True):
    """A worker's progress or its end.

    `first_frame`: this progress is the first that reports a sent frame. `detail`: the last part of its standard error, only with its end.
    """

    scenario_uuid: str
    epoch: int
    message: link.WorkerProgress | link.WorkerEnd
    first_frame: bool = False
    detail: str | None = None


class Workers:
    """All workers of a runner, by scenario and epoch. Not thread-safe."""

    def __init__(self, options: RunnerOptions) -> None:
        self._options = options
        self.cores = options.cores or available_cores()
        """The cores that the workers share."""
        self.memory_cap_bytes = _memory_cap(options)
        """Maximum resident memory of a worker; 0 for no cap."""
        self._forkservers = Forkservers(confined=options.sandbox != "off")
        self._inference = InferenceProcesses(options, self._forkservers, self.cores, self.memory_cap_bytes)
        self._running: dict[tuple[str, int], _Worker] = {}
        self._checked_s = time.monotonic()
        self._read_s = 0.0

    def prepare(self) -> None:
        """Wait until workers can be started without delay."""
        self._forkservers.prepare()

    def launch(self, deploy: Deploy) -> None:
        """Start a worker for this deployment. Raises OSError or EOFError."""
        options = self._options
        task = link.Task(
            deploy, options.kafka, options.media_root, options.any_file, options.models_dir, options.any_onnx, options.sources,
            crashpoints=disarm("worker."), threads=divide_cores(self.cores, len(self._running) + 1), device=options.device,
            inference_socket=self._inference.open_socket(deploy) if options.inference == "shared" else None,
            confined=options.sandbox != "off",
        )  # fmt: skip
        self._running[deploy.scenario_uuid, deploy.epoch] = _Worker(self._forkservers.context, task)
        self._divide_cores()
        crashpoint("runner.after_launch")

    def finish(self, scenario_uuid: str, epoch: int, reason: EndReason) -> None:
        """Order the worker to finish its current work and to end with this reason in its end marker."""
        worker = self._running.get((scenario_uuid, epoch))
        if worker is not None:
            worker.finish(reason)

    def kill(self, scenario_uuid: str, epoch: int) -> None:
        """Kill the worker at once. `wait` returns no more events of it."""
        worker = self._running.pop((scenario_uuid, epoch), None)
        if worker is not None:
            worker.kill(EndReason.STOPPED)
            worker.close()

    def kill_all(self, reason: EndReason) -> None:
        """Kill all workers at once. `wait` returns their ends with this reason."""
        for worker in self._running.values():
            worker.kill(reason)

    def close(self) -> None:
        """Kill all workers and inference processes."""
        self.kill_all(EndReason.HANDED_OVER)
        self._inference.kill_all()

    def wait(self, seconds: float, wakeup_reader: Connection) -> list[WorkerEvent]:
        """Wait at most `seconds` for worker events and return them. Return early if `wakeup_reader` becomes readable.

        Progress is read at most once per READ_INTERVAL_S, except before a worker's first frame and at its end.
        """
        pause_s = min(seconds, self._read_s + READ_INTERVAL_S - time.monotonic())
        ready_workers, woken = (
            self._wait_for_workers(pause_s, wakeup_reader, urgent_only=True) if pause_s > 0 else ({}, False)
        )
        if not ready_workers and not woken:
            ready_workers, _ = self._wait_for_workers(seconds - max(0.0, pause_s), wakeup_reader, urgent_only=False)
            self._read_s = time.monotonic()
        events = [event for key, worker in ready_workers.items() for event in self._read_events(key, worker)]
        self._check_workers()
        self._divide_cores()
        self._forkservers.poll()
        return events

    def _wait_for_workers(
        self, seconds: float, wakeup_reader: Connection, *, urgent_only: bool
    ) -> tuple[dict[tuple[str, int], _Worker], bool]:
        """Return the workers of which something can be read, and whether `wakeup_reader` can be."""
        waitables: dict[Connection | int, tuple[tuple[str, int], _Worker]] = {
            waitable: (key, worker)
            for key, worker in self._running.items()
            for waitable in worker.waitables(with_messages=not urgent_only)
        }
        ready = wait([*waitables, *self._inference.waitables(), wakeup_reader], seconds)
        return {
            key: worker for waitable, (key, worker) in waitables.items() if waitable in ready
        }, wakeup_reader in ready

    def _read_events(self, key: tuple[str, int], worker: _Worker) -> Iterator[WorkerEvent]:
        uuid, epoch = key
        exit_code = worker.exit_code()  # first, so that all messages of an ended worker are read below
        for message in worker.read_messages():
            if isinstance(message, link.WorkerMeasurements):
                _export(message)
            if isinstance(message, link.WorkerOutage):
                _log_outage(uuid, message)
            first_frame = worker.reports_first_frame(message)
            if isinstance(message, link.WorkerProgress):
                yield WorkerEvent(uuid, epoch, message, first_frame)
        if exit_code is not None:
            del self._running[key]
            yield WorkerEvent(uuid, epoch, worker.determine_end(exit_code, self.memory_cap_bytes), detail=worker.tail())
            worker.close()

    def _divide_cores(self) -> None:
        """Order workers whose share of the cores has changed to use as many threads."""
        threads = divide_cores(self.cores, len(self._running))
        for worker in self._running.values():
            worker.set_threads(threads)

    def _check_workers(self) -> None:
        """Kill workers that hang, take too long to finish or use too much memory."""
        now_s = time.monotonic()
        paused, self._checked_s = now_s - self._checked_s > PAUSED_S, now_s
        self._inference.update({model_key(worker.deploy) for worker in self._running.values()}, was_paused=paused)
        for worker in self._running.values():
            if paused:
                worker.restart_clocks(now_s)
            if reason := worker.find_overdue_reason(now_s, self._deadlines()):
                worker.kill(reason)
            elif worker.exceeds_memory(self.memory_cap_bytes, now_s):
                worker.kill(EndReason.MEMORY)

    def _deadlines(self) -> dict[WorkerWait, float]:
        options = self._options
        inference_s = options.inference_deadline_s
        if options.inference == "shared":  # the inference process has the deadline, for its batches
            inference_s = MAX_SHARED_BATCHES * inference_s + FROZEN_S
        return {WorkerWait.START: options.start_deadline_s, WorkerWait.INFERENCE: inference_s}


class _Worker(ChildProcess[link.WorkerMessage, EndReason]):
    """A worker process."""

    def __init__(self, context: ForkServerContext, task: link.Task) -> None:
        self.deploy = task.deploy
        self._secrets = (*find_secrets(task.deploy.source), *task.kafka.secrets())
        super().__init__(
            context, run_worker, (task,), link.receive_message, EndReason.CRASHED,
            name=f"worker {task.deploy.scenario_uuid}", threads=task.threads, secrets=self._secrets,
        )  # fmt: skip
        self._reported_end: link.WorkerEnd | None = None
        self._waits_for = WorkerWait.START
        self._since_s = time.monotonic()
        self._finish_by_s: float | None = None
        self._finish_reason = EndReason.STOPPED
        self._first_frame_done = False

    def waitables(self, *, with_messages: bool = True) -> list[Connection | int]:
        """Return what becomes ready when something happens; without `with_messages`, of the messages only those before the first frame."""
        return super().waitables(with_messages=with_messages or not self._first_frame_done)

    def read_messages(self) -> Iterator[link.WorkerMessage]:
        """Yield the messages that arrived since the last call."""
        for message in super().read_messages():
            if isinstance(message, link.WorkerEnd):
                self._reported_end = message
                self._finish_by_s = time.monotonic() + FINISH_S  # to exit, which takes only a moment
            elif isinstance(message, link.WorkerProgress):
                self._waits_for, self._since_s = message.waits_for, time.monotonic()
            yield message

    def reports_first_frame(self, message: link.WorkerMessage) -> bool:
        """Return whether this is the first message that reports a sent frame."""
        if self._first_frame_done or not isinstance(message, link.WorkerProgress):
            return False
        self._first_frame_done = message.next_frame > self.deploy.resume.next_frame
        return self._first_frame_done

    def finish(self, reason: EndReason) -> None:
        """Order it to finish. Only the first call has an effect."""
        if self._finish_by_s is None:
            self._finish_by_s, self._finish_reason = time.monotonic() + FINISH_S, reason
            self.send_order(link.FinishCommand(reason))

    def restart_clocks(self, now_s: float) -> None:
        """Restart its deadlines."""
        self._since_s = now_s
        if self._finish_by_s is not None:
            self._finish_by_s = now_s + FINISH_S

    def find_overdue_reason(self, now_s: float, deadlines: dict[WorkerWait, float]) -> EndReason | None:
        """Return why it must be killed now, or None."""
        if self.kill_reason is not None:
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

    def determine_end(self, exit_code: int, memory_cap_bytes: int) -> link.WorkerEnd:
        """Return the end that it reported itself, else the one it was killed for, else a crash according to its exit code."""
        if self._reported_end is not None:
            return (
                self._reported_end
                if self._reported_end.error is None
                else self._without_secrets(self._reported_end, self._reported_end.error)
            )
        if self.kill_reason is not None:
            error = _build_kill_error(self.kill_reason, self.deploy.scenario_uuid, self._waits_for, memory_cap_bytes)
            return link.WorkerEnd(self.kill_reason, error)
        return link.WorkerEnd(EndReason.CRASHED, _build_crash_error(exit_code, self.deploy.scenario_uuid))

    def _without_secrets(self, end: link.WorkerEnd, error: ErrorInfo) -> link.WorkerEnd:
        """Mask secrets in the error: the worker masks them too, but hostile input may have taken it over."""
        return msgspec.structs.replace(end, error=redact_error(error, self._secrets))


def _log_outage(scenario_uuid: str, outage: link.WorkerOutage) -> None:
    if outage.error is None:
        _log.info("source_back", scenario_uuid=scenario_uuid)
    else:
        _log.warning("source_lost", scenario_uuid=scenario_uuid, code=outage.error.code, error=outage.error.message)


def _export(measurements: link.WorkerMeasurements) -> None:
    metrics.WORKER_DECODE_SECONDS.add(measurements.decode, measurements.decode_s)
    metrics.WORKER_INFERENCE_SECONDS.add(measurements.inference, measurements.inference_s)
    metrics.WORKER_FRAMES.inc(measurements.frames)


def _memory_cap(options: RunnerOptions) -> int:
    if options.worker_memory_bytes is not None:
        return options.worker_memory_bytes
    return default_memory_cap(memory.available_bytes(), options.max_workers)


def _build_kill_error(
    reason: EndReason, scenario_uuid: str, waits_for: WorkerWait, memory_cap_bytes: int
) -> ErrorInfo | None:  # fmt: skip
    match reason:
        case EndReason.HUNG:
            text = f"Worker of scenario {scenario_uuid} exceeded its {waits_for} deadline and was killed."
            return ErrorInfo(
                "worker_hung", f"{text} If the model needs longer, raise the deadline (VIDFLOW_INFERENCE_DEADLINE_S)."
            )
        case EndReason.MEMORY:
            text = f"Worker of scenario {scenario_uuid} exceeded its memory cap of {memory_cap_bytes} bytes and was killed."
            return ErrorInfo(
                "worker_memory",
                f"{text} Use a smaller model or video, or raise the runner's --worker-memory-bytes (VIDFLOW_WORKER_MEMORY_BYTES).",
            )
        case _:
            return None


def _build_crash_error(exit_code: int, scenario_uuid: str) -> ErrorInfo:
    name = signal_name(exit_code)
    if name is None:
        return ErrorInfo(
            "worker_crashed", f"Worker of scenario {scenario_uuid} exited unexpectedly with exit code {exit_code}."
        )
    hint = (
        " The system may have run out of memory. Lower --max-workers or --worker-memory-bytes."
        if -exit_code == signal.SIGKILL
        else ""
    )
    return ErrorInfo("worker_crashed", f"Worker of scenario {scenario_uuid} was killed by signal {name}.{hint}")
