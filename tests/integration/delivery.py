"""Roles that move messages, run as threads or as processes of their own, and what they move, for tests."""

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
from confluent_kafka import Message
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import PARTITIONS, RESULTS, Frame, encode
from vidflow.domain.messages import Message as Sent
from vidflow.infra.kafka import admin, clients, offsets, topics
from vidflow.infra.kafka.clients import Headers
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.process.stopping import Stop

Options = TypeVar("Options")


@contextmanager
def running_role(run: Callable[[Options, Stop], None], options: Options) -> Iterator[Stop]:
    """A role on a thread of this process until the block ends; its death by an error is the test's."""
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
    assert not thread.is_alive(), "the role stops when it is asked to"
    if stop.error is not None:
        raise stop.error


@contextmanager
def role_process(
    role: str, database_url: str, settings: KafkaSettings, crash_at: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A role as a process of its own, killed when the block ends."""
    command = [sys.executable, "-m", "vidflow", role, "--database-url", database_url, "--kafka", settings.bootstrap]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = {**kept, "VIDFLOW_CRASHPOINTS": crash_at}
    with subprocess.Popen(command, env=environment) as child:
        try:
            yield child
        finally:
            child.kill()


def remove_topics(settings: KafkaSettings, topics: Collection[str] = tuple(PARTITIONS)) -> None:
    """Deletes those of the topics that are there, and returns once they are gone."""
    client = admin.create_admin(settings)
    there = set(client.list_topics(timeout=10).topics) & set(topics)
    if there:
        for answer in client.delete_topics(list(there)).values():
            answer.result()
        wait_until(lambda: not there & set(client.list_topics(timeout=10).topics), "the topics are gone")


def recreate_topics(settings: KafkaSettings) -> None:
    """All topics, empty, with new ids."""
    remove_topics(settings)
    topics.create_topics(settings)


def read_topic(settings: KafkaSettings, topic: str) -> list[Message]:
    """All messages of the topic, partition by partition, each in its order."""
    return sorted(offsets.read_log(settings, topic), key=lambda message: (message.partition(), message.offset()))


WORKER_HEADERS: Headers = [(clients.KIND_HEADER, b"frame"), (clients.EPOCH_HEADER, b"1")]


def send_results(
    settings: KafkaSettings, *messages: Sent | bytes, key: str = "", headers: Headers | None = None
) -> None:
    """Results as a worker sends them; bytes as somebody else does, or with `headers` OF_A_WORKER as a newer worker."""
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


def insert_progress(tables: Connection, epoch: int = 1, *, closed: bool = False) -> str:
    """A scenario's progress, as the leader writes it at a deployment."""
    [(scenario_uuid,)] = tables.execute(
        "INSERT INTO scenario_progress (scenario_uuid, epoch, closed) VALUES (uuidv7(), %s, %s) RETURNING scenario_uuid::text",
        (epoch, closed),
    ).fetchall()
    return str(scenario_uuid)


def stored_frame_numbers(tables: Connection, scenario_uuid: str) -> list[int]:
    """The stored frame numbers, in the order of the numbers."""
    rows = tables.execute(
        "SELECT frame_number FROM scenario_results WHERE scenario_uuid = %s ORDER BY 1", (scenario_uuid,)
    ).fetchall()
    return [number for (number,) in rows]


def outbox_row(
    key: str, payload: bytes = b"{}", topic: str = "to_deploy.default", kind: str = "deploy", **fields: Any
) -> outbox.OutboxMessage:
    return outbox.OutboxMessage(topic=topic, key=key, kind=kind, payload=payload, **{"epoch": 1, **fields})


def write_outbox_rows(tables: Connection, keys: int, rows_per_key: int) -> list[outbox.OutboxMessage]:
    """`rows_per_key` rows of each of so many keys in the outbox, interleaved; their payloads count."""
    rows = [outbox_row(f"key-{key}", str(number).encode()) for number in range(rows_per_key) for key in range(keys)]
    outbox.add_messages(tables, rows)
    return rows


def count_unpublished(tables: Connection) -> int:
    return outbox.read_lag(tables).waiting


@contextmanager
def emptied_database(database_url: str) -> Iterator[Connection]:
    """A connection to the database, with nothing in its tables."""
    with connect(database_url, name="test") as tables:
        tables.execute(
            """
            TRUNCATE scenarios, scenario_history, scenario_progress, scenario_results, scenario_gaps, inbox_partitions,
                     outbox, lease, runners
            """
        )
        yield tables


def new_key() -> str:
    return str(uuid.uuid4())


def terminate_connections(tables: Connection, name: str) -> int:
    """Ends the connections of this name, as a restart of the server does; how many there were."""
    rows = tables.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()",
        (name,),
    ).fetchall()
    return len(rows)


def print_figure(figure: str) -> None:
    """What a test measured on the way; a timing never fails one."""
    sys.stderr.write(figure + "\n")


def send_with_header(servers: KafkaSettings, topic: str, value: bytes, name: bytes, count: int = 1) -> None:
    """Past the client for Python, which takes no name but a text: its C library does."""
    packages = Path(confluent_kafka.__file__).parents[1]
    library = ctypes.CDLL(str(next(packages.glob("confluent_kafka.libs/librdkafka[-.]*"))))
    library.rd_kafka_conf_new.restype = library.rd_kafka_new.restype = ctypes.c_void_p
    text, said = ctypes.c_char_p, ctypes.create_string_buffer(512)
    settings = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(
        settings, text(b"bootstrap.servers"), text(servers.bootstrap.encode()), said, ctypes.c_size_t(512)
    )
    producer = ctypes.c_void_p(library.rd_kafka_new(0, settings, said, ctypes.c_size_t(512)))
    to, flags, content, header, end = 1, 7, 4, 9, 0  # rd_kafka_vtype_t
    copied = 2
    for _ in range(count):
        failed = library.rd_kafka_producev(
            producer, to, text(topic.encode()), flags, copied, content, text(value), ctypes.c_size_t(len(value)),
            header, text(name), text(b"x"), ctypes.c_ssize_t(1), end,
        )  # fmt: skip
        assert failed == 0
    assert library.rd_kafka_flush(producer, 10_000) == 0
    library.rd_kafka_destroy(producer)


@contextmanager
def limited_message_size(settings: KafkaSettings, topic: str, most_bytes: int) -> Iterator[None]:
    """The topic takes no larger messages while the block lasts."""
    client = admin.create_admin(settings)

    def alter(operation: AlterConfigOpType) -> None:
        entry = ConfigEntry("max.message.bytes", str(most_bytes), incremental_operation=operation)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        for answer in client.incremental_alter_configs([resource]).values():
            answer.result(10)

    alter(AlterConfigOpType.SET)
    try:
        yield
    finally:
        alter(AlterConfigOpType.DELETE)
