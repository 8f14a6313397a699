"""What a worker needs for its task. Everything else is taken from it before it opens its source or its model."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from vidflow.domain.device import DeviceKind
from vidflow.domain.errors import SourceError
from vidflow.domain.sandbox import Permissions, is_looked_up_locally, plan_permissions
from vidflow.domain.source_schemes import find_scheme
from vidflow.infra.models import registry
from vidflow.infra.process.installation import find_installation
from vidflow.roles.worker.link import Task
from vidflow.roles.worker.source_path import resolve_source


def prepare_permissions(task: Task) -> Permissions:
    """Return the permissions of a task, and import what it could not import with them. Of its files, only a model's spec is read."""
    use = registry.find_use(task.deploy.model, task.models_dir, any_onnx=task.any_onnx)
    registry.import_libraries(use)
    authorities = [task.sources.ca_file] if task.sources.ca_file else []
    return plan_permissions(
        find_installation(),
        files=[*_find_source(task), *map(str, use.files), *task.kafka.files(), *authorities],
        models_dir=str(task.models_dir) if task.models_dir else None,
        network=True,  # for Kafka
        camera=task.sources.names_device(task.deploy.source),
        weights=use.fetches_weights,
        plugin=use.is_plugin,
        gpu=task.device.kind is not DeviceKind.CPU,
        local_servers=task.inference_socket is not None or any(map(is_looked_up_locally, _list_hosts(task))),
    )


def _find_source(task: Task) -> list[str]:
    """Return the source if it is a regular file. Another one, such as a folder, would grant what is in it."""
    source = task.deploy.source
    if find_scheme(source) is not None or task.sources.names_device(source):
        return []
    try:
        path = resolve_source(source, task.media_root, any_file=task.any_file)
        return [path] if Path(path).is_file() else []
    except (SourceError, OSError, ValueError):  # raised again when it is opened
        return []


def _list_hosts(task: Task) -> list[str]:
    brokers = [server.strip().rpartition(":")[0] for server in task.kafka.bootstrap.split(",")]
    try:
        return [*brokers, urlsplit(task.deploy.source).hostname or ""]
    except ValueError:
        return brokers
