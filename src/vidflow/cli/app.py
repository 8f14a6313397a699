"""The command line: one command per role, plus `dev` and `run`. Each option can also be set by an environment variable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from vidflow import __version__
from vidflow.cli.errors import SafeGroup
from vidflow.cli.operations import db, dlq, outbox, topics
from vidflow.cli.options import (
    MAX_PORT,
    AllowedHostList,
    AnyFile,
    AnyOnnx,
    DatabaseUrl,
    KafkaProperties,
    KafkaServers,
    KeepResultsDays,
    KeepScenariosDays,
    LogFormat,
    MaxConnections,
    MaxWorkers,
    MediaRoot,
    MetricsHost,
    MetricsPort,
    ModelsDir,
    PoolName,
    QueueLimitBytes,
    ResultsPartitionDays,
    VideoFps,
    option,
)
from vidflow.domain.retention import RetentionPolicy
from vidflow.infra.process.crashpoint import arm
from vidflow.infra.process.heartbeat import Heartbeat
from vidflow.infra.process.stopping import Stop
from vidflow.infra.telemetry.logs import configure_logs
from vidflow.settings import (
    ApiOptions,
    DevOptions,
    InboxOptions,
    OrchestratorOptions,
    RelayOptions,
    RunnerOptions,
    RunOptions,
    build_live_url,
    read_environment_variable,
    read_kafka_settings,
)  # fmt: skip

app = typer.Typer(
    cls=SafeGroup,
    help="Runs vision models over videos, frame by frame, and loses nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(db, name="db")
app.add_typer(topics, name="topics")
app.add_typer(outbox, name="outbox")
app.add_typer(dlq, name="dlq")

Options = TypeVar("Options")


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


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def api(
    database_url: DatabaseUrl = "", kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    host: Annotated[str, option("host", "Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("port", "Port to listen on.", at_least=0, at_most=MAX_PORT)] = 8000,
    allowed_hosts: AllowedHostList = "", max_connections: MaxConnections = 1000,
    inbox: Annotated[bool, typer.Option("--inbox/--no-inbox", help="Run the inbox in this process.", envvar="VIDFLOW_INBOX")] = True,
    media_root: MediaRoot = None, any_file: AnyFile = False, models_dir: ModelsDir = None, any_onnx: AnyOnnx = False,
    video_fps: VideoFps = "all",
    pool_size: Annotated[int, option("pool-size", "Maximum number of database connections.", at_least=1)] = 10,
    queue_limit: Annotated[int, option("queue-limit", "Maximum number of waiting scenarios.", at_least=1)] = 10_000,
    queue_limit_bytes: QueueLimitBytes = 256 * 1024**2,
    data_dir: Annotated[Path | None, option("data-dir", "Folder of the servers' data, if it is on this machine.")] = None,
    min_free_bytes: Annotated[int, option("min-free-bytes", "Refuse new scenarios if less is free there.", at_least=0)] = 256 * 1024**2,
) -> None:  # fmt: skip
    """Serve the HTTP API."""
    from vidflow.roles.api import run  # noqa: PLC0415 - load only what this role needs

    _run_role(run, ApiOptions(
        database_url=database_url, kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format,
        metrics_host=metrics_host, metrics_port=metrics_port, host=host, port=port, inbox=inbox, media_root=media_root,
        any_file=any_file, models_dir=models_dir, any_onnx=any_onnx, video_fps=video_fps, pool_size=pool_size,
        allowed_hosts=tuple(host for host in allowed_hosts.split(",") if host.strip()), max_connections=max_connections,
        queue_limit=queue_limit, queue_limit_bytes=queue_limit_bytes, data_dir=data_dir, min_free_bytes=min_free_bytes,
    ), log_format)  # fmt: skip


@app.command()
def relay(
    database_url: DatabaseUrl = "",
    kafka: KafkaServers = "",
    kafka_properties: KafkaProperties = None,
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
) -> None:
    """Publish the outbox to Kafka."""
    from vidflow.roles.relay import run  # noqa: PLC0415

    _run_role(
        run,
        RelayOptions(
            database_url=database_url,
            kafka=read_kafka_settings(kafka, kafka_properties),
            log_format=log_format,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
        ),
        log_format,
    )


@app.command()
def inbox(
    database_url: DatabaseUrl = "",
    kafka: KafkaServers = "",
    kafka_properties: KafkaProperties = None,
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    group_protocol: Annotated[
        Literal["consumer", "classic"], option("group-protocol", "consumer, or classic for brokers that need it.")
    ] = "consumer",
) -> None:
    """Store the workers' results (only with an api that has --no-inbox)."""
    from vidflow.roles.inbox import run  # noqa: PLC0415

    _run_role(
        run,
        InboxOptions(
            database_url=database_url,
            kafka=read_kafka_settings(kafka, kafka_properties),
            log_format=log_format,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            group_protocol=group_protocol,
        ),
        log_format,
    )


