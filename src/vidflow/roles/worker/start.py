"""Starts and ends a worker's process and reports every kind of error to the runner. main.py does the work in between.

It imports none of the heavy libraries, since the runner imports this module and works without them.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from multiprocessing.connection import Connection

from vidflow import VERSIONS
from vidflow.domain.errors import (
    DeviceUnavailable,
    ErrorInfo,
    MissingExtra,
    UserError,
    VidflowError,
    build_error_info,
    build_internal_error,
    format_install_hint,
    is_bug,
    sanitize_text,
)
from vidflow.domain.messages import Deploy, EndReason, PoisonPolicy, WorkerWait
from vidflow.domain.redaction import find_secrets
from vidflow.infra.process.crashpoint import arm
from vidflow.infra.process.memory import prefer_as_oom_victim
from vidflow.infra.process.name import name_process
from vidflow.infra.process.parent import die_with_parent
from vidflow.infra.process.sandbox import confine, hide_memory, require_guard
from vidflow.infra.telemetry.logs import configure_logs
from vidflow.roles.worker.link import Link, Task
from vidflow.roles.worker.permissions import prepare_permissions


def do_nothing() -> None:
    """Do nothing. Once a process with this body has run, its forkserver has finished its imports."""


class NoOpProcess:
    """A minimal stand-in for a multiprocessing process, to test whether a forkserver can start one."""

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:  # noqa: ARG002 - multiprocessing's signature
        return 0


def run_worker(task: Task, messages: Connection, orders: Connection, stderr: Connection) -> None:
    """Run a worker in this process. The pipes lead to its runner; `stderr` receives its standard output and standard error."""
    for standard_fd in (1, 2):
        os.dup2(stderr.fileno(), standard_fd)
    stderr.close()
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the runner, which orders its workers to finish
    name_process("vidflow-worker")
    die_with_parent()
    hide_memory(hidden=False)  # the next step's file belongs to root otherwise
    prefer_as_oom_victim()
    configure_logs()
    arm(task.crashpoints)
    fault = _confine(task, messages, orders) if task.confined else None
    secrets = (*find_secrets(task.deploy.source), *task.kafka.secrets())
    link = Link(messages, orders, task.deploy.resume.next_frame, secrets, task.threads)
    try:
        link.report_end(_process(task, link, fault))
    except (UserError, DeviceUnavailable) as error:
        link.report_end(EndReason.ERROR, build_error_info(error, link.current_frame), fatal=True)
    except VidflowError as error:
        link.report_end(EndReason.ERROR, build_error_info(error, link.current_frame))
    except MemoryError:
        error_info = ErrorInfo(
            "worker_memory",
            f"Worker of scenario {task.deploy.scenario_uuid} ran out of memory. Use a smaller model or video, or give the runner "
            "more memory.",
            link.current_frame,
        )
        link.report_end(EndReason.MEMORY, error_info)
    except Exception as error:  # noqa: BLE001 - the runner gets any error and its traceback
        traceback.print_exc()
        if is_bug(error):
            bug = build_internal_error(error, VERSIONS, "the traceback in the scenario's history")
            link.report_end(
                EndReason.ERROR, build_error_info(bug, link.current_frame), fatal=_fails_again(task.deploy, link)
            )
        else:
            link.report_end(
                EndReason.ERROR,
                ErrorInfo("worker_failed", sanitize_text(f"{type(error).__name__}: {error}"), link.current_frame),
            )


def _confine(task: Task, *pipes: Connection) -> VidflowError | None:
    """Give up all rights that the task does not need. Return the error to report if that fails: then nothing may be opened."""
    try:
        require_guard()
        confine(prepare_permissions(task), [pipe.fileno() for pipe in pipes])
    except OSError as error:
        return VidflowError(
            f"Cannot confine the worker ({error.strerror}). Run the runner on a system that can, or start it with --sandbox off.",
            code="sandbox_failed",
        )
    return None


def _fails_again(deploy: Deploy, link: Link) -> bool:
    """Return whether a retry would meet the same bug again.

    Opening, loading and reading a file are the same in every attempt, but a camera sends other packets next time. A frame that
    fails in inference is retried once, alone. If poisonous frames are skipped, it uses up the scenario's attempts instead.
    """
    match link.current_wait:
        case WorkerWait.START:
            return True
        case WorkerWait.INFERENCE:
            retried = deploy.attempt > 0 and link.current_frame == deploy.resume.next_frame
            return retried and deploy.parameters.on_poison is PoisonPolicy.FAIL
        case _:
            return "://" not in deploy.source


def _process(task: Task, link: Link, fault: VidflowError | None) -> EndReason:
    if fault is not None:
        raise fault
    try:
        from vidflow.roles.worker.main import process  # noqa: PLC0415 - heavy; the forkserver has usually imported it
    except ModuleNotFoundError as error:
        raise MissingExtra(f"This runner lacks the module {error.name}. {format_install_hint('runner')}.") from error
    return process(task, link)
