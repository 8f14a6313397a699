"""The work of an inference process: load the model, then answer requests until nobody needs it."""

from __future__ import annotations

import socket
import threading
import traceback
from functools import partial
from multiprocessing.connection import Connection

from vidflow.domain.device import CPU
from vidflow.domain.errors import DeviceUnavailable, ErrorInfo, UserError, VidflowError, build_error_info, sanitize_text
from vidflow.infra.inference.messages import Ready, Refused
from vidflow.infra.models import registry
from vidflow.infra.models.thread_budget import ThreadBudget
from vidflow.infra.process.memory import return_free_memory
from vidflow.roles.inference import link
from vidflow.roles.inference.batches import BatchRunner
from vidflow.roles.inference.server import InferenceServer, report_alive


def serve(task: link.InferenceTask, listener: socket.socket, messages: Connection, budget: ThreadBudget) -> None:
    """Load the model, or find out why that is not possible, and serve the clients of `listener`.

    The model runs on as many threads as the budget allows.
    """
    link.send(messages, link.InferenceAlive(is_loaded=False))
    server = _open(task, listener, budget)
    reports = partial(report_alive, partial(link.send, messages), server, link.ALIVE_INTERVAL_S)
    threading.Thread(target=reports, name="reports", daemon=True).start()
    server.run()


def _open(task: link.InferenceTask, listener: socket.socket, budget: ThreadBudget) -> InferenceServer:
    try:
        bundle = registry.resolve(task.model, task.models_dir, any_onnx=task.any_onnx, keep_weights=True)
        registry.require_same(bundle, task.model_sha256)
        network = registry.open_network(bundle, task.device)
    except VidflowError as error:
        refused = Refused(build_error_info(error), fatal=isinstance(error, UserError | DeviceUnavailable))
        return InferenceServer(listener, refused, (0, 0), None, 1, budget)
    except Exception as error:  # noqa: BLE001 - the clients report any error
        traceback.print_exc()
        text = sanitize_text(f"{type(error).__name__}: {error}")[:1000]
        return InferenceServer(
            listener, Refused(ErrorInfo("worker_failed", text), fatal=False), (0, 0), None, 1, budget
        )
    size = bundle.spec.tensor_specs()[0].size if network.sizes is None else None
    ready = Ready(
        network.form, network.fixed_batch, network.output_names, network.device, network.sizes, network.labels
    )
    del bundle  # with the weights
    return_free_memory()
    lanes = task.cores if network.device == CPU and network.runs_in_threads else 1
    return InferenceServer(listener, ready, size, BatchRunner(network), lanes, budget)