@app.command()
def orchestrator(
    database_url: DatabaseUrl = "", kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    attempts: Annotated[int, option("attempts", "Consecutive losses at one frame after which a scenario fails.", at_least=1)] = 5,
    keep_results_days: KeepResultsDays = None, keep_scenarios_days: KeepScenariosDays = None,
    results_partition_days: ResultsPartitionDays = 7,
) -> None:  # fmt: skip
    """Lead the scenarios through their lifecycle, or stand by."""
    from vidflow.roles.orchestrator import run  # noqa: PLC0415

    _run_role(run, OrchestratorOptions(
        database_url=database_url, kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format,
        metrics_host=metrics_host, metrics_port=metrics_port, attempts=attempts,
        retention=RetentionPolicy(
            partition_days=results_partition_days, results_days=keep_results_days, scenarios_days=keep_scenarios_days
        ),
    ), log_format)  # fmt: skip


@app.command()
def runner(
    kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, log_format: LogFormat = "text",
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = None, max_workers: MaxWorkers = 2,
    pool: PoolName = "default",
    media_root: MediaRoot = None, any_file: AnyFile = False, models_dir: ModelsDir = None, any_onnx: AnyOnnx = False,
    grace_s: Annotated[float, option("grace-s", "Seconds that a draining runner has to finish.", at_least=0)] = 25.0,
    start_deadline_s: Annotated[float, option("start-deadline-s", "Seconds that a worker may take to start.", at_least=1)] = 60.0,
    inference_deadline_s: Annotated[float, option("inference-deadline-s", "Seconds that a batch may take.", at_least=1)] = 60.0,
    worker_memory_bytes: Annotated[int | None, option(
        "worker-memory-bytes", "Memory limit of a worker; 0: none. By default its share of 80% of all memory, at least 2 GiB.",
        at_least=0,
    )] = None,
) -> None:  # fmt: skip
    """Run worker processes, which read videos and run models."""
    from vidflow.roles.runner import run  # noqa: PLC0415

    _run_role(run, RunnerOptions(
        kafka=read_kafka_settings(kafka, kafka_properties), log_format=log_format, metrics_port=metrics_port, max_workers=max_workers,
        metrics_host=metrics_host,
        pool=pool, media_root=media_root, any_file=any_file, models_dir=models_dir, any_onnx=any_onnx,
        grace_s=grace_s, start_deadline_s=start_deadline_s,
        inference_deadline_s=inference_deadline_s, worker_memory_bytes=worker_memory_bytes,
    ), log_format)  # fmt: skip


@app.command()
def dev(
    port: Annotated[int, option("port", "Port of the api.", at_least=0, at_most=MAX_PORT)] = 8000,
    data_dir: Annotated[Path | None, option("data-dir", "Keep the data in this folder; by default they are deleted at the end.")] = None,
    database_url: Annotated[str | None, option("database-url", "Use this PostgreSQL instead of an embedded one.")] = None,
    kafka: Annotated[str | None, option("kafka", "Use this Kafka instead of an embedded one.")] = None,
    kafka_properties: KafkaProperties = None,
    media_root: MediaRoot = None, models_dir: ModelsDir = None, max_workers: MaxWorkers = 2, video_fps: VideoFps = "all",
    runners: Annotated[int, option("runners", "Number of runners.", at_least=0)] = 1,
    orchestrators: Annotated[int, option("orchestrators", "Number of orchestrators.", at_least=0)] = 1,
    relays: Annotated[int, option("relays", "Number of relays.", at_least=0)] = 1,
) -> None:  # fmt: skip
    """Run all of vidflow on this machine, with its own PostgreSQL and Kafka."""
    from vidflow.commands.dev import run  # noqa: PLC0415

    _run_role(run, DevOptions(
        port=port, data_dir=data_dir, database_url=database_url, kafka=read_kafka_settings(kafka, kafka_properties),
        media_root=media_root, any_file=media_root is None, models_dir=models_dir,
        max_workers=max_workers, video_fps=video_fps, runners=runners, orchestrators=orchestrators, relays=relays,
    ), "text")  # fmt: skip


@app.command()
def run(
    video: Annotated[str, typer.Argument(help="A file, a URL, or sample:NAME (bikes, bigbuckbunny, carphone).")],
    model: Annotated[str, option("model", "Name of a model, or path of a spec or an .onnx file.")] = "motion",
    fps: Annotated[str, option("fps", "Frames per second to keep: a number, a fraction such as 30000/1001, or all.")] = "all",
    output: Annotated[str, option("output", "table, ndjson, json or csv.")] = "table",
    url: Annotated[str | None, option("url", "Use the running vidflow at this URL instead of starting one.")] = None,
    score: Annotated[float | None, option("score", "Leave out detections below this score.")] = None,
    labels: Annotated[str | None, option("labels", "Keep only these labels, comma-separated.")] = None,
    max_workers: MaxWorkers = 2, models_dir: ModelsDir = None,
) -> None:  # fmt: skip
    """Run a model over one video and print the detections."""
    from vidflow.commands.run import run as run_video  # noqa: PLC0415

    raise typer.Exit(run_video(RunOptions(
        video=video, model=model, fps=fps, output=output, url=url, score_threshold=score,
        labels=tuple(labels.split(",")) if labels else None, max_workers=max_workers, models_dir=models_dir,
    )))  # fmt: skip
