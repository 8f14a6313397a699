"""The runner process. Its loop applies commands and worker events to the state (domain/runner.py), acts on the result and reports it."""

from __future__ import annotations

import multiprocessing
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Final

import msgspec

from vidflow.domain.device import Device, DeviceKind, resolve_device
from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Deploy, EndReason
from vidflow.domain.runner import (
    Action,
    Finish,
    Kill,
    Launch,
    NoAction,
    RunnerState,
    apply_command,
    count_command,
    drain,
    forget_old_epochs,
    needs_immediate_report,
    record_worker_end,
    record_worker_progress,
)
from vidflow.domain.sandbox import SandboxMode, describe_missing
from vidflow.domain.topics import RUNNER_EVENTS, check_pool
from vidflow.infra.kafka import admin, offsets
from vidflow.infra.models.cuda import find_fault
from vidflow.infra.process import sandbox
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import require_kafka
from vidflow.roles.runner.commands import CommandListener, ReceivedCommand, UnreadableCommand, commands_topic_id
from vidflow.roles.runner.reports import CUT_OFF_AFTER_S, ReportSender
from vidflow.roles.runner.supervision import WorkerEvent, Workers
from vidflow.roles.worker.link import WorkerProgress
from vidflow.settings import InferenceMode, RunnerOptions, forget_environment

TICK_S: Final = 0.25
_FORGET_S: Final = 60.0
_STARTUP_GRACE_S: Final = 4.0
"""How long Kafka or a topic may be missing at start before it is logged: they may be starting together with the runner."""
_FINAL_REPORT_TIMEOUT_S: Final = 2.0
_EXPECTED_END_REASONS: Final = frozenset({EndReason.FINISHED, EndReason.STOPPED, EndReason.HANDED_OVER})
_log = log("runner")


def run(options: RunnerOptions, stop: Stop) -> None:
    """Run workers until a stop is requested, then drain, so that the leader knows that nothing is left."""
    check_pool(options.pool)
    require_kafka(options.kafka)
    confinement = _prepare_sandbox(options.sandbox)
    device, no_cuda = _check_device(options.device)
    options = msgspec.structs.replace(options, inference=_choose_inference(options.inference, device))
    with metrics.served(
        metrics.build_role_registry("runner", metrics.RUNNER_REGISTRY), options.metrics_port, options.metrics_host
    ):
        _run_workers(options, stop, {"device": str(device), **no_cuda, "sandbox": confinement})


def _run_workers(options: RunnerOptions, stop: Stop, device_fields: Mapping[str, str]) -> None:
    workers = Workers(options)
    workers.prepare()
    runner_id = new_runner_id()
    wakeup_reader, wakeup_writer = multiprocessing.Pipe(duplex=False)
    clients = _open_clients(options, runner_id, wakeup_writer, stop)
    if clients is None:
        return
    commands, reports = clients
    listener_stop = Stop()
    listener = start_thread("commands", lambda: commands.listen(listener_stop), listener_stop)
    cap = workers.memory_cap_bytes or "none"
    _log.info(
        "runner_ready", runner=runner_id, pool=options.pool, slots=options.max_workers, worker_memory_bytes=cap,
        inference=options.inference, **device_fields,
    )  # fmt: skip
    runner = Runner(options, workers, commands, reports, wakeup_reader)
    try:
        while not (stop.requested or listener_stop.requested):
            runner.tick()
        runner.drain(without_commands=listener_stop.requested)
    finally:
        workers.close()
        listener_stop.request()
        listener.join()
    if listener_stop.error is not None:
        raise listener_stop.error


def _check_device(requested: Device) -> tuple[Device, dict[str, str]]:
    """Return what models run on, and the field of the log that says why it is not CUDA. It is `auto` if that depends on the model.

    Raises DeviceUnavailable if CUDA is requested and no model could use it.
    """
    if requested.kind is DeviceKind.CPU:
        return requested, {}
    fault = find_fault(requested.index)
    device = resolve_device(requested, fault)
    return (requested, {}) if fault is None else (device, {"no_cuda": fault.partition(". ")[0]})


