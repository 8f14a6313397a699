"""The options of each role as a Struct, and access to environment variables.

healthcheck.py reads one itself, and infra/process/installation.py those of libraries.

The command line (cli/) builds these Structs. It gives every option an environment variable VIDFLOW_… and also reads MAX_WORKERS
and VIDEO_FPS.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from vidflow.domain.device import AUTO, Device
from vidflow.domain.errors import ParameterError, SetupError
from vidflow.domain.retention import RetentionPolicy
from vidflow.domain.sandbox import SandboxMode, inherited_variables
from vidflow.domain.scenario import DEFAULT_MODEL
from vidflow.domain.source_access import SourceAccess, parse_devices, parse_networks
from vidflow.infra.kafka.settings import (
    SERVERS,
    VARIABLE_PREFIX,
    KafkaSettings,
    parse_properties,
    parse_variables,
)
from vidflow.infra.source_tls import build_tls_context

OutputFormat = Literal["table", "ndjson", "json", "csv"]
"""How `vidflow run` prints the detections."""
InferenceMode = Literal["auto", "worker", "shared"]
"""Where a runner's models run: in each worker, or in one process for all workers that use the same model. `auto`: shared on a GPU."""


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of several roles. `database_url` is a libpq URL, `kafka` configures the Kafka clients."""

    database_url: str = ""
    kafka: KafkaSettings = KafkaSettings()
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log_format: str = "text"


class ApiOptions(CommonOptions, frozen=True, kw_only=True):
    """Options of the api.

    `allowed_hosts`: hosts that requests may name, besides loopback. `inbox`: run the inbox as a thread of the api. `any_file`:
    requests may name any local video, not only those under `media_root`. `any_onnx`: requests may name any ONNX model or spec
    by path, on loopback only and only without `models_dir`. `queue_limit` and `queue_limit_bytes`: number and total size of the
    scenarios that may wait for a runner. `data_dir`: the data folder of the servers, if it is on this machine. The api refuses
    new scenarios while less than `min_free_bytes` is free there. `devices`: the cameras of runners' machines that requests may name.
    `owner_scenarios` and `owner_requests_per_s`: quotas of each owner, None for none.
    `auth`: requests need a token. On a loopback `host`, they do once one was created. `cors_origins`: origins of other sites
    whose pages may use the API. `trusted_proxies`: addresses or networks whose X-Forwarded-For is believed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = 1000
    inbox: bool = True
    media_root: Path | None = None
    any_file: bool = False
    models_dir: Path | None = None
    any_onnx: bool = False
    video_fps: str = "all"
    pool_size: int = 10
    queue_limit: int = 10_000
    queue_limit_bytes: int = 256 * 1024**2
    data_dir: Path | None = None
    min_free_bytes: int = 256 * 1024**2
    devices: tuple[str, ...] = ()
    auth: bool = True
    owner_scenarios: int | None = None
    owner_requests_per_s: float | None = None
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()


class RelayOptions(CommonOptions, frozen=True, kw_only=True):
    """Options of the relay."""


class InboxOptions(CommonOptions, frozen=True, kw_only=True):
    """Options of the inbox. `group_protocol`: "classic" if the broker has no other, or is slow to notice a dead consumer."""

    group_protocol: str = "consumer"


class OrchestratorOptions(CommonOptions, frozen=True, kw_only=True):
    """Options of the orchestrator. `attempts`: how often a scenario is tried at one frame."""

    attempts: int = 5
    retention: RetentionPolicy = RetentionPolicy()


class RunnerOptions(CommonOptions, frozen=True, kw_only=True):
    """Options of the runner.

    `max_workers`: number of slots. `any_file`: videos outside `media_root` are allowed. `any_onnx`: ONNX models and specs by
    path are allowed if there is no `models_dir`. `start_deadline_s` and `inference_deadline_s`: time limits for the start of a
    worker and for one batch. `worker_memory_bytes`: memory cap of a worker (None: derived from the machine's memory and the
    slots, 0: no cap). `cores`: how many its workers share (None: all that this process may use). `device`: what models run on.
    `inference`: where they run. `sources`: what sources may be reached, and how. `sandbox`: whether its workers are confined.
    """

    max_workers: int = 2
    pool: str = "default"
    media_root: Path | None = None
    any_file: bool = False
    models_dir: Path | None = None
    any_onnx: bool = False
    grace_s: float = 25.0
    start_deadline_s: float = 60.0
    inference_deadline_s: float = 60.0
    worker_memory_bytes: int | None = None
    cores: int | None = None
    inference: InferenceMode = "auto"
    device: Device = AUTO
    sources: SourceAccess = SourceAccess()
    sandbox: SandboxMode = "auto"


class DevOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `vidflow dev`: the servers (embedded ones unless given) and the number of processes of each role."""

    port: int = 8000
    data_dir: Path | None = None
    database_url: str | None = None
    kafka: KafkaSettings = KafkaSettings()
    media_root: Path | None = None
    any_file: bool = True
    models_dir: Path | None = None
    max_workers: int = 2
    video_fps: str = "all"
    runners: int = 1
    orchestrators: int = 1
    relays: int = 1
    inference: InferenceMode = "auto"
    device: Device = AUTO
    sources: SourceAccess = SourceAccess()
    sandbox: SandboxMode = "auto"


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `vidflow run`.

    `url`: a running vidflow to use (None: start one for this run), with `token` if it needs one.
    `labels_file`: the labels of a model that does not name them.
    """

    video: str
    model: str = DEFAULT_MODEL
    labels_file: str | None = None
    fps: str = "all"
    output: OutputFormat = "table"
    url: str | None = None
    token: str | None = None
    score_threshold: float | None = None
    labels: tuple[str, ...] | None = None
    max_workers: int = 2
    models_dir: Path | None = None
    inference: InferenceMode = "auto"
    device: Device = AUTO
    sources: SourceAccess = SourceAccess()
    sandbox: SandboxMode = "auto"


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `vidflow bench`. `seconds`: how long to measure, besides the start of the processes."""

    model: str = DEFAULT_MODEL
    source: str = "sample:bikes"
    fps: str = "5"
    output: str = "text"
    seconds: float = 20.0
    models_dir: Path | None = None
    device: Device = AUTO


def split_list(text: str) -> tuple[str, ...]:
    """Return the items of a list that is separated by commas."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def split_labels(text: str) -> tuple[str, ...]:
    """Return the labels in a line of CSV. Raises ParameterError for a quote that is not closed or a line break."""
    try:
        [labels] = csv.reader([text], strict=True)
    except (csv.Error, ValueError) as error:
        raise ParameterError(
            f"Invalid --labels {text[:80]!r}. Separate labels by commas and close each quote."
        ) from error
    return tuple(labels)


def build_source_access(
    ca_file: Path | None, networks: Sequence[str] | None, devices: Sequence[str] | None, *, insecure: bool
) -> SourceAccess:
    """Return what sources may be reached, and how. Raises SetupError for a bad `ca_file`, ParameterError for the others."""
    access = SourceAccess(
        str(ca_file.absolute()) if ca_file else None,
        not insecure,
        parse_networks(networks or ()),
        parse_devices(devices or ()),
    )
    if ca_file is not None:
        build_tls_context(access)
    return access


def build_source_variables(access: SourceAccess) -> dict[str, str]:
    """Return the variables that pass these settings to a runner, and the devices to an api."""
    return {
        "VIDFLOW_SOURCE_CA_FILE": access.ca_file or "",
        "VIDFLOW_INSECURE_SOURCES": str(not access.verify).lower(),
        "VIDFLOW_ALLOW_SOURCE_NETWORK": " ".join(access.networks),
        "VIDFLOW_ALLOW_DEVICE": " ".join(access.devices),
    }


def build_live_url(options: object) -> str:
    """Return the URL of a role's liveness check, empty for a role that serves no HTTP."""
    if not isinstance(options, ApiOptions) or not options.port:
        return ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # noqa: S104 - only compared
    return f"http://[{host}]:{options.port}/health/live" if ":" in host else f"http://{host}:{options.port}/health/live"


def forget_environment() -> None:
    """Remove from this process's environment what its confined processes must not inherit. Call it once the options are read."""
    for name in os.environ.keys() - inherited_variables(os.environ).keys():
        del os.environ[name]


def read_environment_variable(name: str) -> str | None:
    """Return the value of an environment variable, None if it is unset or empty."""
    return os.environ.get(name) or None


def read_kafka_settings(servers: str | None, file: Path | None) -> KafkaSettings:
    """Return the Kafka settings from the options, the environment and a properties file.

    A variable VIDFLOW_KAFKA_… overrides the same property in the file; `servers` (--kafka or VIDFLOW_KAFKA) overrides
    bootstrap.servers in both. Raises SetupError, which names the property or the line but never a value.
    """
    properties = _read_properties_file(file) if file else {}
    properties |= parse_variables(os.environ)
    bootstrap = properties.pop(SERVERS, "")
    return KafkaSettings(servers or bootstrap, properties)


def _read_properties_file(file: Path) -> dict[str, str]:
    try:
        return parse_properties(file.read_text("utf-8-sig"), str(file))
    except OSError as error:
        raise SetupError(f"{file} cannot be read ({error.strerror}). Check --kafka-properties.") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{file} is not UTF-8 text. --kafka-properties takes lines of name=value.") from error


def build_kafka_variables(settings: KafkaSettings) -> dict[str, str]:
    """Return the variables that pass these settings to a child process and clear this process's own."""
    cleared = dict.fromkeys((name for name in os.environ if name.startswith(VARIABLE_PREFIX)), "")
    return cleared | settings.variables()
