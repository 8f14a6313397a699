"""The command line: one command a role, each option an environment variable too. No logic: it makes options and calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from vidflow import __version__
from vidflow.domain.retention import Keeping
from vidflow.infra.crashpoint import arm
from vidflow.infra.stopping import Stop, exit_on_signals
from vidflow.infra.telemetry import configure_logs
from vidflow.settings import (
    ApiOptions,
    DevOptions,
    InboxOptions,
    OrchestratorOptions,
    RelayOptions,
    RunnerOptions,
    RunOptions,
    environment,
)  # fmt: skip

app = typer.Typer(
    help="Runs vision models over videos, frame by frame, and loses nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
db = typer.Typer(help="The database: its schema, its backups.", no_args_is_help=True)
topics = typer.Typer(help="Kafka's topics.", no_args_is_help=True)
outbox = typer.Typer(help="Messages of the outbox that Kafka refuses.", no_args_is_help=True)
dlq = typer.Typer(help="Dead letters: messages that the inbox could not take.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(topics, name="topics")
app.add_typer(outbox, name="outbox")
app.add_typer(dlq, name="dlq")


LAST_PORT = 65535


def _option(name: str, text: str, *more: str, at_least: float | None = None, at_most: float | None = None) -> Any:  # noqa: ANN401 - what typer.Option returns
    variable = "VIDFLOW_" + name.strip("-").replace("-", "_").upper()
    return typer.Option(f"--{name}", help=text, envvar=[variable, *more], show_default=True, min=at_least, max=at_most)


Database = Annotated[str, _option("database-url", "PostgreSQL, as postgresql://user:password@host:port/database.")]
Kafka = Annotated[str, _option("kafka", "Kafka's bootstrap servers, as host:port,host:port.")]
LogFormat = Annotated[Literal["text", "json"], _option("log-format", "text for people, json for machines.")]
MetricsPort = Annotated[
    int | None, _option("metrics-port", "Serve Prometheus metrics on this port.", at_least=1, at_most=LAST_PORT)
]
MediaRoot = Annotated[Path | None, _option("media-root", "The folder of the local files that scenarios may name.")]
AnyFile = Annotated[
    bool,
    typer.Option(
        "--any-file/--no-any-file",
        help="Let scenarios name any file that this user can read.",
        envvar="VIDFLOW_ANY_FILE",
    ),
]
ModelsDir = Annotated[
    Path | None, _option("models-dir", "A folder of model specs; each is a model named after its file.")
]
Pool = Annotated[str, _option("pool", "The pool of runners.")]
MaxWorkers = Annotated[
    int, _option("max-workers", "How many scenarios a runner works on at once.", "MAX_WORKERS", at_least=1)
]
VideoFps = Annotated[
    str, _option("video-fps", "Frames a second to keep where a scenario does not say; or all.", "VIDEO_FPS")
]

KeepResultsDays = Annotated[
    int | None, _option("keep-results-days", "Remove results of scenarios that ended longer ago.", at_least=1)
]
KeepScenariosDays = Annotated[
    int | None, _option("keep-scenarios-days", "Then remove these scenarios too, with their history.", at_least=1)
]
ResultsPartitionDays = Annotated[
    int, _option("results-partition-days", "How many days of results a partition takes.", at_least=1)
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace/--no-replace", help="Put it in the place of what is there already.", envvar="VIDFLOW_REPLACE"
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Restore the backup into a database beside, count its rows, drop that again.",
        envvar="VIDFLOW_VERIFY",
    ),
]
TableOrJson = Annotated[Literal["table", "json"], _option("output", "table for people, json for machines.")]
Place = Annotated[
    str, typer.Argument(help="The dead letter's place, as vidflow dlq list tells it: topic/partition/offset.")
]
Places = Annotated[list[str] | None, typer.Argument(help="The dead letters' places, as vidflow dlq list tells them.")]
Everything = Annotated[bool, typer.Option("--all", help="All dead letters.", envvar="VIDFLOW_ALL")]

Options = TypeVar("Options")


def _serve(run: Callable[[Options, Stop], None], options: Options, log_format: str) -> None:
    """Runs a role in this process until it is told to stop or dies of an error."""
    configure_logs(log_format)
    arm(environment("VIDFLOW_CRASHPOINTS") or "")
    stop = Stop()
    stop.on_signals()
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
    database_url: Database = "", kafka: Kafka = "", log_format: LogFormat = "text", metrics_port: MetricsPort = None,
    host: Annotated[str, _option("host", "Where to listen.")] = "127.0.0.1",
    port: Annotated[int, _option("port", "Where to listen.", at_least=0, at_most=LAST_PORT)] = 8000,
    inbox: Annotated[bool, typer.Option("--inbox/--no-inbox", help="Host the inbox in this process.", envvar="VIDFLOW_INBOX")] = True,
    media_root: MediaRoot = None, any_file: AnyFile = False, models_dir: ModelsDir = None, video_fps: VideoFps = "all",
    pool_size: Annotated[int, _option("pool-size", "Connections to the database.", at_least=1)] = 10,
    queue_limit: Annotated[int, _option("queue-limit", "How many scenarios may wait for a runner.", at_least=1)] = 10_000,
    data_dir: Annotated[Path | None, _option("data-dir", "Where the servers keep their data, if on this machine.")] = None,
    min_free_bytes: Annotated[int, _option("min-free-bytes", "Take no scenario with less free on that disk.", at_least=0)] = 256 * 1024**2,
) -> None:  # fmt: skip
    """Serve the HTTP API."""
    from vidflow.roles.api import run  # noqa: PLC0415 - a role imports what it needs and no more

    _serve(run, ApiOptions(
        database_url=database_url, kafka=kafka, log_format=log_format, metrics_port=metrics_port, host=host, port=port, inbox=inbox,
        media_root=media_root, any_file=any_file, models_dir=models_dir, video_fps=video_fps, pool_size=pool_size,
        queue_limit=queue_limit, data_dir=data_dir, min_free_bytes=min_free_bytes,
    ), log_format)  # fmt: skip


@app.command()
def relay(
    database_url: Database = "", kafka: Kafka = "", log_format: LogFormat = "text", metrics_port: MetricsPort = None
) -> None:
    """Publish the outbox to Kafka."""
    from vidflow.roles.relay import run  # noqa: PLC0415

    _serve(
        run,
        RelayOptions(database_url=database_url, kafka=kafka, log_format=log_format, metrics_port=metrics_port),
        log_format,
    )


@app.command()
def inbox(
    database_url: Database = "",
    kafka: Kafka = "",
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    group_protocol: Annotated[
        Literal["consumer", "classic"], _option("group-protocol", "consumer, or classic for a broker that needs it.")
    ] = "consumer",
) -> None:
    """Store the workers' results (where the api does not host it)."""
    from vidflow.roles.inbox import run  # noqa: PLC0415

    _serve(
        run,
        InboxOptions(
            database_url=database_url,
            kafka=kafka,
            log_format=log_format,
            metrics_port=metrics_port,
            group_protocol=group_protocol,
        ),
        log_format,
    )


