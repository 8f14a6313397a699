"""Starts and watches the inference processes of a runner: one for each model that its workers share.

The runner owns the socket of each model. A process is started when a client waits there, and the next one when it has died, so a
client needs no news of deaths: its connection just waits. A process ends by itself when it has had no clients for a while.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Final

from vidflow.domain.errors import SetupError
from vidflow.domain.messages import Deploy
from vidflow.domain.runner import divide_cores
from vidflow.infra.inference import sockets
from vidflow.infra.process.crashpoint import disarm
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.roles.inference import link
from vidflow.roles.inference.start import run_inference
from vidflow.roles.runner.child_process import ChildProcess, signal_name
from vidflow.roles.runner.forkservers import Forkservers
from vidflow.settings import RunnerOptions

Waitable = Connection | socket.socket | int
ModelKey = tuple[str, str | None]
"""A model as deployments name it: its name or path, and the digest of its files."""

FROZEN_S: Final = 10.0
"""A loaded process that has reported nothing for so long is frozen and is killed. It reports each second, also during a batch."""
MAX_RESTART_DELAY_S: Final = 5.0
FIRST_RESTART_DELAY_S: Final = 0.1
STABLE_S: Final = 30.0
"""A process that lived so long is restarted at once."""
_BACKLOG: Final = 1000
"""Clients that may wait for a process to start: the largest number of slots."""
_log = log("runner")


class InferenceProcesses:
    """All inference processes of a runner, by model. Not thread-safe."""

    def __init__(self, options: RunnerOptions, forkservers: Forkservers, cores: int, memory_cap_bytes: int) -> None:
        """Raises SetupError if they cannot work on this system."""
        if options.inference == "shared" and sys.platform != "linux":
            raise SetupError("--inference shared needs Linux. Use --inference worker.")
        self._options, self._forkservers = options, forkservers
        self._cores, self._memory_cap_bytes = cores, memory_cap_bytes
        self._models: dict[ModelKey, _SharedModel] = {}

    def open_socket(self, deploy: Deploy) -> str:
        """Return the name of the socket on which the deployment's model is served. Raises OSError."""
        key = model_key(deploy)
        if key not in self._models:
            self._models[key] = _SharedModel(key)
        return self._models[key].socket_name

    def waitables(self) -> Iterator[Waitable]:
        """Yield what becomes ready when `update` has something to do."""
        now_s = time.monotonic()
        for model in self._models.values():
            yield from model.waitables(now_s)

    def update(self, used: Collection[ModelKey], *, was_paused: bool) -> None:
        """Start processes that clients wait for, note which have ended, and kill those that hang, freeze or use too much memory.

        `used`: the models of running workers. `was_paused`: this process was suspended, which must not count against them.
        """
        now_s = time.monotonic()
        for key, model in list(self._models.items()):
            model.read()
            if model.process is not None:
                model.process.check(self._options, self._memory_cap_bytes, now_s, was_paused=was_paused)
            elif model.is_wanted(now_s):
                self._start(key, model)
            elif key not in used:
                model.close()
                del self._models[key]
        self._divide_cores()

    def kill_all(self) -> None:
        """Kill all processes and close the sockets."""
        for model in self._models.values():
            model.close()
        self._models.clear()

    def _divide_cores(self) -> None:
        processes = [model.process for model in self._models.values() if model.process is not None]
        for process in processes:
            process.set_threads(divide_cores(self._cores, len(processes)))

    def _start(self, key: ModelKey, model: _SharedModel) -> None:
        running = sum(other.process is not None for other in self._models.values())
        name, sha256 = key
        task = link.InferenceTask(
            name, sha256, self._options.models_dir, self._options.any_onnx, self._cores, divide_cores(self._cores, running + 1),
            self._options.device, disarm("inference."), self._options.sandbox != "off",
        )  # fmt: skip
        try:
            model.process = _Process(self._forkservers, task, model.listener)
        except (OSError, EOFError) as error:
            _log.error("inference_process_not_started", model=name, error=str(error))
            model.delay_restart(0.0)
        else:
            _log.info("inference_process_started", model=name, pid=model.process.pid, threads=task.threads)


