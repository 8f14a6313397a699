"""Each role's options as one Struct, made by the command line: the only place that reads the environment.

The command line (cli/) gives every option an environment variable of the same name, VIDFLOW_…, and the brief's own names
MAX_WORKERS and VIDEO_FPS beside it. This module holds what the options mean once they are read.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from vidflow.domain.errors import SetupError
from vidflow.domain.retention import RetentionPolicy
from vidflow.infra.kafka.settings import (
    SERVERS,
    VARIABLE_PREFIX,
    KafkaSettings,
    parse_properties,
    parse_variables,
)


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What several roles need. `database_url` is a libpq URL, `kafka` what Kafka's clients are configured with."""

    database_url: str = ""
    kafka: KafkaSettings = KafkaSettings()
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log_format: str = "text"


class ApiOptions(CommonOptions, frozen=True, kw_only=True):
    """The api: where it listens, what local files it may name, whether it hosts the inbox, and how much work it lets in.

    `any_file` is about videos. `any_onnx` lets requests name ONNX models and their specs anywhere: on loopback only, and only
    without `models_dir`.
    `allowed_hosts` are the hosts that requests may name beside loopback. `queue_limit` is how many scenarios may wait for a runner,
    `queue_limit_bytes` how much they may take together. `data_dir`: where the servers' data lie on this machine, if they
    do; no new scenario is taken with less than `min_free_bytes` free there.
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


class RelayOptions(CommonOptions, frozen=True, kw_only=True):
    """The relay."""


class InboxOptions(CommonOptions, frozen=True, kw_only=True):
    """The inbox. `group_protocol`: "classic" where the broker knows no other, or takes long to notice a dead consumer."""

    group_protocol: str = "consumer"


class OrchestratorOptions(CommonOptions, frozen=True, kw_only=True):
    """The orchestrator: how many attempts a scenario has at one frame, and for how long what is kept."""

    attempts: int = 5
    retention: RetentionPolicy = RetentionPolicy()


class RunnerOptions(CommonOptions, frozen=True, kw_only=True):
    """The runner: its slots, what it may read, and the limits of its workers.

    `any_file` is about videos, `any_onnx` about ONNX models and their specs, where there is no `models_dir`.
    `start_deadline_s` and `inference_deadline_s` bound what a worker may take in its start and for one batch;
    `worker_memory_bytes` is its memory cap (None: chosen from the machine's memory and the slots, 0: no cap).
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


class DevOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`vidflow dev`: the embedded servers (or given ones) and how many of each role."""

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


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`vidflow run`: one video through one model. `url` names a vidflow that runs already; None starts one for the purpose."""

    video: str
    model: str = "motion"
    fps: str = "all"
    output: str = "table"
    url: str | None = None
    score_threshold: float | None = None
    labels: tuple[str, ...] | None = None
    max_workers: int = 2
    models_dir: Path | None = None


def build_live_url(options: object) -> str:
    """Return the URL at which a role answers whether it is alive, empty for a role that serves no HTTP."""
    if not isinstance(options, ApiOptions) or not options.port:
        return ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # noqa: S104 - compared with
    return f"http://[{host}]:{options.port}/health/live" if ":" in host else f"http://{host}:{options.port}/health/live"


def read_environment_variable(name: str) -> str | None:
    """The value of an environment variable, None where it is unset or empty."""
    return os.environ.get(name) or None


def read_kafka_settings(servers: str | None, file: Path | None) -> KafkaSettings:
    """Return Kafka's settings: a property in a variable VIDFLOW_KAFKA_… stands above the same one in the file.

    `servers` (--kafka or VIDFLOW_KAFKA) stands above bootstrap.servers in either. Raises SetupError, naming the property or the
    line, never a value.
    """
    properties = _read_properties_file(file) if file else {}
    properties |= parse_variables(os.environ)
    named = properties.pop(SERVERS, "")
    return KafkaSettings(servers or named, properties)


def _read_properties_file(file: Path) -> dict[str, str]:
    try:
        return parse_properties(file.read_text("utf-8-sig"), str(file))
    except OSError as error:
        raise SetupError(f"{file} cannot be read ({error.strerror}). Check --kafka-properties.") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{file} is not UTF-8 text. --kafka-properties takes lines of name=value.") from error


def build_kafka_variables(settings: KafkaSettings) -> dict[str, str]:
    """Return the variables that give a child process these settings and none of this process's own."""
    cleared = dict.fromkeys((name for name in os.environ if name.startswith(VARIABLE_PREFIX)), "")
    return cleared | settings.variables()
