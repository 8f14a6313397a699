"""Test helpers for the message path: running roles, topics, sent results, outbox rows and stored frames."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import confluent_kafka
import msgspec
from confluent_kafka import Message, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from psycopg.rows import dict_row
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import Frame, encode
from vidflow.domain.messages import Message as Sent
from vidflow.domain.progress import Progress
from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka import admin, clients, offsets, topics
from vidflow.infra.kafka.clients import Headers
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import PARTITIONS
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.process.stopping import Stop

Options = TypeVar("Options")


@contextmanager
def running_role(run: Callable[[Options, Stop], None], options: Options) -> Iterator[Stop]:
    """Run a role on a thread of this process until the block ends. An error that ends the role is raised in the test."""
    stop = Stop()

    def body() -> None:
        try:
            run(options, stop)
        except BaseException as error:  # noqa: BLE001 - raised below
            stop.request(error)

    thread = threading.Thread(target=body, name=f"{run.__module__} under test")
    thread.start()
    try:
        yield stop
    finally:
        stop.request()
        thread.join(30)
    assert not thread.is_alive(), "the role did not stop within 30 s"
    if stop.error is not None:
        raise stop.error


@contextmanager
def role_process(
    role: str, database_url: str, settings: KafkaSettings, crash_at: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a role as a separate process that is killed when the block ends. `crash_at`: crash points, as for `arm`."""
    command = [sys.executable, "-m", "vidflow", role, "--database-url", database_url, "--kafka", settings.bootstrap]
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = {**inherited, "VIDFLOW_CRASHPOINTS": crash_at}
    with subprocess.Popen(command, env=environment) as child:
        try:
            yield child
        finally:
            child.kill()


def empty_topic(settings: KafkaSettings, topic: str) -> None:
    """Delete the messages that are in the topic now, as its retention would."""
    client = admin.create_admin(settings)
    ends = offsets.read_end_offsets(client, topic)
    partitions = [TopicPartition(topic, number, end) for number, end in ends.items()]
    for future in client.delete_records(partitions).values():
        future.result()


def remove_topics(settings: KafkaSettings, topics: Collection[str] = tuple(PARTITIONS)) -> None:
    """Delete the topics that exist, and wait until they are gone."""
    client = admin.create_admin(settings)
    existing = set(client.list_topics(timeout=10).topics) & set(topics)
    if existing:
        for answer in client.delete_topics(list(existing)).values():
            answer.result()
        wait_until(lambda: not existing & set(client.list_topics(timeout=10).topics), "the topics are gone")


def recreate_topics(settings: KafkaSettings) -> None:
    """Delete all topics and create them again, empty and with new ids."""
    remove_topics(settings)
    topics.create_topics(settings)


def read_topic(settings: KafkaSettings, topic: str) -> list[Message]:
    """Return all messages of the topic, ordered by partition and offset."""
    return sorted(offsets.read_log(settings, topic), key=lambda message: (message.partition(), message.offset()))


WORKER_HEADERS: Headers = [(clients.KIND_HEADER, b"frame"), (clients.EPOCH_HEADER, b"1")]


def send_results(
    settings: KafkaSettings, *messages: Sent | bytes, key: str = "", headers: Headers | None = None
) -> None:
    """Send results as a worker does. Bytes are sent as they are, with WORKER_HEADERS in `headers` like a newer worker's."""
    producer = clients.create_producer(settings, client_id="worker-under-test")
    producer.list_topics(RESULTS)
    for message in messages:
        if isinstance(message, bytes):
            producer.produce(RESULTS, message, key.encode(), headers=headers or [])
        else:
            producer.produce(RESULTS, encode(message), message.scenario_uuid.encode())  # type: ignore[attr-defined]
    assert producer.flush(10) == 0


def frame(scenario_uuid: str, number: int, epoch: int = 1, label: str | None = None) -> Frame:
    detections = () if label is None else ({"label": label, "score": 0.5, "box": (0.0, 0.0, 1.0, 1.0)},)
    values = (scenario_uuid, epoch, number, number * 10, "1/90000", 0, number / 5, "2026-01-01T00:00:00Z", 64, 48)
    return Frame(*values, detections)  # type: ignore[arg-type]


def frames(scenario_uuid: str, numbers: Sequence[int], epoch: int = 1) -> list[Frame]:
    return [frame(scenario_uuid, number, epoch) for number in numbers]


def insert_progress(connection: Connection, epoch: int = 1, *, closed: bool = False) -> str:
    """Insert a scenario's progress row, as the leader does at a deployment. Return the scenario's uuid."""
    [(scenario_uuid,)] = connection.execute(
        "INSERT INTO scenario_progress (scenario_uuid, epoch, closed) VALUES (uuidv7(), %s, %s) RETURNING scenario_uuid::text",
        (epoch, closed),
    ).fetchall()
    return str(scenario_uuid)