def _prepare_sandbox(mode: SandboxMode) -> str:
    """Forget all secrets in the environment, which workers would inherit, and return what confines the workers, for the log.

    Raises SetupError if the mode requires more than the system has.
    """
    missing = {} if mode == "off" else sandbox.find_missing()
    if mode == "require":
        sandbox.require_complete(missing)
    features = [] if mode == "off" else [feature for feature in sandbox.FEATURES if feature not in missing]
    for feature in sandbox.FEATURES:
        metrics.SANDBOX.labels(feature).set(feature in features)
    if mode == "off":
        _log.warning("workers_unconfined", does="runs workers with all rights of this user, because of --sandbox off")
        return "off"
    if missing:
        _log.warning(
            "workers_less_confined",
            does=f"runs workers without {' and '.join(missing)}",
            missing=describe_missing(missing),
        )
    forget_environment()
    sandbox.hide_memory()
    return ",".join(features) or "limits"


def _choose_inference(requested: InferenceMode, device: Device) -> InferenceMode:
    """Return where models run: on a GPU, the weights of a model are kept only once, and its workers fill its batches together."""
    if requested != "auto":
        return requested
    return "worker" if device.kind is DeviceKind.CPU else "shared"


def new_runner_id() -> str:
    """Return a new id for this start of the runner, so that commands for an earlier start never reach it."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:60]
    return f"runner-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def _open_clients(
    options: RunnerOptions, runner_id: str, wakeup_writer: Connection, stop: Stop
) -> tuple[CommandListener, ReportSender] | None:
    """Wait for Kafka and its topics and open both clients. Return None if a stop is requested first.

    The listener opens before the first report can be sent. Both clients are created only once the broker answers; earlier ones
    would still report its absence after it is over.
    """
    admin.wait_for_broker(options.kafka, stop)
    admin_client = admin.ReplacingAdmin(options.kafka)

    def open_clients() -> tuple[CommandListener, ReportSender]:
        commands_topic_id(admin_client, options.pool)
        admin_client.call(offsets.read_topic_id, RUNNER_EVENTS)
        commands = CommandListener(options.kafka, options.pool, runner_id, wakeup_writer)
        commands.open()
        reports = ReportSender(options.kafka, options.pool, runner_id)
        reports.open()
        return commands, reports

    return admin.retry_while_away(open_clients, stop, log_after_s=_STARTUP_GRACE_S)


class Runner:
    """Owns a runner's state. All commands and worker events are handled one by one on its thread."""

    def __init__(
        self,
        options: RunnerOptions,
        workers: Workers,
        commands: CommandListener,
        reports: ReportSender,
        wakeup_reader: Connection,
    ) -> None:
        self._grace_s = options.grace_s
        self._workers = workers
        self._commands = commands
        self._reports = reports
        self._wakeup_reader = wakeup_reader
        self._state = RunnerState(options.max_workers)
        metrics.SLOTS.set(options.max_workers)
        self._forgot_s = time.monotonic()

    def tick(self) -> None:
        """Wait at most `TICK_S` for commands and worker events, apply them to the state, and report."""
        before, first_frame = self._state, False
        for event in self._workers.wait(min(TICK_S, self._reports.due_in_s()), self._wakeup_reader):
            self._handle_event(event)
            first_frame = first_frame or event.first_frame
        while self._wakeup_reader.poll():
            self._wakeup_reader.recv_bytes()
        for command in self._commands.take_commands():
            self._handle_command(command)
        self._end_workers_if_cut_off()
        self._forget_old_epochs()
        metrics.SLOTS_USED.set(sum(entry.is_running for entry in self._state.entries))
        self._reports.send_if_due(self._state, urgent=first_frame or needs_immediate_report(before, self._state))

    def drain(self, *, without_commands: bool) -> None:
        """Take no more work, let the workers hand over, and return once the broker has acknowledged a report without entries.

        Workers that have not handed over after the grace period are killed. With `without_commands` no Forget command can arrive:
        return once the ends of all workers are acknowledged.
        """
        self._state, finishes = drain(self._state)
        _log.info("draining", workers=len(finishes))
        for finish in finishes:
            self._execute(finish)
        self._reports.send_if_due(self._state, urgent=True)
        self._tick_until(lambda: self._is_drained(without_commands=without_commands), self._grace_s)
        if not self._is_idle():
            _log.warning("grace_over", does="kills its workers, which have not handed over")
            self._workers.kill_all(EndReason.HANDED_OVER)
            self._tick_until(lambda: self._is_idle() and self._reports.all_acknowledged, _FINAL_REPORT_TIMEOUT_S)

    def _tick_until(self, done: Callable[[], bool], seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not done():
            self.tick()
            self._reports.poll(0.01 if self._is_idle() else 0)

    def _is_drained(self, *, without_commands: bool) -> bool:
        if without_commands and self._is_idle():
            return self._reports.all_acknowledged
        return self._reports.final_report_acknowledged

    def _is_idle(self) -> bool:
        return not any(entry.is_running for entry in self._state.entries)

    def _handle_command(self, command: ReceivedCommand) -> None:
        if isinstance(command, UnreadableCommand):
            self._state = count_command(self._state)
            return
        self._state, action = apply_command(self._state, command, time.monotonic())
        self._execute(action)

    def _execute(self, action: Action) -> None:
        match action:
            case Launch(deploy=deploy, replaces_epoch=replaced_epoch):
                if replaced_epoch is not None:
                    self._workers.kill(deploy.scenario_uuid, replaced_epoch)
                self._launch(deploy)
            case Finish(scenario_uuid=uuid, epoch=epoch, reason=reason):
                self._workers.finish(uuid, epoch, reason)
            case Kill(scenario_uuid=uuid, epoch=epoch):
                self._workers.kill(uuid, epoch)
            case NoAction():
                pass

    def _launch(self, deploy: Deploy) -> None:
        uuid, epoch = deploy.scenario_uuid, deploy.epoch
        try:
            self._workers.launch(deploy)
        except (OSError, EOFError) as error:
            _log.error("worker_not_started", scenario_uuid=uuid, epoch=epoch, error=str(error))
            cause = ErrorInfo(
                "worker_not_started",
                f"Cannot start a worker for scenario {uuid}: {error}. Check the runner's resource limits.",
            )
            self._state = record_worker_end(self._state, uuid, epoch, EndReason.CRASHED, cause)
        else:
            _log.debug(
                "worker_started",
                scenario_uuid=uuid,
                epoch=epoch,
                attempt=deploy.attempt,
                from_frame=deploy.resume.next_frame,
            )

    def _handle_event(self, event: WorkerEvent) -> None:
        uuid, epoch, message = event.scenario_uuid, event.epoch, event.message
        if isinstance(message, WorkerProgress):
            self._state = record_worker_progress(self._state, uuid, epoch, message.next_frame, message.waits_for)
            return
        is_expected = message.reason in _EXPECTED_END_REASONS
        detail = None if is_expected else event.detail
        self._state = record_worker_end(
            self._state, uuid, epoch, message.reason, message.error, fatal=message.fatal, detail=detail
        )
        metrics.WORKER_ENDS.labels(message.reason).inc()
        write = _log.debug if is_expected else _log.warning  # the leader logs each transition
        write(
            "worker_ended", scenario_uuid=uuid, epoch=epoch, reason=message.reason,
            error=message.error.message if message.error else None, detail=detail,
        )  # fmt: skip

    def _end_workers_if_cut_off(self) -> None:
        """Kill the workers of a runner that is cut off. The leader has given their work to other runners by now."""
        if self._reports.oldest_unacknowledged_s() < CUT_OFF_AFTER_S:
            return
        if not self._is_idle():
            _log.warning(
                "cut_off",
                seconds=round(self._reports.oldest_unacknowledged_s()),
                does="kills its workers and waits for Kafka",
            )
        self._workers.kill_all(EndReason.CUT_OFF)
        self._reports.purge()

    def _forget_old_epochs(self) -> None:
        now_s = time.monotonic()
        if now_s - self._forgot_s > _FORGET_S:
            self._state, self._forgot_s = forget_old_epochs(self._state, now_s), now_s
