"""Starts an inference process and confines it. It imports none of the heavy libraries, since the runner imports this module."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import threading
from multiprocessing.connection import Connection
from typing import Final

from vidflow.domain.device import DeviceKind
from vidflow.domain.sandbox import INFERENCE_OPEN_FILES, Permissions, plan_permissions
from vidflow.infra.models import registry
from vidflow.infra.models.thread_budget import ThreadBudget
from vidflow.infra.process.crashpoint import arm
from vidflow.infra.process.installation import find_installation
from vidflow.infra.process.memory import prefer_as_oom_victim
from vidflow.infra.process.name import name_process
from vidflow.infra.process.parent import die_with_parent
from vidflow.infra.process.sandbox import confine, hide_memory, require_guard
from vidflow.infra.telemetry.logs import configure_logs
from vidflow.roles.inference.link import InferenceTask, follow_orders

PROCESS_NAME: Final = "vidflow-infer"
"""The process's name in `ps` and `top`."""


def run_inference(
    task: InferenceTask, listener: socket.socket, messages: Connection, orders: Connection, stderr: Connection
) -> None:
    """Serve a model in this process. `listener`: the socket of its clients. The pipes lead to the runner, `stderr` included."""
    for standard_fd in (1, 2):
        os.dup2(stderr.fileno(), standard_fd)
    stderr.close()
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the runner
    name_process(PROCESS_NAME)
    die_with_parent()
    hide_memory(hidden=False)  # the next step's file belongs to root otherwise
    prefer_as_oom_victim()
    configure_logs()
    arm(task.crashpoints)
    if task.confined:
        require_guard()
        confine(_prepare_permissions(task), [end.fileno() for end in (listener, messages, orders)])
    budget = ThreadBudget(task.threads)
    threading.Thread(target=follow_orders, args=(orders, budget), name="orders", daemon=True).start()
    from vidflow.roles.inference.main import serve  # noqa: PLC0415 - heavy; the forkserver has usually imported it

    serve(task, listener, messages, budget)


def _prepare_permissions(task: InferenceTask) -> Permissions:
    """Return what the process needs, its model and no network, and import what it could not import with that."""
    use = registry.find_use(task.model, task.models_dir, any_onnx=task.any_onnx)
    registry.import_libraries(use)
    return plan_permissions(
        find_installation(),
        files=map(str, use.files),
        models_dir=str(task.models_dir) if task.models_dir else None,
        network=False,
        open_files=INFERENCE_OPEN_FILES,
        gpu=task.device.kind is not DeviceKind.CPU,
    )
