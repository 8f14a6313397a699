"""Commands for operators: the database, Kafka's topics, rejected messages and dead letters."""

from __future__ import annotations

import typer

from vidflow.cli.options import (
    AllDeadLetters,
    BackupFolder,
    DatabaseUrl,
    DeadLetterPlace,
    DeadLetterPlaces,
    DlqOutput,
    KafkaProperties,
    KafkaServers,
    Limit,
    MinInsyncReplicas,
    OutboxIds,
    Phase,
    Pools,
    Replace,
    ReplicationFactor,
    Verify,
)
from vidflow.domain.scenario import DEFAULT_POOL
from vidflow.infra.process.stopping import exit_on_signals
from vidflow.infra.telemetry.logs import safe_line
from vidflow.settings import read_kafka_settings

db = typer.Typer(help="Manage the database: its schema, roles and backups.")
topics = typer.Typer(help="Manage the topics in Kafka.")
outbox = typer.Typer(help="Handle the outbox messages that Kafka rejected.")
dlq = typer.Typer(help="Handle dead letters: messages that the inbox rejected.")


@db.command()
def migrate(database_url: DatabaseUrl = "", phase: Phase = "all") -> None:
    """Bring the database to this version's schema."""
    from vidflow.infra.postgres.migrations import migrate  # noqa: PLC0415

    migrate(database_url, typer.echo, phase)
    typer.echo("the schema is up to date" if phase == "all" else f"the schema is up to date, phase {phase}")


@db.command()
def status(database_url: DatabaseUrl = "") -> None:
    """List the migrations and whether they are applied."""
    from vidflow.infra.postgres.migrations import list_migrations  # noqa: PLC0415

    rows = list_migrations(database_url)
    for name, applied in rows:
        typer.echo(f"{'applied' if applied else 'missing'}  {name}")
    raise typer.Exit(0 if all(applied for _, applied in rows) else 3)


@db.command("roles")
def grant_roles(database_url: DatabaseUrl = "") -> None:
    """Create a database role for each process. It has only the rights that the process needs."""
    from vidflow.infra.postgres.db_roles import create_roles  # noqa: PLC0415

    create_roles(database_url)
    typer.echo(
        "vidflow_api, vidflow_relay, vidflow_orchestrator and vidflow_inbox have their rights. Create a user for each process: "
        "CREATE ROLE relay LOGIN PASSWORD '...' IN ROLE vidflow_relay"
    )


@db.command()
def backup(
    folder: BackupFolder, database_url: DatabaseUrl = "", replace: Replace = False, verify: Verify = False
) -> None:
    """Write a backup of the database into a folder, while vidflow runs."""
    from vidflow.infra.postgres import backup  # noqa: PLC0415

    exit_on_signals()
    manifest = backup.write_backup(database_url, folder, replace=replace, notify=_print_progress)
    if verify:
        backup.verify(database_url, folder, _print_progress)
    typer.echo(
        f"{folder}: {len(manifest.tables)} tables, {manifest.rows} rows{', restored and counted' if verify else ''}"
    )


@db.command()
def restore(
    folder: BackupFolder, database_url: DatabaseUrl = "", replace: Replace = False, verify: Verify = False
) -> None:
    """Replace the database by a backup. With --verify, only restore it into a temporary database."""
    from vidflow.infra.postgres import backup  # noqa: PLC0415

    exit_on_signals()
    if verify:
        manifest = backup.verify(database_url, folder, _print_progress)
        typer.echo(f"{folder}: {manifest.rows} rows, restored and counted; nothing was replaced")
        return
    manifest, kept = backup.restore(database_url, folder, replace=replace, notify=_print_progress)
    typer.echo(f"restored {manifest.rows} rows of the backup of {manifest.made_at}")
    if kept is not None:
        typer.echo(f"the previous database is kept as {kept}; drop it when it is no longer needed")


def _print_progress(message: str) -> None:
    typer.echo(safe_line(message), err=True)