@app.command()
def orchestrator(
    database_url: Database = "", kafka: Kafka = "", log_format: LogFormat = "text", metrics_port: MetricsPort = None,
    attempts: Annotated[int, _option("attempts", "Losses in a row at one frame after which a scenario fails.", at_least=1)] = 5,
    pool: Pool = "default",
    keep_results_days: KeepResultsDays = None, keep_scenarios_days: KeepScenariosDays = None,
    results_partition_days: ResultsPartitionDays = 7,
) -> None:  # fmt: skip
    """Lead the scenarios through their lifecycle, or stand by to."""
    from vidflow.roles.orchestrator import run  # noqa: PLC0415

    _serve(run, OrchestratorOptions(
        database_url=database_url, kafka=kafka, log_format=log_format, metrics_port=metrics_port, attempts=attempts, pool=pool,
        keeping=Keeping(partition_days=results_partition_days, results_days=keep_results_days, scenarios_days=keep_scenarios_days),
    ), log_format)  # fmt: skip


@app.command()
def runner(
    kafka: Kafka = "", log_format: LogFormat = "text", metrics_port: MetricsPort = None, max_workers: MaxWorkers = 2,
    pool: Pool = "default",
    media_root: MediaRoot = None, any_file: AnyFile = False, models_dir: ModelsDir = None,
    grace_s: Annotated[float, _option("grace-s", "Seconds that a draining runner has.", at_least=0)] = 25.0,
    start_deadline_s: Annotated[float, _option("start-deadline-s", "Seconds that a worker may take to start.", at_least=1)] = 60.0,
    inference_deadline_s: Annotated[float, _option("inference-deadline-s", "Seconds that a batch may take.", at_least=1)] = 60.0,
    worker_memory_bytes: Annotated[int | None, _option("worker-memory-bytes", "The most memory of a worker.", at_least=1)] = None,
) -> None:  # fmt: skip
    """Keep worker processes that read videos and run models."""
    from vidflow.roles.runner import run  # noqa: PLC0415

    _serve(run, RunnerOptions(
        kafka=kafka, log_format=log_format, metrics_port=metrics_port, max_workers=max_workers, pool=pool, media_root=media_root,
        any_file=any_file, models_dir=models_dir, grace_s=grace_s, start_deadline_s=start_deadline_s,
        inference_deadline_s=inference_deadline_s, worker_memory_bytes=worker_memory_bytes,
    ), log_format)  # fmt: skip


