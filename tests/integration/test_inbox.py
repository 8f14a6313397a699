from __future__ import annotations

import datetime
import logging
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import LiteralString

import msgspec
import pytest
from confluent_kafka import TopicPartition
from tests.integration.delivery import (
    OF_A_WORKER,
    cut_off,
    frame,
    frames,
    log_of,
    process,
    remake_topics,
    running,
    say,
    scenario,
    send,
    send_with_header,
    stored,
)
from tests.integration.embedded import wait_until

from vidflow.domain.detections import Detection
from vidflow.domain.messages import (
    DEAD_LETTERS,
    PARTITIONS,
    RESULTS,
    DeadLetter,
    End,
    EndReason,
    Gap,
    GapReason,
    Opened,
    encode,
)
from vidflow.domain.progress import Progress, whole
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.kafka import admin, clients, errors, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres import inbox_partitions, outbox, results
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.stopping import Stop
from vidflow.roles.inbox import run, storing
from vidflow.roles.inbox.reader import BATCH, BATCH_BYTES, GROUP, Reader
from vidflow.settings import InboxOptions

LONG_BYTES = 900_000


@pytest.fixture
def options(database_url: str, kafka_settings: KafkaSettings) -> InboxOptions:
    remake_topics(kafka_settings)
    return InboxOptions(database_url=database_url, kafka=kafka_settings)


def progress(tables: Connection, scenario_uuid: str) -> Progress:
    return results.read_progress(tables, [scenario_uuid])[scenario_uuid]


def now_s(tables: Connection) -> float:
    return inbox_partitions.database_time(tables).timestamp()


def caught_up_s(tables: Connection, topic_id: str, partitions: Sequence[int]) -> float | None:
    return inbox_partitions.caught_up_answer(inbox_partitions.ask_caught_up(tables, RESULTS, topic_id, partitions))


def caught_up_past(tables: Connection, settings: KafkaSettings, moment_s: float) -> bool:
    """What the leader asks before it takes a scenario from its runner."""
    client = admin.client(settings)
    topic = (offsets.topic_id(client, RESULTS), offsets.partitions(client, RESULTS))
    stored_s = caught_up_s(tables, *topic)
    return stored_s is not None and stored_s >= moment_s


def await_caught_up(tables: Connection, settings: KafkaSettings) -> None:
    """All that was sent until now is dealt with."""
    moment_s = now_s(tables)
    wait_until(lambda: caught_up_past(tables, settings, moment_s), "the inbox has caught up")


@contextmanager
def inbox(tables: Connection, options: InboxOptions) -> Iterator[Stop]:
    """The inbox, running, with its partitions."""
    with running(run, options) as stop:
        wait_until(lambda: stop.requested or caught_up_past(tables, options.kafka, 0.0), "the inbox has its partitions")
        yield stop


def dead_letters(tables: Connection) -> list[DeadLetter]:
    waiting = outbox.pending(tables, 1000)
    assert all(one.topic == DEAD_LETTERS for one in waiting)
    return [msgspec.json.decode(one.payload, type=DeadLetter) for one in waiting]