@topics.command("create")
def create_topics(
    kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, pool: Pools = None,
    replication_factor: ReplicationFactor = None, min_insync_replicas: MinInsyncReplicas = None,
) -> None:  # fmt: skip
    """Create missing topics and correct the settings of existing ones.

    Reports topics that are weaker than required. Each --pool, an option that can be repeated, adds the command topic of a runner pool.
    """
    from vidflow.infra.kafka import topics  # noqa: PLC0415

    settings = read_kafka_settings(kafka, kafka_properties)
    requirements = topics.TopicRequirements((DEFAULT_POOL, *(pool or ())), replication_factor, min_insync_replicas)
    created = topics.create_topics(settings, requirements)
    typer.echo(f"created {', '.join(created)}" if created else "all topics exist")
    for topic, changes in topics.correct_topic_configs(settings, requirements).items():
        typer.echo(f"changed {topic}: {changes}")
    for topic, weaknesses in topics.find_weak_topics(settings, requirements).items():
        typer.echo(f"{topic} is weaker than required: {weaknesses}", err=True)


@outbox.command("list")
def list_outbox(database_url: DatabaseUrl = "", limit: Limit = 100) -> None:
    """List the messages that Kafka rejected. The relay skips them; they delay no other message."""
    from vidflow.infra.postgres.connection import connected  # noqa: PLC0415
    from vidflow.infra.postgres.outbox import list_set_aside  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox list") as connection:
        rows = list_set_aside(connection, limit)
    for row in rows:
        typer.echo(safe_line(
            f"{row.id}  {row.created_at:%Y-%m-%d %H:%M:%S}  {row.topic}  {row.key}  {row.kind}, epoch {row.epoch}, "
            f"{row.size_bytes} bytes: {row.error}"
        ))  # fmt: skip
    if not rows:
        typer.echo("no message is set aside")


@outbox.command("retry")
def retry_outbox(ids: OutboxIds, database_url: DatabaseUrl = "") -> None:
    """Let the relay send rejected messages again. This helps after a topic's size limit was raised, for example."""
    from vidflow.infra.postgres.connection import connected  # noqa: PLC0415
    from vidflow.infra.postgres.outbox import retry_set_aside  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox retry") as connection:
        typer.echo(f"to be sent again: {retry_set_aside(connection, ids)} of {len(ids)}")


@outbox.command("drop")
def drop_outbox(ids: OutboxIds, database_url: DatabaseUrl = "") -> None:
    """Delete rejected messages. Their content is still in the other tables and is sent again if needed."""
    from vidflow.infra.postgres.connection import connected  # noqa: PLC0415
    from vidflow.infra.postgres.outbox import drop_set_aside  # noqa: PLC0415

    with connected(database_url, name="vidflow outbox drop") as connection:
        typer.echo(f"deleted: {drop_set_aside(connection, ids)} of {len(ids)}")


@dlq.command("list")
def list_dead_letters(
    kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, output: DlqOutput = "table"
) -> None:
    """List the pending dead letters, the oldest first."""
    from vidflow.commands.dlq import print_dead_letters  # noqa: PLC0415

    print_dead_letters(read_kafka_settings(kafka, kafka_properties), output)


@dlq.command("show")
def show_dead_letter(
    place: DeadLetterPlace,
    kafka: KafkaServers = "",
    kafka_properties: KafkaProperties = None,
    output: DlqOutput = "table",
) -> None:
    """Show a dead letter: its error, its headers and its content."""
    from vidflow.commands.dlq import print_dead_letter  # noqa: PLC0415

    print_dead_letter(read_kafka_settings(kafka, kafka_properties), place, output)


@dlq.command("replay")
def replay_dead_letters(
    places: DeadLetterPlaces = None, kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, output: DlqOutput = "table",
    everything: AllDeadLetters = False,
) -> None:  # fmt: skip
    """Send the messages of dead letters again, unchanged. Each dead letter whose message was sent is deleted."""
    from vidflow.commands.dlq import replay  # noqa: PLC0415

    replay(read_kafka_settings(kafka, kafka_properties), places or [], output, all_letters=everything)


@dlq.command("drop")
def drop_dead_letters(
    places: DeadLetterPlaces = None, kafka: KafkaServers = "", kafka_properties: KafkaProperties = None, output: DlqOutput = "table",
    everything: AllDeadLetters = False,
) -> None:  # fmt: skip
    """Delete dead letters without sending their messages again."""
    from vidflow.commands.dlq import drop  # noqa: PLC0415

    drop(read_kafka_settings(kafka, kafka_properties), places or [], output, all_letters=everything)
