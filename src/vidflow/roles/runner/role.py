"""The runner's loop: what was commanded, what the workers did, what follows (domain/runner.py), and a report of it."""

from __future__ import annotations

import multiprocessing
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import RUNNER_EVENTS, Deploy, EndReason, check_pool
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
from vidflow.infra.kafka import admin, offsets
from vidflow.infra.kafka.errors import KafkaAway
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.infra.telemetry import metrics
from vidflow.infra.telemetry.logs import log
from vidflow.infra.telemetry.outage import kafka_outage, require_kafka
from vidflow.roles.runner.commands import CommandListener, ReceivedCommand, UnreadableCommand, commands_topic_id
from vidflow.roles.runner.reports import CUT_OFF_AFTER_S, ReportSender
from vidflow.roles.runner.supervision import WorkerEvent, Workers
from vidflow.roles.worker.link import WorkerProgress
from vidflow.settings import RunnerOptions

TICK_S: Final = 0.25
_FORGET_S: Final = 60.0
_STARTUP_GRACE_S: Final = 4.0
"""A runner that is started beside its broker says nothing of the moments that this and its topics take."""
_RETRY_S: Final = 0.2
_FINAL_REPORT_TIMEOUT_S: Final = 2.0
_EXPECTED_END_REASONS: Final = frozenset({EndReason.FINISHED, EndReason.STOPPED, EndReason.HANDED_OVER})
_log = log("runner")


def run(options: RunnerOptions, stop: Stop) -> None:
    """Keeps workers until it is to stop; then lets them hand over, and leaves once the leader can know that nothing is left."""
    check_pool(options.pool)
    require_kafka(options.kafka)
    with metrics.served(
        metrics.build_role_registry("runner", metrics.RUNNER_REGISTRY), options.metrics_port, options.metrics_host
    ):
        _run_workers(options, stop)


def _run_workers(options: RunnerOptions, stop: Stop) -> None:
    workers = Workers(options)
    workers.prepare()
    runner = new_runner_id()
    bell, rope = multiprocessing.Pipe(duplex=False)
    opened = _open_clients(options, runner, rope, stop)
    if opened is None:
        return
    commands, reports = opened
    listening = Stop()
    ears = start_thread("commands", lambda: commands.listen(listening), listening)
    cap = workers.memory_cap_bytes or "none"
    _log.info(
        "runner_ready", runner=runner, pool=options.pool, slots=options.max_workers, worker_memory_bytes=cap
    )  # fmt: skip
    keeper = Runner(options, workers, commands, reports, bell)
    try:
        while not (stop.requested or listening.requested):
            keeper.tick()
        keeper.drain(without_commands=listening.requested)
    finally:
        workers.kill_all(EndReason.HANDED_OVER)
        listening.request()
        ears.join()
    if listening.error is not None:
        raise listening.error


def new_runner_id() -> str:
    """A runner's id: new at every start, so that nothing that was said to an earlier one reaches it."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:60]
    return f"runner-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def _open_clients(
    options: RunnerOptions, runner: str, wakeup_writer: Connection, stop: Stop
) -> tuple[CommandListener, ReportSender] | None:
    """Waits for Kafka and its topics; the ears are open before the first report. None where it is to stop before.

    Ears and mouth are made once the broker answers: made before, they would tell of its absence when it is over.
    """
    admin.wait_for_broker(options.kafka, stop)
    questions, outage, began_s = admin.ReplacingAdmin(options.kafka), kafka_outage(), time.monotonic()
    while not stop.requested:
        try:
            commands_topic_id(questions, options.pool)
            questions.call(offsets.read_topic_id, RUNNER_EVENTS)
            commands = CommandListener(options.kafka, options.pool, runner, wakeup_writer)
            commands.open()
            reports = ReportSender(options.kafka, options.pool, runner)
            reports.open()
        except KafkaAway as error:
            if time.monotonic() - began_s > _STARTUP_GRACE_S:
                outage.begin(error)
            stop.wait(_RETRY_S)
        else:
            outage.end()
            return commands, reports
    return None


class Runner:
    """The one owner of a runner's charge: everything that happens comes to its thread, one thing at a time."""

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
        """Waits until something happens, lets the charge become what follows from it, and reports."""
        before, first_frame = self._state, False
        for happened in self._workers.wait(min(TICK_S, self._reports.due_in_s()), self._wakeup_reader):
            self._handle_event(happened)
            first_frame = first_frame or happened.first_frame
        while self._wakeup_reader.poll():
            self._wakeup_reader.recv_bytes()
        for heard in self._commands.take_commands():
            self._handle_command(heard)
        self._end_workers_if_cut_off()
        self._forget_old_epochs()
        metrics.SLOTS_USED.set(sum(entry.is_running for entry in self._state.entries))
        self._reports.send_if_due(self._state, news=first_frame or needs_immediate_report(before, self._state))

    def drain(self, *, without_commands: bool) -> None:
        """Takes no more work, lets the workers hand over, and returns once nothing is listed and the broker knows it.

        A runner that hears nothing is never told to forget: it leaves once the ends of its workers are told.
        """
        self._state, finishes = drain(self._state)
        _log.info("draining", workers=len(finishes))
        for finish in finishes:
            self._execute(finish)
        self._reports.send_if_due(self._state, news=True)
        self._tick_until(lambda: self._is_drained(without_commands=without_commands), self._grace_s)
        if not self._is_idle():
            _log.warning("grace_over", does="ends its workers, which have not handed over")
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

    def _handle_command(self, heard: ReceivedCommand) -> None:
        if isinstance(heard, UnreadableCommand):
            self._state = count_command(self._state)
            return
        self._state, action = apply_command(self._state, heard, time.monotonic())
        self._execute(action)

    def _execute(self, action: Action) -> None:
        match action:
            case Launch(deploy=deploy, replaces_epoch=replaces):
                if replaces is not None:
                    self._workers.kill(deploy.scenario_uuid, replaces)
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
                f"no worker could be started for scenario {uuid}: {error}; look at the runner's limits",
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

    def _handle_event(self, happened: WorkerEvent) -> None:
        uuid, epoch, told = happened.scenario_uuid, happened.epoch, happened.message
        if isinstance(told, WorkerProgress):
            self._state = record_worker_progress(self._state, uuid, epoch, told.next_frame, told.waits_for)
            return
        detail = None if told.reason in _EXPECTED_END_REASONS else happened.detail
        self._state = record_worker_end(
            self._state, uuid, epoch, told.reason, told.error, fatal=told.fatal, detail=detail
        )
        metrics.WORKER_ENDS.labels(told.reason).inc()
        say = _log.debug if told.reason in _EXPECTED_END_REASONS else _log.warning  # the leader logs each transition
        say(
            "worker_ended", scenario_uuid=uuid, epoch=epoch, reason=told.reason,
            error=told.error.message if told.error else None, detail=detail,
        )  # fmt: skip

    def _end_workers_if_cut_off(self) -> None:
        """Ends the workers of a runner that nobody hears: the leader has given their work to others by now."""
        if self._reports.oldest_unacknowledged_s() < CUT_OFF_AFTER_S:
            return
        if not self._is_idle():
            _log.warning(
                "cut_off",
                seconds=round(self._reports.oldest_unacknowledged_s()),
                does="ends its workers, waits for Kafka",
            )
        self._workers.kill_all(EndReason.CUT_OFF)
        self._reports.purge()

    def _forget_old_epochs(self) -> None:
        now_s = time.monotonic()
        if now_s - self._forgot_s > _FORGET_S:
            self._state, self._forgot_s = forget_old_epochs(self._state, now_s), now_s
