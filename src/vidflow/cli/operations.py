"""The commands of who operates a vidflow: its database, Kafka's topics, and the messages that were refused. Not the roles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vidflow.cli.options import DatabaseUrl, KafkaProperties, KafkaServers, option
from vidflow.domain.scenario import DEFAULT_POOL
from vidflow.infra.process.stopping import exit_on_signals
from vidflow.infra.telemetry.logs import safe_line
from vidflow.settings import read_kafka_settings

db = typer.Typer(help="The database: its schema, its backups.", no_args_is_help=True)
topics = typer.Typer(help="Kafka's topics.", no_args_is_help=True)
outbox = typer.Typer(help="Messages of the outbox that Kafka refuses.", no_args_is_help=True)
dlq = typer.Typer(help="Dead letters: messages that the inbox could not take.", no_args_is_help=True)

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
TableOrJson = Annotated[Literal["table", "json"], option("output", "table for people, json for machines.")]
DeadLetterPlace = Annotated[
    str, typer.Argument(help="The dead letter's place, as vidflow dlq list tells it: topic/partition/offset.")
]
DeadLetterPlaces = Annotated[
    list[str] | None, typer.Argument(help="The dead letters' places, as vidflow dlq list tells them.")
]
AllDeadLetters = Annotated[bool, typer.Option("--all", help="All dead letters.", envvar="VIDFLOW_ALL")]
Pools = Annotated[
    list[str] | None,
    typer.Option(
        "--pool", help="Also the commands' topic of this pool of runners; may be given again.", envvar="VIDFLOW_POOL"
    ),
]
ReplicationFactor = Annotated[
    int | None,
    option("replication-factor", "Replicas of each new topic; by default as the brokers have it.", at_least=1),
]
MinInsyncReplicas = Annotated[
    int | None, option("min-insync-replicas", "Replicas that must have a message before it counts as sent.", at_least=1)
]
OutboxIds = Annotated[list[int], typer.Argument(help="Their ids, as `vidflow outbox list` shows them.")]


@db.command()
def migrate(
    database_url: DatabaseUrl = "",
    phase: Annotated[
        Literal["pre", "post", "all"],
        option("phase", "pre: what is added, before the roles are upgraded; post: what goes, behind them; or all."),
    ] = "all",
) -> None:
    """Bring the database to this version's schema."""
    from vidflow.infra.postgres.migrations import migrate  # noqa: PLC0415

    migrate(database_url, typer.echo, phase)
    typer.echo("the schema is up to date" if phase == "all" else f"the schema is up to date, phase {phase}")


@db.command()
def status(database_url: DatabaseUrl = "") -> None:
    """Tell which migrations are applied."""
    from vidflow.infra.postgres.migrations import list_migrations  # noqa: PLC0415

    rows = list_migrations(database_url)
    for name, applied in rows:
        typer.echo(f"{'applied' if applied else 'missing'}  {name}")
    raise typer.Exit(0 if all(applied for _, applied in rows) else 3)


@db.command("roles")
def grant_roles(database_url: DatabaseUrl = "") -> None:
    """Make a group role for each process in the database, with the rights that it needs and no others."""
    from vidflow.infra.postgres.db_roles import create_roles  # noqa: PLC0415

    create_roles(database_url)
    typer.echo(
        "vidflow_api, vidflow_relay, vidflow_orchestrator and vidflow_inbox have their rights; make a user for each process: "
        "CREATE ROLE relay LOGIN PASSWORD '...' IN ROLE vidflow_relay"
    )


@db.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="The folder that is to hold the backup.")],
    database_url: DatabaseUrl = "", replace: Replace = False, verify: Verify = False,
) -> None:  # fmt: skip
    """Write a backup of the database into a folder, while vidflow runs on."""
    from vidflow.infra.postgres import backup  # noqa: PLC0415

    exit_on_signals()
    made = backup.write_backup(database_url, folder, replace=replace, notify=_print_progress)
    if verify:
        backup.verify(database_url, folder, _print_progress)
    typer.echo(f"{folder}: {len(made.tables)} tables, {made.rows} rows{', restored and counted' if verify else ''}")


@db.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the backup.")],
    database_url: DatabaseUrl = "", replace: Replace = False, verify: Verify = False,
) -> None:  # fmt: skip
    """Put a backup in the place of the database; with --verify only try it, beside the database."""
    from vidflow.infra.postgres import backup  # noqa: PLC0415

    exit_on_signals()
    if verify:
        manifest = backup.verify(database_url, folder, _print_progress)
        typer.echo(f"{folder}: {manifest.rows} rows, restored and counted; nothing was replaced")
        return
    manifest, kept = backup.restore(database_url, folder, replace=replace, notify=_print_progress)
    typer.echo(f"restored {manifest.rows} rows of {manifest.made_at}")
    if kept is not None:
        typer.echo(f"what was there before is kept as the database {kept}: drop it once nobody needs it")


