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
    how_to_install,
    info_of,
    internal_error,
    is_bug,
    storable,
)
from vidflow.domain.messages import Deploy, EndReason, OnPoison, Waiting
from vidflow.domain.redaction import secrets_of
from vidflow.infra.process.crashpoint import arm
from vidflow.infra.process.memory import prefer_as_oom_victim
from vidflow.infra.process.parent import die_with_parent
from vidflow.infra.telemetry.logs import configure_logs
from vidflow.roles.worker.link import Link, Task


def throwaway() -> None:
    """The body of a process that does nothing: once it has run, the forkserver has imported all that it is to import."""


class Nothing:
    """What a forkserver is asked to run to find out whether it can make a process at all: no process of multiprocessing's own."""

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:  # noqa: ARG002 - as multiprocessing calls it
        return 0


def work(task: Task, told: Connection, orders: Connection, stderr: Connection) -> None:
    """The body of a worker's process. `told` and `orders` are its ends of the line to its runner, `stderr` takes its words."""
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
    secrets = (*secrets_of(task.deploy.source), *task.kafka.secrets())
    link = Link(told, orders, task.deploy.resume.next_frame, secrets)
    try:
        link.ended(_process(task, link))
    except UserError as error:
        link.ended(EndReason.ERROR, info_of(error, link.at_frame), fatal=True)
    except VidflowError as error:
        link.ended(EndReason.ERROR, info_of(error, link.at_frame))
    except MemoryError:
        error_info = ErrorInfo(
            "worker_memory",
            f"the worker of scenario {task.deploy.scenario_uuid} had no memory left; use a smaller model or video, or give the "
            "runner more memory",
            link.at_frame,
        )
        link.ended(EndReason.MEMORY, error_info)
    except Exception as error:  # noqa: BLE001 - whatever it is, its runner is told and its traceback kept
        traceback.print_exc()
        if is_bug(error):
            found = internal_error(error, VERSIONS, "the traceback in the scenario's history")
            link.ended(EndReason.ERROR, info_of(found, link.at_frame), fatal=_fails_again(task.deploy, link))
        else:
            link.ended(
                EndReason.ERROR, ErrorInfo("worker_failed", storable(f"{type(error).__name__}: {error}"), link.at_frame)
            )


def _fails_again(deploy: Deploy, link: Link) -> bool:
    """Return whether a retry would meet the same bug again.

    Opening, loading, and reading a file are the same in every attempt. A camera sends other packets next time. A frame that
    inference fails at is retried once, alone, and left to the scenario's attempts if poisonous frames are to be skipped.
    """
    match link.waiting:
        case Waiting.START:
            return True
        case Waiting.INFERENCE:
            retried = deploy.attempt > 0 and link.at_frame == deploy.resume.next_frame
            return retried and deploy.parameters.on_poison is OnPoison.FAIL
        case _:
            return "://" not in deploy.source


def _process(task: Task, link: Link) -> EndReason:
    try:
        from vidflow.roles.worker.main import process  # noqa: PLC0415 - heavy, and there already where the forkserver has it
    except ModuleNotFoundError as error:
        raise MissingExtra(f"this runner lacks {error.name}; {how_to_install('runner')}") from error
    return process(task, link)