@app.command()
def dev(
    port: Annotated[int, _option("port", "The api's port.", at_least=0, at_most=LAST_PORT)] = 8000,
    data_dir: Annotated[Path | None, _option("data-dir", "Keep the data here; without it they go when vidflow stops.")] = None,
    database_url: Annotated[str | None, _option("database-url", "Use this PostgreSQL instead of an embedded one.")] = None,
    kafka: Annotated[str | None, _option("kafka", "Use this Kafka instead of an embedded one.")] = None,
    media_root: MediaRoot = None, models_dir: ModelsDir = None, max_workers: MaxWorkers = 2, video_fps: VideoFps = "all",
    runners: Annotated[int, _option("runners", "How many runners.", at_least=0)] = 1,
    orchestrators: Annotated[int, _option("orchestrators", "How many orchestrators.", at_least=0)] = 1,
    relays: Annotated[int, _option("relays", "How many relays.", at_least=0)] = 1,
) -> None:  # fmt: skip
    """Run all of vidflow on this machine, with its own PostgreSQL and Kafka."""
    from vidflow.roles.dev import run  # noqa: PLC0415

    _serve(run, DevOptions(
        port=port, data_dir=data_dir, database_url=database_url, kafka=kafka, media_root=media_root, any_file=media_root is None,
        models_dir=models_dir, max_workers=max_workers, video_fps=video_fps, runners=runners, orchestrators=orchestrators, relays=relays,
    ), "text")  # fmt: skip


@app.command()
def run(
    video: Annotated[str, typer.Argument(help="A file, a URL, or sample:NAME (bikes, bigbuckbunny, carphone).")],
    model: Annotated[str, _option("model", "A model's name, a spec's path or an .onnx file.")] = "motion",
    fps: Annotated[str, _option("fps", "Frames a second to look at, or all.")] = "all",
    output: Annotated[str, _option("output", "table, ndjson, json or csv.")] = "table",
    url: Annotated[str | None, _option("url", "Use the vidflow that runs there instead of starting one.")] = None,
    score: Annotated[float | None, _option("score", "Leave out detections below this score.")] = None,
    labels: Annotated[str | None, _option("labels", "Keep only these labels, comma-separated.")] = None,
    max_workers: MaxWorkers = 2, models_dir: ModelsDir = None,
) -> None:  # fmt: skip
    """Run a model over one video and print what it saw."""
    from vidflow.roles.run import run as run_video  # noqa: PLC0415

    raise typer.Exit(run_video(RunOptions(
        video=video, model=model, fps=fps, output=output, url=url, score_threshold=score,
        labels=tuple(labels.split(",")) if labels else None, max_workers=max_workers, models_dir=models_dir,
    )))  # fmt: skip


@db.command()
def migrate(
    database_url: Database = "",
    phase: Annotated[
        Literal["pre", "post", "all"],
        _option("phase", "pre: what is added, before the roles are upgraded; post: what goes, behind them; or all."),
    ] = "all",
) -> None:
    """Bring the database to this version's schema."""
    from vidflow.infra.migrations import migrate  # noqa: PLC0415

    migrate(database_url, typer.echo, phase)
    typer.echo("the schema is up to date" if phase == "all" else f"the schema is up to date, phase {phase}")


@db.command()
def status(database_url: Database = "") -> None:
    """Tell which migrations are applied."""
    from vidflow.infra.migrations import status  # noqa: PLC0415

    rows = status(database_url)
    for name, applied in rows:
        typer.echo(f"{'applied' if applied else 'missing'}  {name}")
    raise typer.Exit(0 if all(applied for _, applied in rows) else 3)


OutboxIds = Annotated[list[int], typer.Argument(help="Their ids, as `vidflow outbox list` shows them.")]