def model_key(deploy: Deploy) -> ModelKey:
    """Return the key of the deployment's model."""
    return deploy.model, deploy.model_sha256


class _SharedModel:
    """The socket of a model, and the process that serves it while there is one."""

    def __init__(self, key: ModelKey) -> None:
        """Raises OSError."""
        self.name = key[0]
        self.process: _Process | None = None
        self.listener, self.socket_name = sockets.listen(_BACKLOG)
        self._deaths = 0
        self._not_before_s = 0.0

    def waitables(self, now_s: float) -> Sequence[Waitable]:
        """Return what becomes ready when the process reports or ends, or a client waits for one to start."""
        if self.process is not None:
            return self.process.waitables()
        return [self.listener] if now_s >= self._not_before_s else []

    def is_wanted(self, now_s: float) -> bool:
        """Return whether a client waits for a process, which may start now."""
        if now_s < self._not_before_s:
            return False
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        return bool(poll.poll(0))

    def read(self) -> None:
        """Read what the process has reported, and note its end."""
        if self.process is None:
            return
        exit_code = self.process.exit_code()  # first, so that everything that it has written is read below
        self.process.read()
        if exit_code is None:
            return
        self._log_end(self.process, exit_code)
        lived_s = self.process.lived_s()
        self.process.close()
        self.process = None
        if exit_code != 0:
            self.delay_restart(lived_s)

    def delay_restart(self, lived_s: float) -> None:
        """Let no process start for a while: longer, the more of them have died soon after their start."""
        self._deaths = 0 if lived_s > STABLE_S else self._deaths + 1
        delay_s = min(FIRST_RESTART_DELAY_S * 2**self._deaths, MAX_RESTART_DELAY_S) if self._deaths > 1 else 0.0
        self._not_before_s = time.monotonic() + delay_s

    def close(self) -> None:
        """Kill the process and close the socket."""
        if self.process is not None:
            self.process.kill("stopped")
            self.process.close()
        self.listener.close()

    def _log_end(self, process: _Process, exit_code: int) -> None:
        reason = process.kill_reason or ("idle" if exit_code == 0 else "crashed")
        metrics.INFERENCE_PROCESS_ENDS.labels(reason).inc()
        if exit_code == 0:
            _log.info("inference_process_ended", model=self.name, reason=reason)
            return
        _log.warning(
            "inference_process_ended", model=self.name, reason=reason, end=signal_name(exit_code) or exit_code, detail=process.tail(),
            does="starts it again for the workers, which repeat what was not answered",
        )  # fmt: skip


class _Process(ChildProcess[link.InferenceAlive, str]):
    """An inference process."""

    def __init__(self, forkservers: Forkservers, task: link.InferenceTask, listener: socket.socket) -> None:
        """Raises OSError or EOFError."""
        super().__init__(
            forkservers.context, run_inference, (task, listener), link.receive, "nonsense", name=f"inference {task.model}",
            threads=task.threads,
        )  # fmt: skip
        self._began_s = self._heard_s = time.monotonic()
        self._last = link.InferenceAlive(is_loaded=False)

    def lived_s(self) -> float:
        """Return how long ago it was started, in seconds."""
        return time.monotonic() - self._began_s

    def read(self) -> None:
        """Read its reports and its output."""
        for report in self.read_messages():
            self._last, self._heard_s = report, time.monotonic()
            metrics.INFERENCE_BATCHES.inc(report.batches)
            metrics.INFERENCE_FRAMES.inc(report.frames)

    def check(self, options: RunnerOptions, memory_cap_bytes: int, now_s: float, *, was_paused: bool) -> None:
        """Kill it if it takes too long to load the model or to run a batch, is frozen, or uses too much memory."""
        if was_paused:
            self._began_s = self._heard_s = now_s
            return
        if not self._last.is_loaded:
            is_late = now_s - self._began_s > options.start_deadline_s
        else:
            is_late = self._last.running_s > options.inference_deadline_s
        if is_late:
            self.kill("hung")
        elif self._last.is_loaded and now_s - self._heard_s > FROZEN_S:
            self.kill("frozen")
        elif self.exceeds_memory(memory_cap_bytes, now_s):
            self.kill("memory")