def _print_progress(sentence: str) -> None:
    """What a long command is doing, for people."""
    typer.echo(safe_line(sentence), err=True)


@topics.command("create")
def create_topics(
    kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, pool: Pools = None,
    replication_factor: ReplicationFactor = None, min_insync_replicas: MinInsyncReplicas = None,
) -> None:  # fmt: skip
    """Create the topics that are missing, set what vidflow needs of those that exist, and report those that have less than asked."""
    from vidflow.infra.kafka import topics  # noqa: PLC0415

    settings = read_kafka_settings(kafka, kafka_properties)
    wanted = topics.TopicRequirements((DEFAULT_POOL, *(pool or ())), replication_factor, min_insync_replicas)
    made = topics.create_topics(settings, wanted)
    typer.echo(f"made {', '.join(made)}" if made else "all topics were there")
    for topic, changed in topics.correct_topic_configs(settings, wanted).items():
        typer.echo(f"set of {topic}: {changed}")
    for topic, less in topics.find_weak_topics(settings, wanted).items():
        typer.echo(f"{topic} has less than it should: {less}", err=True)


@outbox.command("list")
def list_outbox(
    database_url: DatabaseUrl = "",
    limit: Annotated[int, option("limit", "Show at most so many.", at_least=1)] = 100,
) -> None:
    """Show the messages that Kafka refused: nothing sends them, and they hold up nothing."""
    from vidflow.infra.postgres.connection import connected  # noqa: PLC0415
    from vidflow.infra.postgres.outbox import list_set_aside  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox list") as tables:
        rows = list_set_aside(tables, limit)
    for row in rows:
        typer.echo(safe_line(
            f"{row.id}  {row.created_at:%Y-%m-%d %H:%M:%S}  {row.topic}  {row.key}  {row.kind}, epoch {row.epoch}, "
            f"{row.size_bytes} bytes: {row.error}"
        ))  # fmt: skip
    if not rows:
        typer.echo("no message is set aside")


@outbox.command("retry")
def retry_outbox(ids: OutboxIds, database_url: DatabaseUrl = "") -> None:
    """Let the relay send messages again that Kafka refused (a topic's limit was raised, say)."""
    from vidflow.infra.postgres.connection import connected  # noqa: PLC0415
    from vidflow.infra.postgres.outbox import retry_set_aside  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox retry") as tables:
        typer.echo(f"sent again: {retry_set_aside(tables, ids)} of {len(ids)}")


@outbox.command("drop")
def drop_outbox(ids: OutboxIds, database_url: DatabaseUrl = "") -> None:
    """Delete messages that Kafka refused. What they were to tell is in the tables and is told again where it is needed."""
    from vidflow.infra.postgres.connection import connected  # noqa: PLC0415
    from vidflow.infra.postgres.outbox import drop_set_aside  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox drop") as tables:
        typer.echo(f"deleted: {drop_set_aside(tables, ids)} of {len(ids)}")


@dlq.command("list")
def list_dead_letters(
    kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, output: TableOrJson = "table"
) -> None:
    """List the dead letters that wait, the oldest first."""
    from vidflow.commands.dlq import print_dead_letters  # noqa: PLC0415

    print_dead_letters(read_kafka_settings(kafka, kafka_properties), output)


@dlq.command("show")
def show_dead_letter(
    place: DeadLetterPlace,
    kafka: KafkaServers = "",
    kafka_properties: KafkaProperties = None,
    output: TableOrJson = "table",
) -> None:
    """Show a dead letter: why, its headers and its bytes."""
    from vidflow.commands.dlq import print_dead_letter  # noqa: PLC0415

    print_dead_letter(read_kafka_settings(kafka, kafka_properties), place, output)


@dlq.command("replay")
def replay_dead_letters(
    places: DeadLetterPlaces = None, kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, output: TableOrJson = "table",
    everything: AllDeadLetters = False,
) -> None:  # fmt: skip
    """Send dead letters' messages again, as they were, and drop the letters."""
    from vidflow.commands.dlq import replay  # noqa: PLC0415

    replay(read_kafka_settings(kafka, kafka_properties), places or [], output, all_letters=everything)


@dlq.command("drop")
def drop_dead_letters(
    places: DeadLetterPlaces = None, kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, output: TableOrJson = "table",
    everything: AllDeadLetters = False,
) -> None:  # fmt: skip
    """Drop dead letters that nobody needs."""
    from vidflow.commands.dlq import drop  # noqa: PLC0415

    drop(read_kafka_settings(kafka, kafka_properties), places or [], output, all_letters=everything)
