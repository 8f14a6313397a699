"""How a worker's process begins and how it ends, whatever happens between. What it does in between is main.py's affair.

It imports none of the heavy libraries: the runner, which makes workers by this module's functions, does without them.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from multiprocessing.connection import Connection

from vidflow import VERSIONS
from vidflow.domain.errors import (
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
from vidflow.infra.process.parent import die_with_parent
from vidflow.infra.telemetry.logs import configure_logs
from vidflow.roles.worker.link import Link, Task


def do_nothing() -> None:
    """The body of a process that does nothing: once it has run, the forkserver has imported all that it is to import."""


class NoOpProcess:
    """What a forkserver is asked to run to find out whether it can make a process at all: no process of multiprocessing's own."""

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:  # noqa: ARG002 - as multiprocessing calls it
        return 0


def run_worker(task: Task, messages: Connection, orders: Connection, stderr: Connection) -> None:
    """The body of a worker's process. `messages` and `orders` are its ends of the line to its runner, `stderr` takes its words."""
    for ours in (1, 2):
        os.dup2(stderr.fileno(), ours)
    stderr.close()
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the runner, which orders its workers to finish
    die_with_parent()
    prefer_as_oom_victim()
    configure_logs()
    arm(task.crashpoints)
    secrets = (*find_secrets(task.deploy.source), *task.kafka.secrets())
    link = Link(messages, orders, task.deploy.resume.next_frame, secrets)
    try:
        link.report_end(_process(task, link))
    except UserError as error:
        link.report_end(EndReason.ERROR, build_error_info(error, link.current_frame), fatal=True)
    except VidflowError as error:
        link.report_end(EndReason.ERROR, build_error_info(error, link.current_frame))
    except MemoryError:
        error_info = ErrorInfo(
            "worker_memory",
            f"the worker of scenario {task.deploy.scenario_uuid} had no memory left; use a smaller model or video, or give the "
            "runner more memory",
            link.current_frame,
        )
        link.report_end(EndReason.MEMORY, error_info)
    except Exception as error:  # noqa: BLE001 - whatever it is, its runner is told and its traceback kept
        traceback.print_exc()
        if is_bug(error):
            found = build_internal_error(error, VERSIONS, "the traceback in the scenario's history")
            link.report_end(
                EndReason.ERROR, build_error_info(found, link.current_frame), fatal=_fails_again(task.deploy, link)
            )
        else:
            link.report_end(
                EndReason.ERROR,
                ErrorInfo("worker_failed", sanitize_text(f"{type(error).__name__}: {error}"), link.current_frame),
            )


def _fails_again(deploy: Deploy, link: Link) -> bool:
    """Return whether a retry would meet the same bug again.

    Opening, loading, and reading a file are the same in every attempt. A camera sends other packets next time. A frame that
    inference fails at is retried once, alone, and left to the scenario's attempts if poisonous frames are to be skipped.
    """
    match link.current_wait:
        case WorkerWait.START:
            return True
        case WorkerWait.INFERENCE:
            retried = deploy.attempt > 0 and link.current_frame == deploy.resume.next_frame
            return retried and deploy.parameters.on_poison is PoisonPolicy.FAIL
        case _:
            return "://" not in deploy.source


def _process(task: Task, link: Link) -> EndReason:
    try:
        from vidflow.roles.worker.main import process  # noqa: PLC0415 - heavy, and there already where the forkserver has it
    except ModuleNotFoundError as error:
        raise MissingExtra(f"this runner lacks {error.name}; {format_install_hint('runner')}") from error
    return process(task, link)
