from __future__ import annotations

import datetime
import logging
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import pytest
from confluent_kafka import TopicPartition
from tests.integration.delivery import (
    WORKER_HEADERS,
    frame,
    frames,
    insert_progress,
    print_figure,
    read_progress,
    read_topic,
    recreate_topics,
    role_process,
    running_role,
    send_results,
    send_with_header,
    stored_frame_numbers,
    terminate_connections,
)
from tests.integration.server_owner import wait_until

from vidflow.domain.detections import Detection
from vidflow.domain.messages import (
    CaptureClock,
    ClockChanges,
    DeadLetter,
    End,
    EndReason,
    Frame,
    Gap,
    GapReason,
    SourceOpened,
    encode,
)
from vidflow.domain.progress import Progress, has_hole, is_complete
from vidflow.domain.topics import DEAD_LETTERS, RESULTS
from vidflow.domain.warnings import ScenarioWarning, WarningCode
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import PARTITIONS
from vidflow.infra.postgres import inbox_partitions, outbox, results
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.postgres.progress import lock_progress
from vidflow.infra.process.stopping import Stop
from vidflow.roles.inbox import role, run, storing
from vidflow.roles.inbox.reader import BATCH_BYTES, BATCH_MESSAGES, GROUP, Reader
from vidflow.settings import InboxOptions

LONG_BYTES = 900_000


@pytest.fixture
def options(database_url: str, kafka_settings: KafkaSettings) -> InboxOptions:
    recreate_topics(kafka_settings)
    return InboxOptions(database_url=database_url, kafka=kafka_settings)


def progress(connection: Connection, scenario_uuid: str) -> Progress:
    return read_progress(connection, [scenario_uuid])[scenario_uuid]


def now_s(connection: Connection) -> float:
    return inbox_partitions.read_database_time(connection).timestamp()


def caught_up_s(connection: Connection, topic_id: str, partitions: Sequence[int]) -> float | None:
    return inbox_partitions.fetch_caught_up_s(
        inbox_partitions.execute_caught_up_query(connection, RESULTS, topic_id, partitions)
    )


def is_caught_up(connection: Connection, settings: KafkaSettings, time_s: float) -> bool:
    """Return whether all results sent before `time_s` are stored. The leader asks this before it takes a scenario from its runner."""
    client = admin.create_admin(settings)
    topic = (offsets.read_topic_id(client, RESULTS), offsets.read_partitions(client, RESULTS))
    stored_s = caught_up_s(connection, *topic)
    return stored_s is not None and stored_s >= time_s


def wait_until_caught_up(connection: Connection, settings: KafkaSettings) -> None:
    """Wait until everything sent before this call is processed."""
    called_s = now_s(connection)
    wait_until(lambda: is_caught_up(connection, settings, called_s), "the inbox has caught up")


@contextmanager
def running_inbox(connection: Connection, options: InboxOptions) -> Iterator[Stop]:
    """Run an inbox during the block, which starts when the inbox has its partitions."""
    with running_role(run, options) as stop:
        wait_until(
            lambda: stop.requested or is_caught_up(connection, options.kafka, 0.0), "the inbox has its partitions"
        )
        yield stop


def dead_letters(connection: Connection) -> list[DeadLetter]:
    pending = outbox.read_pending_messages(connection, 1000)
    assert all(message.topic == DEAD_LETTERS for message in pending)
    return [msgspec.json.decode(message.payload, type=DeadLetter) for message in pending]


def test_a_gap_that_a_later_deployment_reports_again_is_stored_once_and_may_be_longer(
    connection: Connection, options: InboxOptions
) -> None:
    uuid = insert_progress(connection)
    longer = Gap(0.2, 0.6, GapReason.SKIPPED, 2)
    first = End(uuid, 1, 0, EndReason.STOPPED, (Gap(0.2, 0.4, GapReason.SKIPPED, 1),))
    second, third = (End(uuid, epoch, 0, EndReason.STOPPED, (longer,)) for epoch in (2, 3))
    with running_inbox(connection, options):
        send_results(options.kafka, frame(uuid, 0), first, first)
        wait_until_caught_up(connection, options.kafka)
        for end in (second, third):
            connection.execute("UPDATE scenario_progress SET epoch = %s", (end.epoch,))
            send_results(options.kafka, end)
            wait_until_caught_up(connection, options.kafka)
    stored = connection.execute("SELECT epoch, after_frame, to_s, frames, reason FROM scenario_gaps").fetchall()
    assert stored == [(2, 0, 0.6, 2, "skipped")]