def stored_frame_numbers(connection: Connection, scenario_uuid: str) -> list[int]:
    """Return the numbers of the stored frames in ascending order."""
    rows = connection.execute(
        "SELECT frame_number FROM scenario_results WHERE scenario_uuid = %s ORDER BY 1", (scenario_uuid,)
    ).fetchall()
    return [number for (number,) in rows]


def outbox_row(
    key: str, payload: bytes = b"{}", topic: str = "to_deploy.default", kind: str = "deploy", **fields: Any
) -> outbox.OutboxMessage:
    return outbox.OutboxMessage(topic=topic, key=key, kind=kind, payload=payload, **{"epoch": 1, **fields})


def write_outbox_rows(connection: Connection, keys: int, rows_per_key: int) -> list[outbox.OutboxMessage]:
    """Add rows of several keys, interleaved, to the outbox. The payloads of a key are the numbers from 0."""
    rows = [outbox_row(f"key-{key}", str(number).encode()) for number in range(rows_per_key) for key in range(keys)]
    outbox.add_messages(connection, rows)
    return rows


def count_unpublished(connection: Connection) -> int:
    return outbox.read_lag(connection).waiting


@contextmanager
def emptied_database(database_url: str) -> Iterator[Connection]:
    """Empty all tables of the database and yield a connection to it."""
    with connect(database_url, name="test") as connection:
        connection.execute(
            """
            TRUNCATE scenarios, scenario_history, scenario_progress, scenario_results, scenario_gaps, inbox_partitions,
                     outbox, lease, runners, tokens, audit, idempotency_keys, deleted_scenarios
            """
        )
        yield connection


def new_key() -> str:
    return str(uuid.uuid4())


def terminate_connections(connection: Connection, name: str) -> int:
    """Terminate the connections with this name, as a restart of the server does. Return how many there were."""
    rows = connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()",
        (name,),
    ).fetchall()
    return len(rows)


def print_figure(figure: str) -> None:
    """Print a measurement of a test. Timings are only printed and never fail a test."""
    sys.stderr.write(figure + "\n")


def send_with_header(servers: KafkaSettings, topic: str, value: bytes, name: bytes, count: int = 1) -> None:
    """Send messages with a header whose name need not be UTF-8, by librdkafka: its Python client only takes text."""
    packages = Path(confluent_kafka.__file__).parents[1]
    library = ctypes.CDLL(str(next(packages.glob("confluent_kafka.libs/librdkafka[-.]*"))))
    library.rd_kafka_conf_new.restype = library.rd_kafka_new.restype = ctypes.c_void_p
    text, error = ctypes.c_char_p, ctypes.create_string_buffer(512)
    settings = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(
        settings, text(b"bootstrap.servers"), text(servers.bootstrap.encode()), error, ctypes.c_size_t(512)
    )
    producer = ctypes.c_void_p(library.rd_kafka_new(0, settings, error, ctypes.c_size_t(512)))
    vtype_topic, vtype_flags, vtype_value, vtype_header, vtype_end = 1, 7, 4, 9, 0  # rd_kafka_vtype_t
    copy_value = 2  # RD_KAFKA_MSG_F_COPY
    for _ in range(count):
        code = library.rd_kafka_producev(
            producer, vtype_topic, text(topic.encode()), vtype_flags, copy_value,
            vtype_value, text(value), ctypes.c_size_t(len(value)),
            vtype_header, text(name), text(b"x"), ctypes.c_ssize_t(1), vtype_end,
        )  # fmt: skip
        assert code == 0
    assert library.rd_kafka_flush(producer, 10_000) == 0
    library.rd_kafka_destroy(producer)


@contextmanager
def limited_message_size(settings: KafkaSettings, topic: str, max_bytes: int) -> Iterator[None]:
    """Limit the size of a topic's messages during the block."""
    client = admin.create_admin(settings)

    def alter(operation: AlterConfigOpType) -> None:
        entry = ConfigEntry("max.message.bytes", str(max_bytes), incremental_operation=operation)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        for answer in client.incremental_alter_configs([resource]).values():
            answer.result(10)

    alter(AlterConfigOpType.SET)
    try:
        yield
    finally:
        alter(AlterConfigOpType.DELETE)


def read_progress(connection: Connection, scenario_uuids: Sequence[str]) -> dict[str, Progress]:
    """Return the progress of scenarios without waiting for the locks of an inbox."""
    rows = connection.cursor(row_factory=dict_row).execute(
        "SELECT *, scenario_uuid::text AS uuid FROM scenario_progress WHERE scenario_uuid = ANY (%s::uuid[])",
        (list(scenario_uuids),),
    )
    return {row["uuid"]: msgspec.convert(row, Progress) for row in rows}