@outbox.command("list")
def list_outbox(
    database_url: Database = "",
    limit: Annotated[int, _option("limit", "Show at most so many.", at_least=1)] = 100,
) -> None:
    """Show the messages that Kafka refused: nothing sends them, and they hold up nothing."""
    from vidflow.infra.outbox import all_set_aside  # noqa: PLC0415
    from vidflow.infra.postgres import connected  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox list") as tables:
        rows = all_set_aside(tables, limit)
    for row in rows:
        typer.echo(
            f"{row.id}  {row.created_at:%Y-%m-%d %H:%M:%S}  {row.topic}  {row.key}  {row.kind}, epoch {row.epoch}, "
            f"{row.size_bytes} bytes: {row.error}"
        )
    if not rows:
        typer.echo("no message is set aside")


@outbox.command("retry")
def retry_outbox(ids: OutboxIds, database_url: Database = "") -> None:
    """Let the relay send messages again that Kafka refused (a topic's limit was raised, say)."""
    from vidflow.infra.outbox import take_back  # noqa: PLC0415
    from vidflow.infra.postgres import connected  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox retry") as tables:
        typer.echo(f"sent again: {take_back(tables, ids)} of {len(ids)}")


@outbox.command("drop")
def drop_outbox(ids: OutboxIds, database_url: Database = "") -> None:
    """Delete messages that Kafka refused. What they were to tell is in the tables and is told again where it is needed."""
    from vidflow.infra.outbox import drop  # noqa: PLC0415
    from vidflow.infra.postgres import connected  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox drop") as tables:
        typer.echo(f"deleted: {drop(tables, ids)} of {len(ids)}")


@db.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="The folder that is to hold the backup.")],
    database_url: Database = "", replace: Replace = False, verify: Verify = False,
) -> None:  # fmt: skip
    """Write a backup of the database into a folder, while vidflow runs on."""
    from vidflow.infra import backup  # noqa: PLC0415

    exit_on_signals()
    made = backup.backup(database_url, folder, replace=replace, say=_say)
    if verify:
        backup.verify(database_url, folder, _say)
    typer.echo(f"{folder}: {len(made.tables)} tables, {made.rows} rows{', restored and counted' if verify else ''}")


@db.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the backup.")],
    database_url: Database = "", replace: Replace = False, verify: Verify = False,
) -> None:  # fmt: skip
    """Put a backup in the place of the database; with --verify only try it, beside the database."""
    from vidflow.infra import backup  # noqa: PLC0415

    exit_on_signals()
    if verify:
        manifest = backup.verify(database_url, folder, _say)
        typer.echo(f"{folder}: {manifest.rows} rows, restored and counted; nothing was replaced")
        return
    manifest, kept = backup.restore(database_url, folder, replace=replace, say=_say)
    typer.echo(f"restored {manifest.rows} rows of {manifest.made_at}")
    if kept is not None:
        typer.echo(f"what was there before is kept as the database {kept}: drop it once nobody needs it")


def _say(sentence: str) -> None:
    """What a long command is doing, for people."""
    typer.echo(sentence, err=True)


@topics.command("create")
def create_topics(kafka: Kafka = "") -> None:
    """Make the topics that are missing."""
    from vidflow.infra.kafka import create_topics  # noqa: PLC0415

    made = create_topics(kafka)
    typer.echo(f"made {', '.join(made)}" if made else "all topics were there")


@dlq.command("list")
def list_dead_letters(kafka: Kafka = "", output: TableOrJson = "table") -> None:
    """List the dead letters that wait, the oldest first."""
    from vidflow.roles.dlq import list_letters  # noqa: PLC0415

    list_letters(kafka, output)


@dlq.command("show")
def show_dead_letter(place: Place, kafka: Kafka = "", output: TableOrJson = "table") -> None:
    """Show a dead letter: why, its headers and its bytes."""
    from vidflow.roles.dlq import show  # noqa: PLC0415

    show(kafka, place, output)


@dlq.command("replay")
def replay_dead_letters(
    places: Places = None, kafka: Kafka = "", output: TableOrJson = "table", everything: Everything = False
) -> None:
    """Send dead letters' messages again, as they were, and drop the letters."""
    from vidflow.roles.dlq import replay  # noqa: PLC0415

    replay(kafka, places or [], output, everything=everything)


@dlq.command("drop")
def drop_dead_letters(
    places: Places = None, kafka: Kafka = "", output: TableOrJson = "table", everything: Everything = False
) -> None:
    """Drop dead letters that nobody needs."""
    from vidflow.roles.dlq import drop  # noqa: PLC0415

    drop(kafka, places or [], output, everything=everything)