def test_a_gap_that_is_lost_is_missed_with_the_message_after_it_and_stored_by_the_next_epoch(
    connection: Connection, options: InboxOptions
) -> None:
    uuid, other = insert_progress(connection), insert_progress(connection)
    gap = Gap(0.2, 0.4, GapReason.DROPPED, 1)

    def send_all(scenario_uuid: str, epoch: int, numbers: range) -> list[Frame]:
        sent = [frame(scenario_uuid, number, epoch=epoch) for number in numbers]
        return [msgspec.structs.replace(each, gaps=(gap,)) if each.frame_number == 1 else each for each in sent]

    def stored() -> list[tuple[int]]:
        return connection.execute("SELECT after_frame FROM scenario_gaps ORDER BY after_frame").fetchall()

    with running_inbox(connection, options):
        first, _, third = send_all(uuid, 1, range(3))  # the second one is lost with its gap
        send_results(options.kafka, first, third, End(uuid, 1, 2, EndReason.FINISHED))
        send_results(options.kafka, *send_all(other, 1, range(1)))  # its end marker is lost with its gap
        wait_until_caught_up(connection, options.kafka)
        assert stored() == []
        assert has_hole(progress(connection, uuid))
        assert not any(is_complete(progress(connection, each)) for each in (uuid, other))
        connection.execute("UPDATE scenario_progress SET epoch = 2")
        send_results(options.kafka, *send_all(uuid, 2, range(1, 3)), End(uuid, 2, 2, EndReason.FINISHED))
        send_results(options.kafka, End(other, 2, 0, EndReason.FINISHED, (gap,)))
        wait_until_caught_up(connection, options.kafka)
    assert stored() == [(0,), (0,)]
    assert all(is_complete(progress(connection, each)) for each in (uuid, other))


