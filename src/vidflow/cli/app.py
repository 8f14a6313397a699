"""The command line: one command per role, plus `dev` and `run`. Each option can also be set by an environment variable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer

from vidflow import __version__
from vidflow.cli.errors import refuse_options
from vidflow.cli.models import models
from vidflow.cli.operations import db, dlq, outbox, topics
from vidflow.cli.options import (
    AllowDevice,
    AllowedHosts,
    AllowSourceNetwork,
    AnyFile,
    AnyOnnx,
    Attempts,
    Auth,
    BenchOutput,
    BenchSource,
    Cores,
    CorsOrigins,
    DatabaseUrl,
    DataDir,
    DeviceName,
    Fps,
    GraceS,
    GroupProtocol,
    Host,
    Inference,
    InferenceDeadlineS,
    InsecureSources,
    KafkaProperties,
    KafkaServers,
    KeepAuditDays,
    KeepResultsDays,
    KeepScenariosDays,
    Labels,
    LabelsFile,
    LogFormat,
    MaxConnections,
    MaxWorkers,
    MediaRoot,
    MetricsHost,
    MetricsPort,
    MinFreeBytes,
    ModelName,
    ModelsDir,
    Orchestrators,
    OwnerRequestsPerS,
    OwnerScenarios,
    Pool,
    PoolSize,
    Port,
    QueueLimit,
    QueueLimitBytes,
    Relays,
    ResultsPartitionDays,
    RunInbox,
    Runners,
    RunOutput,
    Sandbox,
    Score,
    Seconds,
    SourceCaFile,
    StartDeadlineS,
    Token,
    TrustedProxies,
    Url,
    Video,
    VideoFps,
    WorkerMemoryBytes,
)
from vidflow.cli.tokens import print_audit, token_app
from vidflow.domain.device import parse_device
from vidflow.domain.retention import RetentionPolicy
from vidflow.domain.scenario import DEFAULT_MODEL
from vidflow.domain.source_access import parse_devices
from vidflow.infra.process.crashpoint import arm
from vidflow.infra.process.heartbeat import Heartbeat
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.logs import configure_logs
from vidflow.settings import (
    ApiOptions,
    BenchOptions,
    DevOptions,
    InboxOptions,
    OrchestratorOptions,
    RelayOptions,
    RunnerOptions,
    RunOptions,
    build_live_url,
    build_source_access,
    read_environment_variable,
    read_kafka_settings,
    split_labels,
    split_list,
)  # fmt: skip

app = typer.Typer(
    help="Run vision models over videos, frame by frame. No result is lost when a process dies.",
    rich_markup_mode=None,  # its tables cut long words
    pretty_exceptions_enable=False,
)
app.add_typer(db, name="db")
app.add_typer(topics, name="topics")
app.add_typer(models, name="models")
app.add_typer(outbox, name="outbox")
app.add_typer(dlq, name="dlq")
app.add_typer(token_app, name="token")

Options = TypeVar("Options")
OPTIONS_OF_OWN_RUNNER: Final = {
    "max_workers", "models_dir", "device", "inference", "source_ca_file", "insecure_sources", "allow_source_network", "sandbox",
}  # fmt: skip
"""Options of `vidflow run` that are settings of the runner that it starts."""


def _run_role(run: Callable[[Options, Stop], None], options: Options, log_format: str) -> None:
    """Run a role in this process until a stop is requested or an error ends it."""
    configure_logs(log_format)
    arm(read_environment_variable("VIDFLOW_CRASHPOINTS") or "")
    stop = Stop()
    stop.request_on_signals()
    if health_file := read_environment_variable("VIDFLOW_HEALTH_FILE"):
        stop.on_iteration(Heartbeat(Path(health_file), build_live_url(options)).beat)
    run(options, stop)
    if stop.error is not None:
        raise stop.error


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


@app.command()
def api(
    database_url: DatabaseUrl = "", kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_port: MetricsPort = None, metrics_host: MetricsHost = "127.0.0.1",
    host: Host = "127.0.0.1", port: Port = 8000, allowed_hosts: AllowedHosts = "", max_connections: MaxConnections = 1000,
    inbox: RunInbox = True, media_root: MediaRoot = None, any_file: AnyFile = False, models_dir: ModelsDir = None,
    any_onnx: AnyOnnx = False, video_fps: VideoFps = "all", pool_size: PoolSize = 10, queue_limit: QueueLimit = 10_000,
    queue_limit_bytes: QueueLimitBytes = 256 * 1024**2, data_dir: DataDir = None, min_free_bytes: MinFreeBytes = 256 * 1024**2,
    allow_device: AllowDevice = None, auth: Auth = True, cors_origins: CorsOrigins = "", trusted_proxies: TrustedProxies = "",
    owner_scenarios: OwnerScenarios = None, owner_requests_per_s: OwnerRequestsPerS = None,
) -> None:  # fmt: skip
    """Serve the HTTP API."""
    from vidflow.roles.api import run  # noqa: PLC0415 - load only what this role needs

    _run_role(run, ApiOptions(
        database_url=database_url, kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format,
        metrics_host=metrics_host, metrics_port=metrics_port, host=host, port=port, inbox=inbox, media_root=media_root,
        any_file=any_file, models_dir=models_dir, any_onnx=any_onnx, video_fps=video_fps, pool_size=pool_size,
        allowed_hosts=split_list(allowed_hosts), cors_origins=split_list(cors_origins), trusted_proxies=split_list(trusted_proxies),
        auth=auth, owner_scenarios=owner_scenarios, owner_requests_per_s=owner_requests_per_s, max_connections=max_connections,
        queue_limit=queue_limit, queue_limit_bytes=queue_limit_bytes, data_dir=data_dir, min_free_bytes=min_free_bytes,
        devices=parse_devices(allow_device or ()),
    ), log_format)  # fmt: skip


@app.command()
def relay(
    database_url: DatabaseUrl = "", kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_port: MetricsPort = None, metrics_host: MetricsHost = "127.0.0.1",
) -> None:  # fmt: skip
    """Publish the outbox to Kafka."""
    from vidflow.roles.relay import run  # noqa: PLC0415

    _run_role(run, RelayOptions(
        database_url=database_url, kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format,
        metrics_port=metrics_port, metrics_host=metrics_host,
    ), log_format)  # fmt: skip


@app.command()
def inbox(
    database_url: DatabaseUrl = "", kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_port: MetricsPort = None, metrics_host: MetricsHost = "127.0.0.1", group_protocol: GroupProtocol = "consumer",
) -> None:  # fmt: skip
    """Store the results from Kafka in PostgreSQL. Only needed if the api runs with --no-inbox."""
    from vidflow.roles.inbox import run  # noqa: PLC0415

    _run_role(run, InboxOptions(
        database_url=database_url, kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format,
        metrics_port=metrics_port, metrics_host=metrics_host, group_protocol=group_protocol,
    ), log_format)  # fmt: skip


@app.command()
def orchestrator(
    database_url: DatabaseUrl = "", kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_port: MetricsPort = None, metrics_host: MetricsHost = "127.0.0.1", attempts: Attempts = 5,
    keep_results_days: KeepResultsDays = None, keep_scenarios_days: KeepScenariosDays = None,
    results_partition_days: ResultsPartitionDays = 7, keep_audit_days: KeepAuditDays = 90,
) -> None:  # fmt: skip
    """Assign scenarios to runners and follow them to their end. One leads, the others stand by."""
    from vidflow.roles.orchestrator import run  # noqa: PLC0415

    _run_role(run, OrchestratorOptions(
        database_url=database_url, kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format,
        metrics_host=metrics_host, metrics_port=metrics_port, attempts=attempts,
        retention=RetentionPolicy(
            partition_days=results_partition_days, results_days=keep_results_days, scenarios_days=keep_scenarios_days,
            audit_days=keep_audit_days,
        ),
    ), log_format)  # fmt: skip


@app.command()
def runner(
    kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_port: MetricsPort = None, metrics_host: MetricsHost = "127.0.0.1", max_workers: MaxWorkers = 2, pool: Pool = "default",
    media_root: MediaRoot = None, any_file: AnyFile = False, models_dir: ModelsDir = None, any_onnx: AnyOnnx = False,
    grace_s: GraceS = 25.0, start_deadline_s: StartDeadlineS = 60.0, inference_deadline_s: InferenceDeadlineS = 60.0,
    worker_memory_bytes: WorkerMemoryBytes = None, cores: Cores = None, device: DeviceName = "auto", inference: Inference = "auto",
    source_ca_file: SourceCaFile = None, insecure_sources: InsecureSources = False,
    allow_source_network: AllowSourceNetwork = None, allow_device: AllowDevice = None, sandbox: Sandbox = "auto",
) -> None:  # fmt: skip
    """Run workers, which read videos and run models on them."""
    from vidflow.roles.runner import run  # noqa: PLC0415

    _run_role(run, RunnerOptions(
        kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format,
        metrics_port=metrics_port, metrics_host=metrics_host, max_workers=max_workers, pool=pool,
        media_root=media_root, any_file=any_file, models_dir=models_dir, any_onnx=any_onnx, grace_s=grace_s,
        start_deadline_s=start_deadline_s, inference_deadline_s=inference_deadline_s, worker_memory_bytes=worker_memory_bytes,
        cores=cores, device=parse_device(device), inference=inference,
        sources=build_source_access(source_ca_file, allow_source_network, allow_device, insecure=insecure_sources), sandbox=sandbox,
    ), log_format)  # fmt: skip


@app.command()
def dev(
    port: Port = 8000, data_dir: DataDir = None, database_url: DatabaseUrl = "", kafka: KafkaServers = "",
    kafka_properties: KafkaProperties = None, media_root: MediaRoot = None, models_dir: ModelsDir = None,
    max_workers: MaxWorkers = 2, video_fps: VideoFps = "all",
    runners: Runners = 1, orchestrators: Orchestrators = 1, relays: Relays = 1,
    device: DeviceName = "auto", inference: Inference = "auto",
    source_ca_file: SourceCaFile = None, insecure_sources: InsecureSources = False,
    allow_source_network: AllowSourceNetwork = None, allow_device: AllowDevice = None, sandbox: Sandbox = "auto",
) -> None:  # fmt: skip
    """Run all of vidflow on this machine.

    Starts its own PostgreSQL unless --database-url is given, and its own Kafka unless --kafka is given. Without --data-dir, their
    data are deleted at the end.
    """
    from vidflow.commands.dev import run  # noqa: PLC0415

    _run_role(run, DevOptions(
        port=port, data_dir=data_dir, database_url=database_url or None, kafka=read_kafka_settings(kafka, kafka_properties),
        media_root=media_root, any_file=media_root is None, models_dir=models_dir,
        max_workers=max_workers, video_fps=video_fps, runners=runners, orchestrators=orchestrators, relays=relays,
        device=parse_device(device), inference=inference,
        sources=build_source_access(source_ca_file, allow_source_network, allow_device, insecure=insecure_sources), sandbox=sandbox,
    ), "text")  # fmt: skip


@app.command()
def run(
    context: typer.Context, video: Video, model: ModelName = DEFAULT_MODEL, fps: Fps = "all", output: RunOutput = "table", url: Url = None,
    score: Score = None, labels: Labels = None, labels_file: LabelsFile = None, max_workers: MaxWorkers = 2,
    models_dir: ModelsDir = None, device: DeviceName = "auto", inference: Inference = "auto", token: Token = None,
    source_ca_file: SourceCaFile = None, insecure_sources: InsecureSources = False,
    allow_source_network: AllowSourceNetwork = None, sandbox: Sandbox = "auto",
) -> None:  # fmt: skip
    """Run a model on one video and print the detections.

    Starts its own vidflow for the time of the run unless --url is given.
    """
    from vidflow.commands.run import run as run_video  # noqa: PLC0415

    if url:
        refuse_options(
            context, OPTIONS_OF_OWN_RUNNER, "no effect with --url: the runners of that vidflow have their own settings"
        )
    raise typer.Exit(run_video(RunOptions(
        video=video, model=model, fps=fps, output=output, url=url, score_threshold=score,
        labels=split_labels(labels) if labels else None, labels_file=labels_file, max_workers=max_workers,
        models_dir=models_dir, device=parse_device(device), inference=inference, sandbox=sandbox, token=token,
        sources=build_source_access(source_ca_file, allow_source_network, None, insecure=insecure_sources),
    )))  # fmt: skip


@app.command()
def bench(
    model: ModelName = DEFAULT_MODEL, source: BenchSource = "sample:bikes", fps: Fps = "5", output: BenchOutput = "text",
    seconds: Seconds = 20.0, models_dir: ModelsDir = None, device: DeviceName = "auto",
) -> None:  # fmt: skip
    """Measure how many streams this machine can carry with a model.

    Decodes the video and runs the model as workers do, in more and more processes at once. Needs no Kafka and no PostgreSQL, and does
    not measure what they cost.
    """
    from vidflow.commands.bench import run as run_bench  # noqa: PLC0415

    run_bench(BenchOptions(
        model=model, source=source, fps=fps, output=output, seconds=seconds, models_dir=models_dir, device=parse_device(device),
    ))  # fmt: skip


app.command("audit")(print_audit)