def test_results_are_stored_with_what_they_say(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    opened = Opened(uuid, 1, width=64, height=48, duration_s=1.0, frames_expected=2)
    gap = Gap(uuid, 1, after_frame=0, from_s=0.2, to_s=0.4, reason=GapReason.CORRUPT, frames=1)
    end = End(uuid, 1, last_frame=1, reason=EndReason.FINISHED)
    send(options.kafka, opened, frame(uuid, 0, label="person"), gap, frame(uuid, 1), end)
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    rows = tables.execute(
        "SELECT frame_number, epoch, pts, time_s, width, height, at, detections FROM scenario_results ORDER BY 1"
    ).fetchall()
    person = {"label": "person", "score": 0.5, "box": [0.0, 0.0, 1.0, 1.0]}
    assert rows[0] == (0, 1, 0, 0.0, 64, 48, "2026-01-01T00:00:00Z", [person])
    assert [row[0] for row in rows] == [0, 1]
    assert tables.execute("SELECT after_frame, reason, frames FROM scenario_gaps").fetchall() == [(0, "corrupt", 1)]
    after = progress(tables, uuid)
    assert whole(after)
    assert after.opened == opened
    assert (after.last_pts, after.time_base, after.last_time_s) == (10, "1/90000", 0.2)


def test_many_scenarios_are_stored_whole_and_in_order(tables: Connection, options: InboxOptions) -> None:
    uuids = [scenario(tables) for _ in range(10)]
    with inbox(tables, options):
        for start in range(0, 300, 100):
            for uuid in uuids:
                send(options.kafka, *frames(uuid, range(start, start + 100)))
        await_caught_up(tables, options.kafka)
    assert [stored(tables, uuid) for uuid in uuids] == [list(range(300))] * 10


def test_a_frame_that_comes_again_changes_nothing_and_is_counted(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    send(options.kafka, frame(uuid, 0, label="person"), frame(uuid, 1), frame(uuid, 0, label="cat"), frame(uuid, 1))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert stored(tables, uuid) == [0, 1]
    assert progress(tables, uuid).repeats == 2
    [(label,)] = tables.execute(
        "SELECT detections -> 0 ->> 'label' FROM scenario_results WHERE frame_number = 0"
    ).fetchall()
    assert label == "person"


def test_invariant_5_a_row_that_is_there_against_the_rule_stays_as_it_is_and_the_others_are_stored(
    tables: Connection, options: InboxOptions
) -> None:
    """As where a table was restored by itself: the net below the rule."""
    uuid, other = scenario(tables), scenario(tables)
    results.add_frames(tables, [frame(uuid, 1, label="person")])
    send(options.kafka, *frames(uuid, range(4)), *frames(other, range(4)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert [stored(tables, one) for one in (uuid, other)] == [list(range(4))] * 2
    assert dead_letters(tables) == []
    [(label,)] = tables.execute(
        "SELECT detections -> 0 ->> 'label' FROM scenario_results WHERE frame_number = 1 AND scenario_uuid = %s",
        (uuid,),
    ).fetchall()
    assert label == "person"


def test_nothing_behind_a_hole_is_stored_and_the_next_epoch_fills_it(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    send(options.kafka, frame(uuid, 0), frame(uuid, 2), frame(uuid, 3))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
        assert stored(tables, uuid) == [0]
        assert progress(tables, uuid).hole_epoch == 1
        tables.execute("UPDATE scenario_progress SET epoch = 2")
        send(options.kafka, frame(uuid, 1, epoch=2), frame(uuid, 4, epoch=1), frame(uuid, 2, epoch=2))
        await_caught_up(tables, options.kafka)
    assert stored(tables, uuid) == [0, 1, 2]


def test_an_older_epoch_stores_nothing_more(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables, epoch=5)
    send(options.kafka, frame(uuid, 0, epoch=5), frame(uuid, 1, epoch=4), End(uuid, 4, 0, EndReason.FINISHED))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert stored(tables, uuid) == [0]
    assert progress(tables, uuid).end_epoch is None


def test_a_closed_scenario_takes_no_row(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables, closed=True)
    send(options.kafka, frame(uuid, 0))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert stored(tables, uuid) == []


def test_results_of_a_scenario_that_nobody_knows_are_dropped(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    send(options.kafka, frame("01999999-0000-7000-8000-000000000000", 0), frame(uuid, 0))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert tables.execute("SELECT count(*) FROM scenario_results").fetchone() == (1,)
    assert dead_letters(tables) == []


def test_a_message_that_cannot_be_read_becomes_a_dead_letter_and_blocks_nothing(
    tables: Connection, options: InboxOptions
) -> None:
    uuid = scenario(tables)
    hostile = [b"", b"\xff\xfe", b"{}", b'{"type":"frame"}', b"[" * 100_000]
    send(options.kafka, frame(uuid, 0))
    send(options.kafka, *hostile, key=uuid)
    send(options.kafka, frame(uuid, 1))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    letters = dead_letters(tables)
    assert [letter.value or b"" for letter in letters] == hostile
    assert [letter.offset for letter in letters] == [1, 2, 3, 4, 5]
    assert {(letter.topic, letter.key) for letter in letters} == {(RESULTS, uuid.encode())}
    assert stored(tables, uuid) == [0, 1]


def test_a_row_that_postgresql_refuses_becomes_a_dead_letter_alone(tables: Connection, options: InboxOptions) -> None:
    """Its frame is a hole, the other scenario's are not touched."""
    uuid, other = scenario(tables), scenario(tables)
    for number in range(40):
        send(options.kafka, frame(uuid, number), frame(other, number))
    tables.execute(
        f"ALTER TABLE scenario_results ADD CONSTRAINT picky CHECK (frame_number <> 17 OR scenario_uuid <> '{uuid}')"
    )
    try:
        with inbox(tables, options):
            await_caught_up(tables, options.kafka)
    finally:
        tables.execute("ALTER TABLE scenario_results DROP CONSTRAINT picky")
    [letter] = dead_letters(tables)
    assert b'"frame_number":17' in (letter.value or b"")
    assert letter.error
    assert stored(tables, other) == list(range(40))
    assert stored(tables, uuid) == list(range(17))
    assert progress(tables, uuid).hole_epoch == 1


def test_a_text_that_postgresql_cannot_hold_becomes_a_dead_letter_too(
    tables: Connection, options: InboxOptions
) -> None:
    uuid = scenario(tables)
    send(options.kafka, frame(uuid, 0), msgspec.structs.replace(frame(uuid, 1), at="nul\x00"))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert len(dead_letters(tables)) == 1
    assert stored(tables, uuid) == [0]


def test_invariant_9_any_number_of_messages_that_no_worker_sent_block_nothing_behind_them(
    tables: Connection, options: InboxOptions
) -> None:
    uuid = scenario(tables)
    send(options.kafka, *[b"noise"] * 200, key=uuid)
    send(options.kafka, frame(uuid, 0))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert len(dead_letters(tables)) == 200
    assert stored(tables, uuid) == [0]


def test_invariant_9_a_header_whose_name_is_no_text_blocks_nothing_behind_it(
    tables: Connection, options: InboxOptions
) -> None:
    uuid = scenario(tables)
    send_with_header(options.kafka, RESULTS, b"noise", name=b"\xff\xfe", count=50)
    send(options.kafka, frame(uuid, 0))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert [letter.value for letter in dead_letters(tables)] == [b"noise"] * 50
    assert stored(tables, uuid) == [0]


def test_an_inbox_that_can_read_hardly_anything_of_the_workers_holds_and_says_so(
    tables: Connection, options: InboxOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is stored or dropped until somebody says that nobody needs the messages; it does not die of them."""
    uuid = scenario(tables)
    send(options.kafka, *[b"a newer version's message"] * 60, key=uuid, headers=OF_A_WORKER)
    send(options.kafka, frame(uuid, 0))
    with running(run, options) as stop:
        wait_until(lambda: "mostly_poison" in caplog.text, "it says so")
        assert dead_letters(tables) == []
        assert tables.execute("SELECT sum(position)::int FROM inbox_partitions").fetchone() == (0,)
        at = now_s(tables)
        partition = next(message.partition() for message in log_of(options.kafka, RESULTS))
        tables.execute("UPDATE inbox_partitions SET position = 60 WHERE partition = %s", (partition,))
        wait_until(lambda: stored(tables, uuid) == [0], "it goes on behind them")
        wait_until(lambda: caught_up_past(tables, options.kafka, at), "it has caught up")
        assert not stop.requested
    assert caplog.text.count("mostly_poison") == 1


def test_a_long_message_that_cannot_be_read_leaves_a_letter_that_kafka_takes(
    tables: Connection, options: InboxOptions
) -> None:
    uuid = scenario(tables)
    send(options.kafka, b"x" * 900_000, key=uuid)
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    [waiting] = outbox.pending(tables, 10)
    assert len(waiting.payload) < 1_000_000
    assert "900000 bytes" in dead_letters(tables)[0].error


def test_the_position_is_stored_with_the_rows(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(7)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    assert tables.execute("SELECT sum(position)::int FROM inbox_partitions").fetchone() == (7,)


def test_a_position_that_was_moved_back_is_where_it_begins_again(tables: Connection, options: InboxOptions) -> None:
    """As after a restore of the database: what Kafka still holds is read again."""
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(10)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
        with tables.transaction():
            tables.execute("UPDATE inbox_partitions SET position = 4 WHERE position = 10")
            tables.execute("DELETE FROM scenario_results WHERE frame_number >= 4")
            tables.execute("UPDATE scenario_progress SET next_frame = 4")
        send(options.kafka, frame(uuid, 10))
        await_caught_up(tables, options.kafka)
    assert stored(tables, uuid) == list(range(11))
    assert progress(tables, uuid).repeats == 0


@pytest.mark.parametrize("restored", ["UPDATE inbox_partitions SET position = 0", "DELETE FROM inbox_partitions"])
def test_invariant_7_a_restored_position_is_followed_though_nothing_more_comes(
    tables: Connection, options: InboxOptions, restored: str
) -> None:
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(10)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
        with tables.transaction():
            tables.execute(restored)
            tables.execute("DELETE FROM scenario_results")
            tables.execute("UPDATE scenario_progress SET next_frame = 0")
        wait_until(lambda: stored(tables, uuid) == list(range(10)), "it reads all again")
        await_caught_up(tables, options.kafka)


def test_positions_that_are_gone_are_made_anew(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(5)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
        tables.execute("DELETE FROM inbox_partitions")
        send(options.kafka, frame(uuid, 5))
        wait_until(lambda: stored(tables, uuid) == list(range(6)), "it reads all again")


def test_a_position_beyond_the_end_of_the_log_is_mended(tables: Connection, options: InboxOptions) -> None:
    """A log that was cut: nothing would ever come from there, and it would never be caught up with."""
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(5)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    tables.execute("UPDATE inbox_partitions SET position = 1000 WHERE position = 5")
    with running(run, options):
        await_caught_up(tables, options.kafka)
    assert tables.execute("SELECT max(position) FROM inbox_partitions").fetchone() == (5,)


def test_messages_that_kafka_has_deleted_do_not_stop_it(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(5)))
    client = admin.client(options.kafka)
    ends = offsets.end_offsets(client, RESULTS)
    for answer in client.delete_records([TopicPartition(RESULTS, one, end) for one, end in ends.items()]).values():
        answer.result()
    with running(run, options):
        await_caught_up(tables, options.kafka)
    assert tables.execute("SELECT max(position) FROM inbox_partitions").fetchone() == (5,)


def test_caught_up_means_that_what_was_sent_before_is_stored(tables: Connection, options: InboxOptions) -> None:
    """At no moment may the tables say that it has caught up past a moment while a result sent before it is missing."""
    uuid = scenario(tables)
    with inbox(tables, options):
        for number in range(30):
            send(options.kafka, frame(uuid, number))
            moment_s = now_s(tables)
            wait_until(lambda moment_s=moment_s: caught_up_past(tables, options.kafka, moment_s), "it has caught up")
            assert stored(tables, uuid) == list(range(number + 1))


def test_it_has_not_caught_up_while_it_does_not_run(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    send(options.kafka, frame(uuid, 0))
    assert not caught_up_past(tables, options.kafka, now_s(tables))


def test_it_catches_up_each_second_without_a_message(tables: Connection, options: InboxOptions) -> None:
    with inbox(tables, options):
        for _ in range(2):
            await_caught_up(tables, options.kafka)


def test_a_partition_that_was_never_read_is_not_caught_up_with(tables: Connection, options: InboxOptions) -> None:
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    topic_id = offsets.topic_id(admin.client(options.kafka), RESULTS)
    assert caught_up_s(tables, topic_id, range(16)) is not None
    assert caught_up_s(tables, topic_id, range(17)) is None
    assert caught_up_s(tables, "another id", range(16)) is None


def test_two_inboxes_store_everything_once(tables: Connection, options: InboxOptions) -> None:
    uuids = [scenario(tables) for _ in range(12)]
    with inbox(tables, options), running(run, options):
        for start in range(0, 200, 50):
            for uuid in uuids:
                send(options.kafka, *frames(uuid, range(start, start + 50)))
        await_caught_up(tables, options.kafka)
    assert [stored(tables, uuid) for uuid in uuids] == [list(range(200))] * 12


def test_partitions_that_were_lost_while_it_paused_are_read_when_they_come_back(
    tables: Connection, options: InboxOptions
) -> None:
    """The client remembers what it paused; it would never read them again."""
    with closing(reader_of(tables, options)) as first:
        wait_until(lambda: not first.poll(0.05) and len(first.positions) == PARTITIONS[RESULTS], "it has all")
        first.pause()
        with closing(reader_of(tables, options)) as second:
            wait_until(lambda: not second.poll(0.05) and read_and_lost(first) and bool(second.positions), "it has some")
            first.resume()
        wait_until(lambda: not first.poll(0.05) and len(first.positions) == PARTITIONS[RESULTS], "it has all again")
        uuids = [scenario(tables) for _ in range(100)]
        send(options.kafka, *(frame(uuid, 0) for uuid in uuids))
        wait_until(lambda: first.fill(0.1) and len(first.batch) == len(uuids), "it reads all")


def reader_of(tables: Connection, options: InboxOptions) -> Reader:
    """An inbox's reader, which begins at the table's positions."""
    topic_id = offsets.topic_id(admin.client(options.kafka), RESULTS)
    return Reader(
        options.kafka,
        options.group_protocol,
        lambda given: inbox_partitions.positions(tables, RESULTS, topic_id, given),
    )


def read_and_lost(reader: Reader) -> bool:
    """Lets it read on; whether it has lost partitions."""
    reader.poll(0.05)
    return len(reader.positions) < PARTITIONS[RESULTS]


def test_partitions_that_go_to_another_inbox_while_their_rows_are_copied_lose_nothing(
    tables: Connection, options: InboxOptions
) -> None:
    uuids = [scenario(tables) for _ in range(24)]
    for uuid in uuids:
        send(options.kafka, *frames(uuid, range(100)))
    topic_id = offsets.topic_id(admin.client(options.kafka), RESULTS)
    reader = reader_of(tables, options)
    wait_until(lambda: not reader.fill(0.1), "a whole batch is read")
    with connect(options.database_url, name="writer") as writer, ExitStack() as other:

        def lose_some() -> None:
            if len(reader.positions) < PARTITIONS[RESULTS]:
                return
            other.enter_context(running(run, options))
            wait_until(lambda: read_and_lost(reader), "another inbox has some partitions")

        part = reader.batch[:BATCH]
        storing.store(writer, topic_id, dict(reader.positions), part, lose_some)
        reader.stored(part)
        assert all(taken.offset >= reader.positions[taken.partition] for taken in reader.batch), (
            "of its own, not stored"
        )
        reader.close()
        await_caught_up(tables, options.kafka)
    assert [stored(tables, uuid) for uuid in uuids] == [list(range(100))] * 24
    assert [progress(tables, uuid).repeats for uuid in uuids] == [0] * 24


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.timeout(240)
def test_invariant_5_inboxes_that_are_killed_frozen_and_ended_while_frames_flow_store_everything_once(
    tables: Connection, options: InboxOptions
) -> None:
    uuids = [scenario(tables) for _ in range(12)]
    chance = random.Random(5)  # noqa: S311 - whom it strikes, and how
    with ExitStack() as inboxes:

        def start() -> subprocess.Popen[bytes]:
            return inboxes.enter_context(process("inbox", options.database_url, options.kafka))

        alive = [start() for _ in range(3)]
        for blow in range(12):
            victim = chance.choice(alive)
            for uuid in uuids:
                send(options.kafka, *frames(uuid, range(blow * 100, (blow + 1) * 100)))
            number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
            victim.send_signal(number)
            if number != signal.SIGSTOP:
                victim.wait(30)
                alive = [start() if one is victim else one for one in alive]
            until_stored(tables, uuids, (blow + 1) * 100)
            victim.send_signal(signal.SIGCONT)
        await_caught_up(tables, options.kafka)
        assert [one.poll() for one in alive] == [None] * 3
    assert [stored(tables, uuid) for uuid in uuids] == [list(range(1200))] * 12
    assert [progress(tables, uuid).repeats for uuid in uuids] == [0] * 12


@pytest.mark.fault
@pytest.mark.parametrize(
    ("locked", "amid"),
    [
        ("SELECT FROM scenario_progress WHERE scenario_uuid = %(uuid)s FOR UPDATE", "idle in transaction"),
        (
            "INSERT INTO scenario_results SELECT %(uuid)s, 0, 1, 0, 0, 1, 1, '2026-01-01T00:00:00Z', '[]'",
            "active",  # in the COPY, where the server looks at no timeout
        ),
    ],
    ids=["between statements", "amid a copy"],
)
def test_invariant_8_an_inbox_that_freezes_in_its_transaction_locks_out_nobody(
    tables: Connection, options: InboxOptions, locked: LiteralString, amid: str
) -> None:
    uuid = scenario(tables)
    seen = (Detection("x" * 190, 0.5, (0.0, 0.0, 1.0, 1.0)),) * 3500
    for number in range(12):  # more than the wire holds, so that the copy is not sent whole
        send(options.kafka, msgspec.structs.replace(frame(uuid, number), detections=seen))

    def state_of_the_frozen() -> str:
        [(state,)] = tables.execute(
            """
            SELECT max(CASE wait_event_type WHEN 'Lock' THEN 'locked' WHEN 'Client' THEN state END)
              FROM pg_stat_activity
             WHERE application_name = 'vidflow inbox' AND datname = current_database()
            """
        ).fetchall()
        return str(state)

    with process("inbox", options.database_url, options.kafka) as frozen:
        with connect(options.database_url, name="holder") as holder, holder.transaction(force_rollback=True):
            holder.execute(locked, {"uuid": uuid})
            wait_until(lambda: state_of_the_frozen() == "locked", "it waits in its transaction")
            frozen.send_signal(signal.SIGSTOP)
        wait_until(lambda: state_of_the_frozen() == amid, "the server waits for it")
        with inbox(tables, options):
            await_caught_up(tables, options.kafka)
            assert stored(tables, uuid) == list(range(12))
            frozen.send_signal(signal.SIGCONT)
            send(options.kafka, *frames(uuid, range(12, 20)))
            await_caught_up(tables, options.kafka)
        await_caught_up(tables, options.kafka)  # by the one that was frozen, alone
        assert frozen.poll() is None
    assert stored(tables, uuid) == list(range(20))
    assert progress(tables, uuid).repeats == 0


def until_stored(tables: Connection, uuids: list[str], count: int) -> None:
    wait_until(
        lambda: min(one.next_frame for one in results.read_progress(tables, uuids).values()) == count,
        f"{count} frames of each are stored",
        30,
    )


@pytest.mark.fault
@pytest.mark.parametrize("place", ["inbox.before_position", "inbox.before_commit", "inbox.after_commit"])
def test_an_inbox_killed_at_any_place_loses_nothing_and_stores_nothing_twice(
    tables: Connection, options: InboxOptions, place: str
) -> None:
    uuids = [scenario(tables) for _ in range(4)]
    for uuid in uuids:
        send(options.kafka, *frames(uuid, range(600)))
    with process("inbox", options.database_url, options.kafka, crash_at=f"{place}:2") as child:
        child.wait(30)
        assert child.returncode == -9, f"{place} was hit"
    assert 0 < sum(len(stored(tables, uuid)) for uuid in uuids) < 2400
    began_s = time.monotonic()
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
        say(f"from the death of an inbox to all stored by the next: {time.monotonic() - began_s:.1f} s")
    assert [stored(tables, uuid) for uuid in uuids] == [list(range(600))] * 4
    assert [progress(tables, uuid).repeats for uuid in uuids] == [0] * 4


def test_a_lost_connection_to_the_database_loses_nothing(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    with inbox(tables, options):
        for start in range(0, 500, 50):
            send(options.kafka, *frames(uuid, range(start, start + 50)))
            cut_off(tables, "vidflow inbox")
        await_caught_up(tables, options.kafka)
    assert stored(tables, uuid) == list(range(500))


@pytest.mark.fault
def test_invariant_8_a_database_that_is_away_pauses_it_and_it_goes_on_where_it_was(
    tmp_path: Path, kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Under load, and for longer than a session of its group lasts: it stays in the group, and nothing becomes a dead letter."""
    caplog.set_level(logging.INFO, "vidflow")
    remake_topics(kafka_settings)
    server = EmbeddedPostgres(tmp_path, say=print, stop=Stop())
    url = server.start().url
    try:
        migrate(url, print)
        options = InboxOptions(database_url=url, kafka=kafka_settings)
        with connect(url, name="test") as tables:
            uuids = [scenario(tables) for _ in range(4)]
            with inbox(tables, options) as stop, sending(kafka_settings, uuids) as sent:
                wait_until(lambda: stored(tables, uuids[0]) != [], "it stores")
                server.stop()
                behind = sent[0] + 1000
                until_s = time.monotonic() + GROUP_SESSION_S
                wait_until(lambda: sent[0] >= behind and time.monotonic() > until_s, "the workers sent on meanwhile")
                assert not stop.requested
                server = EmbeddedPostgres(tmp_path, say=print, stop=Stop())
                assert server.start().url == url
                with connect(url, name="test again") as tables_again:
                    wait_until(lambda: len(stored(tables_again, uuids[0])) * len(uuids) > behind, "it goes on")
                    members = group_members(kafka_settings)
        with connect(url, name="test at last") as tables, inbox(tables, options):
            await_caught_up(tables, kafka_settings)
            assert [stored(tables, uuid) for uuid in uuids] == [list(range(sent[0] // 4))] * 4
            assert {progress(tables, uuid).hole_epoch for uuid in uuids} == {None}
            assert dead_letters(tables) == []
    finally:
        server.stop()
    assert members == 1
    told = [record.getMessage() for record in caplog.records if record.getMessage() in {"away", "back"}]
    assert told == ["away", "back"]


GROUP_SESSION_S = 3.5


@contextmanager
def sending(settings: KafkaSettings, uuids: list[str]) -> Iterator[list[int]]:
    """Workers that send frame after frame of each scenario, about 1,000 a second, until the block ends; how many were sent."""
    sent, done = [0], threading.Event()
    producer = clients.producer(settings, client_id="workers-under-test")
    clients.know_topic(producer, RESULTS)

    def send_on() -> None:
        while not done.wait(0.02):
            number = sent[0] // len(uuids)
            for one in (frame(uuid, number + more) for uuid in uuids for more in range(5)):
                producer.produce(RESULTS, encode(one), one.scenario_uuid)
            producer.poll(0)
            sent[0] += 5 * len(uuids)

    workers = threading.Thread(target=send_on, name="workers")
    workers.start()
    try:
        yield sent
    finally:
        done.set()
        workers.join()
        assert producer.flush(10) == 0


def group_members(settings: KafkaSettings) -> int:
    client = admin.client(settings)
    return len(client.describe_consumer_groups([GROUP])[GROUP].result(10).members)


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(5)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
        remake_topics(options.kafka)
        send(options.kafka, frame(uuid, 5))
        wait_until(lambda: stored(tables, uuid) == list(range(6)), "the new topic is read")
        await_caught_up(tables, options.kafka)


def test_a_leader_that_raises_an_epoch_meanwhile_is_not_deadlocked(tables: Connection, options: InboxOptions) -> None:
    uuids = sorted(scenario(tables) for _ in range(8))
    done = threading.Event()

    def raise_epochs() -> None:
        with connect(options.database_url, name="leader under test") as leader:
            while not done.is_set():
                with leader.transaction():
                    results.lock_progress(leader, uuids[::-1])
                    leader.execute("UPDATE scenario_progress SET repeats = repeats")

    leader = threading.Thread(target=raise_epochs, name="leader")
    leader.start()
    try:
        with inbox(tables, options):
            for uuid in uuids:
                send(options.kafka, *frames(uuid, range(100)))
            await_caught_up(tables, options.kafka)
    finally:
        done.set()
        leader.join(10)
    assert [stored(tables, uuid) for uuid in uuids] == [list(range(100))] * 8


def test_a_detection_is_read_back_as_it_was_sent(tables: Connection, options: InboxOptions) -> None:
    uuid = scenario(tables)
    seen = Detection('größer \u2028 "quoted" \\', 0.1234, (1.25, 2.5, 300.75, 400.01))
    send(options.kafka, msgspec.structs.replace(frame(uuid, 0), detections=(seen,)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
    [(text,)] = tables.execute("SELECT detections::text FROM scenario_results").fetchall()
    assert msgspec.json.decode(text, type=tuple[Detection, ...]) == (seen,)


def test_a_mark_from_before_the_databases_clock_went_back_says_nothing_and_is_replaced(tables: Connection) -> None:
    inbox_partitions.positions(tables, RESULTS, "id", [0, 1])
    now = inbox_partitions.database_time(tables)
    inbox_partitions.note_caught_up(tables, RESULTS, "id", {0: 0}, {0: 0}, now)
    inbox_partitions.note_caught_up(tables, RESULTS, "id", {1: 0}, {1: 0}, now + datetime.timedelta(hours=1))
    assert caught_up_s(tables, "id", [0, 1]) is None
    inbox_partitions.note_caught_up(tables, RESULTS, "id", {1: 0}, {1: 0}, now)
    assert caught_up_s(tables, "id", [0, 1]) == pytest.approx(now.timestamp())


def test_an_offset_that_no_broker_knows_is_neither_a_position_nor_an_end(tables: Connection) -> None:
    inbox_partitions.positions(tables, RESULTS, "unknown", [0, 1])
    now = inbox_partitions.database_time(tables)
    assert inbox_partitions.move(tables, RESULTS, "unknown", {0: (0, -1001)}) == set()
    tables.execute("UPDATE inbox_partitions SET position = -1001 WHERE topic_id = 'unknown' AND partition = 1")
    ends = {0: -1001, 1: -1001}
    inbox_partitions.note_caught_up(tables, RESULTS, "unknown", {0: 0, 1: -1001}, ends, now)
    assert caught_up_s(tables, "unknown", [0]) is None
    assert caught_up_s(tables, "unknown", [1]) is None
    assert inbox_partitions.positions(tables, RESULTS, "unknown", [0, 1]) == {0: 0, 1: 0}


def test_a_position_that_an_earlier_version_took_from_a_partition_without_a_leader_is_mended(
    tables: Connection, options: InboxOptions
) -> None:
    uuid = scenario(tables)
    send(options.kafka, *frames(uuid, range(5)))
    with inbox(tables, options):
        await_caught_up(tables, options.kafka)
        tables.execute("UPDATE inbox_partitions SET position = -1001 WHERE position = 5")
        send(options.kafka, *frames(uuid, range(5, 8)))
        wait_until(lambda: stored(tables, uuid) == list(range(8)), "a running inbox reads on")
    tables.execute("UPDATE inbox_partitions SET position = -1001")
    send(options.kafka, *frames(uuid, range(8, 10)))
    with inbox(tables, options):
        wait_until(lambda: stored(tables, uuid) == list(range(10)), "a new inbox reads on")
        await_caught_up(tables, options.kafka)
    assert tables.execute("SELECT min(position), max(position) FROM inbox_partitions").fetchone() == (0, 10)


def test_a_batch_of_long_messages_grows_past_its_bytes_by_one_at_most(
    tables: Connection, options: InboxOptions
) -> None:
    uuid = scenario(tables)
    label = "x" * (LONG_BYTES - 1000)
    for number in range(40):
        send(options.kafka, frame(uuid, number, label=label))
    reader = reader_of(tables, options)
    sizes: list[int] = []
    read: list[int] = []

    def is_whole() -> bool:
        reader.fill(0.1)
        sizes.append(sum(taken.size_bytes for taken in reader.batch))
        reader.read_on()
        assert sum(taken.size_bytes for taken in reader.batch) <= 2 * BATCH_BYTES + LONG_BYTES
        read.extend(taken.offset for taken in reader.batch)
        reader.stored(list(reader.batch))
        return len(read) == 40

    try:
        wait_until(is_whole, "all are read")
    finally:
        reader.close()
    assert sorted(read) == list(range(40))
    assert max(sizes) > BATCH_BYTES - LONG_BYTES, "a batch was full"
    assert max(sizes) <= BATCH_BYTES + LONG_BYTES


def test_an_error_while_partitions_are_given_ends_the_inbox(options: InboxOptions) -> None:
    """The client would swallow it, and the inbox would go on without these partitions."""
    reader = Reader(options.kafka, options.group_protocol, lambda given: dict.fromkeys(given, -7))
    with pytest.raises(errors.ClientBroken), closing(reader):
        wait_until(lambda: bool(reader.fill(0.1)) and bool(reader.positions), "it is given partitions")