def test_results_are_stored_with_all_their_values(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    opened = SourceOpened(uuid, 1, width=64, height=48, duration_s=1.0, frames_expected=2)
    damaged = msgspec.structs.replace(
        frame(uuid, 1),
        corrupt=True,
        clock_jumps=3,
        time_s=0.25,
        captured_us=1_800_000_000_000_250,
        captured_by=CaptureClock.RTCP,
        gaps=(Gap(0.2, 0.24, GapReason.CORRUPT, 1),),
    )
    end = End(uuid, 1, 1, EndReason.FINISHED, (Gap(0.3, 0.4, GapReason.TRUNCATED),), ClockChanges(0.28, jumps=2))
    send_results(options.kafka, opened, frame(uuid, 0, label="person"), damaged, end)
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    rows = connection.execute(
        """
        SELECT frame_number, epoch, pts, time_s, width, height, at, detections, captured_at, captured_by, corrupt
          FROM scenario_results
         ORDER BY 1
        """
    ).fetchall()
    person = {"label": "person", "score": 0.5, "box": [0.0, 0.0, 1.0, 1.0]}
    assert rows[0] == (0, 1, 0, 0.0, 64, 48, "2026-01-01T00:00:00Z", [person], None, None, False)
    assert [(row[0], row[-1]) for row in rows] == [(0, False), (1, True)]
    assert rows[1][-3:-1] == (datetime.datetime(2027, 1, 15, 8, 0, 0, 250, datetime.UTC), "rtcp")
    assert connection.execute("SELECT after_frame, reason, frames FROM scenario_gaps ORDER BY 1").fetchall() == [
        (0, "corrupt", 1),
        (1, "truncated", None),
    ]
    after = progress(connection, uuid)
    assert is_complete(after)
    assert after.opened == opened
    assert after.warnings == (
        ScenarioWarning(WarningCode.FRAMES_DAMAGED, 2, 1, 0.2, 1, 0.25),
        ScenarioWarning(WarningCode.TIME_ADJUSTED, 5, 1, 0.25, 2, 0.28),
    )
    assert (after.last_pts, after.time_base, after.last_time_s) == (10, "1/90000", 0.25)


@pytest.mark.long
def test_many_scenarios_are_stored_completely_and_in_order(connection: Connection, options: InboxOptions) -> None:
    uuids = [insert_progress(connection) for _ in range(10)]
    with running_inbox(connection, options):
        for start in range(0, 300, 100):
            for uuid in uuids:
                send_results(options.kafka, *frames(uuid, range(start, start + 100)))
        wait_until_caught_up(connection, options.kafka)
    assert [stored_frame_numbers(connection, uuid) for uuid in uuids] == [list(range(300))] * 10


def test_a_repeated_frame_changes_nothing_and_is_counted(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    send_results(
        options.kafka, frame(uuid, 0, label="person"), frame(uuid, 1), frame(uuid, 0, label="cat"), frame(uuid, 1)
    )
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == [0, 1]
    assert progress(connection, uuid).repeats == 2
    [(label,)] = connection.execute(
        "SELECT detections -> 0 ->> 'label' FROM scenario_results WHERE frame_number = 0"
    ).fetchall()
    assert label == "person"


def test_results_are_stored_while_a_migration_adds_columns(connection: Connection, options: InboxOptions) -> None:
    """The statements of the inbox are prepared by then, and PostgreSQL rejects a prepared one whose result has changed."""
    uuid = insert_progress(connection)
    with running_inbox(connection, options):
        for number in range(10):
            send_results(options.kafka, *frames(uuid, [number]))
            wait_until_caught_up(connection, options.kafka)
        for table in ("scenario_progress", "inbox_partitions", "scenario_results"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN later integer")
        try:
            send_results(options.kafka, *frames(uuid, [10]))
            wait_until_caught_up(connection, options.kafka)
        finally:
            for table in ("scenario_progress", "inbox_partitions", "scenario_results"):
                connection.execute(f"ALTER TABLE {table} DROP COLUMN later")
        send_results(options.kafka, *frames(uuid, [11]))
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == list(range(12))


def test_invariant_5_an_unexpected_existing_row_is_kept_and_the_others_are_stored(
    connection: Connection, options: InboxOptions
) -> None:
    """A safeguard for a table that was restored without the others."""
    uuid, other = insert_progress(connection), insert_progress(connection)
    results.add_frames(connection, [frame(uuid, 1, label="person")])
    live = [
        msgspec.structs.replace(each, captured_us=1_000_000, captured_by=CaptureClock.ARRIVAL)
        for each in frames(uuid, range(4))
    ]
    send_results(options.kafka, *live, *frames(other, range(4)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert [stored_frame_numbers(connection, each) for each in (uuid, other)] == [list(range(4))] * 2
    assert dead_letters(connection) == []
    [(label,)] = connection.execute(
        "SELECT detections -> 0 ->> 'label' FROM scenario_results WHERE frame_number = 1 AND scenario_uuid = %s",
        (uuid,),
    ).fetchall()
    assert label == "person"
    assert connection.execute(
        "SELECT count(*), min(captured_at), min(captured_by) FROM scenario_results WHERE captured_at IS NOT NULL"
    ).fetchall() == [(3, datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC), "arrival")]


def test_nothing_after_a_hole_is_stored_until_the_next_epoch_fills_it(
    connection: Connection, options: InboxOptions
) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, frame(uuid, 0), frame(uuid, 2), frame(uuid, 3))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
        assert stored_frame_numbers(connection, uuid) == [0]
        assert progress(connection, uuid).hole_epoch == 1
        connection.execute("UPDATE scenario_progress SET epoch = 2")
        send_results(options.kafka, frame(uuid, 1, epoch=2), frame(uuid, 4, epoch=1), frame(uuid, 2, epoch=2))
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == [0, 1, 2]


def test_a_result_of_an_older_epoch_is_not_stored(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection, epoch=5)
    send_results(options.kafka, frame(uuid, 0, epoch=5), frame(uuid, 1, epoch=4), End(uuid, 4, 0, EndReason.FINISHED))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == [0]
    assert progress(connection, uuid).end_epoch is None


def test_a_result_of_a_closed_scenario_is_not_stored(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection, closed=True)
    send_results(options.kafka, frame(uuid, 0))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == []


def test_results_of_an_unknown_scenario_are_dropped(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, frame("01999999-0000-7000-8000-000000000000", 0), frame(uuid, 0))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert connection.execute("SELECT count(*) FROM scenario_results").fetchone() == (1,)
    assert dead_letters(connection) == []


def test_a_message_that_cannot_be_decoded_becomes_a_dead_letter_and_blocks_no_other(
    connection: Connection, options: InboxOptions
) -> None:
    uuid = insert_progress(connection)
    hostile = [b"", b"\xff\xfe", b"{}", b'{"type":"frame"}', b"[" * 100_000]
    send_results(options.kafka, frame(uuid, 0))
    send_results(options.kafka, *hostile, key=uuid)
    send_results(options.kafka, frame(uuid, 1))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    letters = dead_letters(connection)
    assert [letter.value or b"" for letter in letters] == hostile
    assert [letter.offset for letter in letters] == [1, 2, 3, 4, 5]
    assert {(letter.topic, letter.key) for letter in letters} == {(RESULTS, uuid.encode())}
    assert stored_frame_numbers(connection, uuid) == [0, 1]


@pytest.mark.long
def test_only_the_row_that_postgresql_rejects_becomes_a_dead_letter(
    connection: Connection, options: InboxOptions
) -> None:
    """Its frame is a hole. The frames of the other scenario are stored."""
    uuid, other = insert_progress(connection), insert_progress(connection)
    for number in range(40):
        send_results(options.kafka, frame(uuid, number), frame(other, number))
    connection.execute(
        f"ALTER TABLE scenario_results ADD CONSTRAINT picky CHECK (frame_number <> 17 OR scenario_uuid <> '{uuid}')"
    )
    try:
        with running_inbox(connection, options):
            wait_until_caught_up(connection, options.kafka)
    finally:
        connection.execute("ALTER TABLE scenario_results DROP CONSTRAINT picky")
    [letter] = dead_letters(connection)
    assert b'"frame_number":17' in (letter.value or b"")
    assert letter.error
    assert stored_frame_numbers(connection, other) == list(range(40))
    assert stored_frame_numbers(connection, uuid) == list(range(17))
    assert progress(connection, uuid).hole_epoch == 1


def test_a_text_that_postgresql_cannot_store_becomes_a_dead_letter(
    connection: Connection, options: InboxOptions
) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, frame(uuid, 0), msgspec.structs.replace(frame(uuid, 1), at="nul\x00"))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert len(dead_letters(connection)) == 1
    assert stored_frame_numbers(connection, uuid) == [0]


def test_invariant_9_messages_that_no_worker_sent_do_not_block_later_ones(
    connection: Connection, options: InboxOptions
) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, *[b"noise"] * 200, key=uuid)
    send_results(options.kafka, frame(uuid, 0))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert len(dead_letters(connection)) == 200
    assert stored_frame_numbers(connection, uuid) == [0]


def test_invariant_9_a_header_name_that_is_not_utf8_does_not_block_later_messages(
    connection: Connection, options: InboxOptions
) -> None:
    uuid = insert_progress(connection)
    send_with_header(options.kafka, RESULTS, b"noise", name=b"\xff\xfe", count=50)
    send_results(options.kafka, frame(uuid, 0))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert [letter.value for letter in dead_letters(connection)] == [b"noise"] * 50
    assert stored_frame_numbers(connection, uuid) == [0]


@pytest.mark.long
def test_an_inbox_that_cannot_decode_most_worker_messages_pauses_and_logs_it(
    connection: Connection, options: InboxOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """It stores and drops nothing until an operator moves the position, and the process does not end."""
    uuid = insert_progress(connection)
    send_results(options.kafka, *[b"a newer version's message"] * 60, key=uuid, headers=WORKER_HEADERS)
    send_results(options.kafka, frame(uuid, 0))
    with running_role(run, options) as stop:
        wait_until(lambda: "mostly_poison" in caplog.text, "the inbox has logged the problem")
        assert dead_letters(connection) == []
        assert connection.execute("SELECT sum(position)::int FROM inbox_partitions").fetchone() == (0,)
        skipped_s = now_s(connection)
        partition = next(message.partition() for message in read_topic(options.kafka, RESULTS))
        connection.execute("UPDATE inbox_partitions SET position = 60 WHERE partition = %s", (partition,))
        wait_until(lambda: stored_frame_numbers(connection, uuid) == [0], "the inbox continues after the messages")
        wait_until(lambda: is_caught_up(connection, options.kafka, skipped_s), "the inbox has caught up")
        assert not stop.requested
    assert caplog.text.count("mostly_poison") == 1


def test_the_dead_letter_of_a_long_message_fits_kafkas_size_limit(
    connection: Connection, options: InboxOptions
) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, b"x" * 900_000, key=uuid)
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    [pending] = outbox.read_pending_messages(connection, 10)
    assert len(pending.payload) < 1_000_000
    assert "900000 bytes" in dead_letters(connection)[0].error


def test_the_position_is_stored_with_the_rows(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(7)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    assert connection.execute("SELECT sum(position)::int FROM inbox_partitions").fetchone() == (7,)


@pytest.mark.long
def test_an_inbox_continues_from_a_position_that_was_moved_back(connection: Connection, options: InboxOptions) -> None:
    """This happens when the database is restored. Messages that Kafka still has are read again."""
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(10)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
        with connection.transaction():
            connection.execute("UPDATE inbox_partitions SET position = 4 WHERE position = 10")
            connection.execute("DELETE FROM scenario_results WHERE frame_number >= 4")
            connection.execute("UPDATE scenario_progress SET next_frame = 4")
        send_results(options.kafka, frame(uuid, 10))
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == list(range(11))
    assert progress(connection, uuid).repeats == 0


@pytest.mark.parametrize("restored", ["UPDATE inbox_partitions SET position = 0", "DELETE FROM inbox_partitions"])
@pytest.mark.long
def test_invariant_7_a_restored_position_is_used_without_a_further_message(
    connection: Connection, options: InboxOptions, restored: str
) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(10)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
        with connection.transaction():
            connection.execute(restored)
            connection.execute("DELETE FROM scenario_results")
            connection.execute("UPDATE scenario_progress SET next_frame = 0")
        wait_until(lambda: stored_frame_numbers(connection, uuid) == list(range(10)), "all frames are stored again")
        wait_until_caught_up(connection, options.kafka)


@pytest.mark.long
def test_deleted_positions_are_created_again(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(5)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
        connection.execute("DELETE FROM inbox_partitions")
        send_results(options.kafka, frame(uuid, 5))
        wait_until(lambda: stored_frame_numbers(connection, uuid) == list(range(6)), "all messages are read again")


@pytest.mark.long
def test_a_position_beyond_the_end_of_the_log_is_repaired(connection: Connection, options: InboxOptions) -> None:
    """This happens when the log is truncated. Without the repair, the inbox would never read a message or catch up."""
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(5)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    connection.execute("UPDATE inbox_partitions SET position = 1000 WHERE position = 5")
    with running_role(run, options):
        wait_until_caught_up(connection, options.kafka)
    assert connection.execute("SELECT max(position) FROM inbox_partitions").fetchone() == (5,)


@pytest.mark.long
def test_messages_that_kafka_has_deleted_do_not_stop_the_inbox(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(5)))
    client = admin.create_admin(options.kafka)
    ends = offsets.read_end_offsets(client, RESULTS)
    places = [TopicPartition(RESULTS, partition, end) for partition, end in ends.items()]
    for answer in client.delete_records(places).values():
        answer.result()
    with running_role(run, options):
        wait_until_caught_up(connection, options.kafka)
    assert connection.execute("SELECT max(position) FROM inbox_partitions").fetchone() == (5,)


@pytest.mark.long
def test_everything_sent_before_the_caught_up_time_is_stored(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    with running_inbox(connection, options):
        for number in range(30):
            send_results(options.kafka, frame(uuid, number))
            sent_s = now_s(connection)
            wait_until(lambda sent_s=sent_s: is_caught_up(connection, options.kafka, sent_s), "the inbox has caught up")
            assert stored_frame_numbers(connection, uuid) == list(range(number + 1))


def test_a_stopped_inbox_does_not_catch_up(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    send_results(options.kafka, frame(uuid, 0))
    assert not is_caught_up(connection, options.kafka, now_s(connection))


@pytest.mark.long
def test_an_inbox_without_messages_catches_up_each_second(connection: Connection, options: InboxOptions) -> None:
    with running_inbox(connection, options):
        for _ in range(2):
            wait_until_caught_up(connection, options.kafka)


def test_a_partition_that_was_never_read_has_no_caught_up_time(connection: Connection, options: InboxOptions) -> None:
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    topic_id = offsets.read_topic_id(admin.create_admin(options.kafka), RESULTS)
    assert caught_up_s(connection, topic_id, range(16)) is not None
    assert caught_up_s(connection, topic_id, range(17)) is None
    assert caught_up_s(connection, "another id", range(16)) is None


@pytest.mark.long
def test_two_inboxes_store_everything_once(connection: Connection, options: InboxOptions) -> None:
    uuids = [insert_progress(connection) for _ in range(12)]
    with running_inbox(connection, options), running_role(run, options):
        for start in range(0, 200, 50):
            for uuid in uuids:
                send_results(options.kafka, *frames(uuid, range(start, start + 50)))
        wait_until_caught_up(connection, options.kafka)
    assert [stored_frame_numbers(connection, uuid) for uuid in uuids] == [list(range(200))] * 12


@pytest.mark.long
def test_partitions_lost_while_the_reader_was_paused_are_read_when_they_come_back(
    connection: Connection, options: InboxOptions
) -> None:
    """The client keeps the pause of a revoked partition and would never read it again."""

    def has_all_partitions() -> bool:
        return not first.poll(0.05) and len(first.positions) == PARTITIONS[RESULTS]

    with closing(create_reader(connection, options)) as first:
        wait_until(has_all_partitions, "the first reader has all partitions")
        first.pause()
        with closing(create_reader(connection, options)) as second:
            wait_until(
                lambda: not second.poll(0.05) and poll_and_check_loss(first) and bool(second.positions),
                "the second reader has some partitions",
            )
            first.resume()
        wait_until(has_all_partitions, "the first reader has all partitions again")
        uuids = [insert_progress(connection) for _ in range(100)]
        send_results(options.kafka, *(frame(uuid, 0) for uuid in uuids))
        wait_until(lambda: first.fill(0.1) and len(first.batch) == len(uuids), "the first reader has read all messages")


def create_reader(connection: Connection, options: InboxOptions) -> Reader:
    """Return an inbox's reader, which starts at the positions in the database."""
    topic_id = offsets.read_topic_id(admin.create_admin(options.kafka), RESULTS)
    return Reader(
        options.kafka,
        options.group_protocol,
        lambda partitions: inbox_partitions.read_positions(connection, RESULTS, topic_id, partitions),
    )


def poll_and_check_loss(reader: Reader) -> bool:
    """Poll the reader, and return whether it has lost partitions."""
    reader.poll(0.05)
    return len(reader.positions) < PARTITIONS[RESULTS]


@pytest.mark.long
def test_partitions_that_move_to_another_inbox_during_a_copy_lose_no_frames(
    connection: Connection, options: InboxOptions
) -> None:
    uuids = [insert_progress(connection) for _ in range(24)]
    for uuid in uuids:
        send_results(options.kafka, *frames(uuid, range(100)))
    topic_id = offsets.read_topic_id(admin.create_admin(options.kafka), RESULTS)
    reader = create_reader(connection, options)
    wait_until(lambda: not reader.fill(0.1), "a full batch is read")
    with connect(options.database_url, name="writer") as writer, ExitStack() as other:

        def lose_some() -> None:
            if len(reader.positions) < PARTITIONS[RESULTS]:
                return
            other.enter_context(running_role(run, options))
            wait_until(lambda: poll_and_check_loss(reader), "another inbox has some partitions")

        part = reader.batch[:BATCH_MESSAGES]
        storing.store(writer, topic_id, dict(reader.positions), part, lose_some)
        reader.mark_stored(part)
        assert all(message.offset >= reader.positions[message.partition] for message in reader.batch), (
            "the batch has a message that is stored or of a lost partition"
        )
        reader.close()
        wait_until_caught_up(connection, options.kafka)
    assert [stored_frame_numbers(connection, uuid) for uuid in uuids] == [list(range(100))] * 24
    assert [progress(connection, uuid).repeats for uuid in uuids] == [0] * 24


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.timeout(240)
def test_invariant_5_killed_frozen_and_stopped_inboxes_store_every_frame_once(
    connection: Connection, options: InboxOptions
) -> None:
    uuids = [insert_progress(connection) for _ in range(12)]
    rng = random.Random(5)  # noqa: S311 - chooses an inbox and a signal
    with ExitStack() as inboxes:

        def start() -> subprocess.Popen[bytes]:
            return inboxes.enter_context(role_process("inbox", options.database_url, options.kafka))

        alive = [start() for _ in range(3)]
        for step in range(12):
            victim = rng.choice(alive)
            for uuid in uuids:
                send_results(options.kafka, *frames(uuid, range(step * 100, (step + 1) * 100)))
            number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
            victim.send_signal(number)
            if number != signal.SIGSTOP:
                victim.wait(30)
                alive = [start() if process is victim else process for process in alive]
            wait_until_stored(connection, uuids, (step + 1) * 100)
            victim.send_signal(signal.SIGCONT)
        wait_until_caught_up(connection, options.kafka)
        assert [process.poll() for process in alive] == [None] * 3
    assert [stored_frame_numbers(connection, uuid) for uuid in uuids] == [list(range(1200))] * 12
    assert [progress(connection, uuid).repeats for uuid in uuids] == [0] * 12


@pytest.mark.fault
@pytest.mark.parametrize(
    ("lock_statement", "frozen_state"),
    [
        ("SELECT FROM scenario_progress WHERE scenario_uuid = %(uuid)s FOR UPDATE", "idle in transaction"),
        (
            (
                "INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)"
                " SELECT %(uuid)s, 0, 1, 0, 0, 1, 1, '2026-01-01T00:00:00Z', '[]'"
            ),
            "active",  # in a COPY, during which the server checks no timeout
        ),
    ],
    ids=["between statements", "in a COPY"],
)
@pytest.mark.long
def test_invariant_8_an_inbox_frozen_in_a_transaction_does_not_block_another(
    connection: Connection, options: InboxOptions, lock_statement: LiteralString, frozen_state: str
) -> None:
    uuid = insert_progress(connection)
    detections = (Detection("x" * 190, 0.5, (0.0, 0.0, 1.0, 1.0)),) * 3500
    for number in range(12):  # more data than the socket buffers hold, so that the COPY cannot be sent completely
        send_results(options.kafka, msgspec.structs.replace(frame(uuid, number), detections=detections))

    def session_state() -> str:
        [(state,)] = connection.execute(
            """
            SELECT max(CASE wait_event_type WHEN 'Lock' THEN 'locked' WHEN 'Client' THEN state END)
              FROM pg_stat_activity
             WHERE application_name = 'vidflow inbox' AND datname = current_database()
            """
        ).fetchall()
        return str(state)

    with role_process("inbox", options.database_url, options.kafka) as frozen:
        with connect(options.database_url, name="holder") as holder, holder.transaction(force_rollback=True):
            holder.execute(lock_statement, {"uuid": uuid})
            wait_until(lambda: session_state() == "locked", "the inbox waits for the lock in its transaction")
            frozen.send_signal(signal.SIGSTOP)
        wait_until(lambda: session_state() == frozen_state, "the server waits for the frozen inbox")
        with running_inbox(connection, options):
            wait_until_caught_up(connection, options.kafka)
            assert stored_frame_numbers(connection, uuid) == list(range(12))
            frozen.send_signal(signal.SIGCONT)
            send_results(options.kafka, *frames(uuid, range(12, 20)))
            wait_until_caught_up(connection, options.kafka)
        wait_until_caught_up(connection, options.kafka)  # now only the formerly frozen inbox runs
        assert frozen.poll() is None
    assert stored_frame_numbers(connection, uuid) == list(range(20))
    assert progress(connection, uuid).repeats == 0


def wait_until_stored(connection: Connection, uuids: list[str], count: int) -> None:
    wait_until(
        lambda: min(each.next_frame for each in read_progress(connection, uuids).values()) == count,
        f"{count} frames of each scenario are stored",
        30,
    )


@pytest.mark.fault
@pytest.mark.parametrize("place", ["inbox.before_position", "inbox.before_commit", "inbox.after_commit"])
@pytest.mark.long
def test_an_inbox_killed_at_a_crash_point_is_followed_by_one_that_stores_every_frame_once(
    connection: Connection, options: InboxOptions, place: str
) -> None:
    uuids = [insert_progress(connection) for _ in range(4)]
    for uuid in uuids:
        send_results(options.kafka, *frames(uuid, range(600)))
    with role_process("inbox", options.database_url, options.kafka, crash_at=f"{place}:2") as child:
        child.wait(30)
        assert child.returncode == -9, f"the inbox did not reach {place}"
    assert 0 < sum(len(stored_frame_numbers(connection, uuid)) for uuid in uuids) < 2400
    began_s = time.monotonic()
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
        print_figure(f"takeover from a killed inbox, until all frames are stored: {time.monotonic() - began_s:.1f} s")
    assert [stored_frame_numbers(connection, uuid) for uuid in uuids] == [list(range(600))] * 4
    assert [progress(connection, uuid).repeats for uuid in uuids] == [0] * 4


@pytest.mark.long
def test_lost_database_connections_lose_no_frames(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    with running_inbox(connection, options):
        for start in range(0, 500, 50):
            send_results(options.kafka, *frames(uuid, range(start, start + 50)))
            terminate_connections(connection, "vidflow inbox")
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == list(range(500))


@pytest.mark.fault
@pytest.mark.long
def test_invariant_8_an_inbox_waits_for_its_database_and_continues_where_it_was(
    tmp_path: Path, kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Under load, and for longer than the group's session timeout. It stays in the group and writes no dead letter."""
    caplog.set_level(logging.INFO, "vidflow")
    recreate_topics(kafka_settings)
    server = EmbeddedPostgres(tmp_path, notify=print, stop=Stop())
    url = server.start().url
    try:
        migrate(url, print)
        options = InboxOptions(database_url=url, kafka=kafka_settings)
        with connect(url, name="test") as connection:
            uuids = [insert_progress(connection) for _ in range(4)]
            with running_inbox(connection, options) as stop, sending_workers(kafka_settings, uuids) as sent:
                wait_until(lambda: stored_frame_numbers(connection, uuids[0]) != [], "the inbox stores frames")
                server.stop()
                sent_during_outage = sent[0] + 1000
                until_s = time.monotonic() + GROUP_SESSION_S
                wait_until(
                    lambda: sent[0] >= sent_during_outage and time.monotonic() > until_s,
                    "the workers have sent more frames",
                )
                assert not stop.requested
                server = EmbeddedPostgres(tmp_path, notify=print, stop=Stop())
                assert server.start().url == url
                with connect(url, name="test again") as connection_again:
                    wait_until(
                        lambda: len(stored_frame_numbers(connection_again, uuids[0])) * len(uuids) > sent_during_outage,
                        "the frames sent during the outage are stored",
                    )
                    members = group_members(kafka_settings)
        with connect(url, name="test at last") as connection, running_inbox(connection, options):
            wait_until_caught_up(connection, kafka_settings)
            assert [stored_frame_numbers(connection, uuid) for uuid in uuids] == [list(range(sent[0] // 4))] * 4
            assert {progress(connection, uuid).hole_epoch for uuid in uuids} == {None}
            assert dead_letters(connection) == []
    finally:
        server.stop()
    assert members == 1
    assert [event for event in caplog.messages if event in {"away", "back"}] == ["away", "back"]


GROUP_SESSION_S = 3.5


@contextmanager
def sending_workers(settings: KafkaSettings, uuids: list[str]) -> Iterator[list[int]]:
    """Send about 1,000 frames a second of all scenarios during the block. Yield a list with the number of sent frames."""
    sent, done = [0], threading.Event()
    producer = clients.create_producer(settings, client_id="workers-under-test")
    clients.fetch_topic_metadata(producer, RESULTS)

    def send_frames() -> None:
        while not done.wait(0.02):
            first = sent[0] // len(uuids)
            for message in (frame(uuid, first + index) for uuid in uuids for index in range(5)):
                producer.produce(RESULTS, encode(message), message.scenario_uuid)
            producer.poll(0)
            sent[0] += 5 * len(uuids)

    workers = threading.Thread(target=send_frames, name="workers")
    workers.start()
    try:
        yield sent
    finally:
        done.set()
        workers.join()
        assert producer.flush(10) == 0


def group_members(settings: KafkaSettings) -> int:
    client = admin.create_admin(settings)
    return len(client.describe_consumer_groups([GROUP])[GROUP].result(10).members)


@pytest.mark.long
def test_a_recreated_topic_is_read_from_its_beginning(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(5)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
        recreate_topics(options.kafka)
        send_results(options.kafka, frame(uuid, 5))
        wait_until(lambda: stored_frame_numbers(connection, uuid) == list(range(6)), "the new topic is read")
        wait_until_caught_up(connection, options.kafka)


def test_a_leader_that_raises_epochs_meanwhile_causes_no_deadlock(
    connection: Connection, options: InboxOptions
) -> None:
    uuids = sorted(insert_progress(connection) for _ in range(8))
    done = threading.Event()

    def raise_epochs() -> None:
        with connect(options.database_url, name="leader under test") as leader:
            while not done.is_set():
                with leader.transaction():
                    lock_progress(leader, uuids[::-1])
                    leader.execute("UPDATE scenario_progress SET repeats = repeats")

    leader = threading.Thread(target=raise_epochs, name="leader")
    leader.start()
    try:
        with running_inbox(connection, options):
            for uuid in uuids:
                send_results(options.kafka, *frames(uuid, range(100)))
            wait_until_caught_up(connection, options.kafka)
    finally:
        done.set()
        leader.join(10)
    assert [stored_frame_numbers(connection, uuid) for uuid in uuids] == [list(range(100))] * 8


def test_a_detection_is_stored_as_it_was_sent(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    detection = Detection('größer \u200c\u200d\u00a0\u3000\u2028 "quoted" \\', 0.1234, (1.25, 2.5, 300.75, 400.01))
    send_results(options.kafka, msgspec.structs.replace(frame(uuid, 0), detections=(detection,)))
    with running_inbox(connection, options):
        wait_until_caught_up(connection, options.kafka)
    [(text,)] = connection.execute("SELECT detections::text FROM scenario_results").fetchall()
    assert msgspec.json.decode(text, type=tuple[Detection, ...]) == (detection,)


def test_a_caught_up_time_in_the_future_is_ignored_and_replaced(connection: Connection) -> None:
    """This happens when the database's clock steps back."""
    inbox_partitions.read_positions(connection, RESULTS, "id", [0, 1])
    now = inbox_partitions.read_database_time(connection)
    inbox_partitions.note_caught_up(connection, RESULTS, "id", {0: 0}, {0: 0}, now)
    inbox_partitions.note_caught_up(connection, RESULTS, "id", {1: 0}, {1: 0}, now + datetime.timedelta(hours=1))
    assert caught_up_s(connection, "id", [0, 1]) is None
    inbox_partitions.note_caught_up(connection, RESULTS, "id", {1: 0}, {1: 0}, now)
    assert caught_up_s(connection, "id", [0, 1]) == pytest.approx(now.timestamp())


def test_an_unknown_offset_is_neither_a_position_nor_an_end(connection: Connection) -> None:
    inbox_partitions.read_positions(connection, RESULTS, "unknown", [0, 1])
    now = inbox_partitions.read_database_time(connection)
    assert inbox_partitions.move_positions(connection, RESULTS, "unknown", {0: (0, -1001)}) == set()
    ends = {0: -1001, 1: 0}
    inbox_partitions.note_caught_up(connection, RESULTS, "unknown", {0: 0, 1: -1001}, ends, now)
    assert caught_up_s(connection, "unknown", [0]) is None
    assert caught_up_s(connection, "unknown", [1]) is None
    assert inbox_partitions.read_positions(connection, RESULTS, "unknown", [0, 1]) == {0: 0, 1: 0}


def stall(reader: Reader) -> None:
    """Let the client deliver nothing more, as if it had lost the partitions' leaders."""
    reader._consumer.pause([TopicPartition(RESULTS, partition) for partition in range(PARTITIONS[RESULTS])])


def leave_group(reader: Reader) -> None:
    """Let the client lose its partitions for good, as if its group had forgotten it."""
    reader._consumer.unsubscribe()


@pytest.mark.long
@pytest.mark.parametrize("lose", [stall, leave_group])
def test_invariant_9_an_inbox_whose_client_delivers_nothing_opens_a_new_one(
    connection: Connection, options: InboxOptions, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Reader], None]
) -> None:
    readers: list[Reader] = []

    def create_reader(*arguments: Any) -> Reader:
        readers.append(Reader(*arguments))
        return readers[-1]

    monkeypatch.setattr(role, "Reader", create_reader)
    monkeypatch.setattr(role, "STALL_TIMEOUT_S", 3.0)  # longer than joining the group takes
    uuid = insert_progress(connection)
    with running_inbox(connection, options):
        send_results(options.kafka, frame(uuid, 0))
        wait_until_stored(connection, [uuid], 1)
        lose(readers[-1])
        opened = len(readers)
        send_results(options.kafka, frame(uuid, 1), frame(uuid, 2))
        wait_until_stored(connection, [uuid], 3)
        wait_until_caught_up(connection, options.kafka)
    assert stored_frame_numbers(connection, uuid) == [0, 1, 2]
    assert len(readers) > opened


def test_an_inbox_without_partitions_waits_while_another_one_holds_them(
    connection: Connection, options: InboxOptions
) -> None:
    topic_id = offsets.read_topic_id(admin.create_admin(options.kafka), RESULTS)
    assert not inbox_partitions.are_all_held(connection, RESULTS, topic_id, within_s=60)
    with running_inbox(connection, options):
        assert inbox_partitions.are_all_held(connection, RESULTS, topic_id, within_s=60)
    connection.execute("UPDATE inbox_partitions SET seen_at = NULL, caught_up_at = NULL WHERE partition = 3")
    assert not inbox_partitions.are_all_held(connection, RESULTS, topic_id, within_s=60)


def test_a_lone_result_is_stored_without_a_later_one_and_those_that_follow_it_soon_share_a_transaction(
    connection: Connection, options: InboxOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role, "COLLECT_S", 2.0)
    uuid = insert_progress(connection)
    producer = clients.create_producer(options.kafka, client_id="worker-under-test")
    with running_inbox(connection, options):
        for number in range(20):
            producer.produce(RESULTS, encode(frame(uuid, number)), uuid.encode())
            assert producer.flush(10) == 0
            if number == 0:
                wait_until_stored(connection, [uuid], 1)
        wait_until_stored(connection, [uuid], 20)
    query = "SELECT count(DISTINCT xmin::text) FROM scenario_results WHERE scenario_uuid = %s"
    [(transactions,)] = connection.execute(query, (uuid,)).fetchall()
    assert 2 <= transactions < 10


def test_a_burst_ends_the_collecting_of_a_batch_at_its_limit(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    send_results(options.kafka, *frames(uuid, range(BATCH_MESSAGES + 500)))
    with closing(create_reader(connection, options)) as reader:
        wait_until(lambda: bool(reader.poll(0.1)), "the first message is read")
        assert not reader.fill(0.1, collect_until_s=time.monotonic() + 3600)
        assert len(reader.batch) == BATCH_MESSAGES


@pytest.mark.long
def test_a_batch_exceeds_its_byte_limit_by_one_message_at_most(connection: Connection, options: InboxOptions) -> None:
    uuid = insert_progress(connection)
    label = "x" * (LONG_BYTES - 1000)
    for number in range(40):
        send_results(options.kafka, frame(uuid, number, label=label))
    reader = create_reader(connection, options)
    sizes: list[int] = []
    read_offsets: list[int] = []

    def read_batch() -> bool:
        reader.fill(0.1)
        sizes.append(sum(message.size_bytes for message in reader.batch))
        reader.prefetch()
        assert sum(message.size_bytes for message in reader.batch) <= 2 * BATCH_BYTES + LONG_BYTES
        read_offsets.extend(message.offset for message in reader.batch)
        reader.mark_stored(list(reader.batch))
        return len(read_offsets) == 40

    try:
        wait_until(read_batch, "all messages are read")
    finally:
        reader.close()
    assert sorted(read_offsets) == list(range(40))
    assert max(sizes) > BATCH_BYTES - LONG_BYTES, "no batch was full"
    assert max(sizes) <= BATCH_BYTES + LONG_BYTES


def test_an_error_in_the_assignment_callback_ends_the_inbox(options: InboxOptions) -> None:
    """The client ignores such an error, and the inbox would continue without these partitions."""
    reader = Reader(options.kafka, options.group_protocol, lambda partitions: dict.fromkeys(partitions, -7))
    with pytest.raises(errors.ClientBroken), closing(reader):
        wait_until(lambda: bool(reader.fill(0.1)) and bool(reader.positions), "the reader is assigned partitions")
