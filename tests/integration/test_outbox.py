from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tests.integration.delivery import outbox_row

from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect


def ids(rows: list[outbox.PendingMessage]) -> list[int]:
    return [one.id for one in rows]


def test_rows_written_together_wait_in_the_order_in_which_they_were_given(connection: Connection) -> None:
    given = [outbox_row(f"key-{number % 7}", str(number).encode()) for number in range(500)]
    outbox.add_messages(connection, given)
    waiting = outbox.read_pending_messages(connection, 1000)
    assert [one.payload for one in waiting] == [one.payload for one in given]
    assert all(before.id < after.id for before, after in pairwise(waiting))


def test_a_row_keeps_all_that_its_message_needs(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a", b"\x00\xff", kind="stop", epoch=7, runner="r1")])
    [one] = outbox.read_pending_messages(connection, 10)
    assert (one.key, one.payload, one.kind, one.epoch, one.runner) == ("a", b"\x00\xff", "stop", 7, "r1")


def test_a_command_of_which_a_copy_waits_is_not_written_again(connection: Connection) -> None:
    assert outbox.add_commands(connection, [outbox_row("a"), outbox_row("b")]) == 2
    assert outbox.add_commands(connection, [outbox_row("a"), outbox_row("c")]) == 1
    assert [one.key for one in outbox.read_pending_messages(connection, 10)] == ["a", "b", "c"]


def test_a_command_is_written_again_once_its_copy_is_published(connection: Connection) -> None:
    outbox.add_commands(connection, [outbox_row("a")])
    outbox.remove_published(connection, ids(outbox.read_pending_messages(connection, 10)))
    assert outbox.add_commands(connection, [outbox_row("a")]) == 1


@pytest.mark.parametrize("other", [{"runner": "r2"}, {"epoch": 2}, {"kind": "stop"}])
def test_a_command_that_differs_is_no_copy(connection: Connection, other: dict[str, Any]) -> None:
    outbox.add_commands(connection, [outbox_row("a", runner="r1")])
    assert outbox.add_commands(connection, [outbox_row("a", **{"runner": "r1", **other})]) == 1


def test_a_look_at_the_last_ids_leaves_out_what_would_overtake_an_older_row_of_its_key(connection: Connection) -> None:
    others = [outbox_row(f"other-{number}") for number in range(10)]
    outbox.add_messages(connection, [outbox_row("late", b"1"), *others, outbox_row("late", b"2")])
    assert [one.key for one in outbox.read_pending_messages(connection, 100, window=5)] == [
        "other-6",
        "other-7",
        "other-8",
        "other-9",
    ]
    assert [one.payload for one in outbox.read_pending_messages(connection, 100) if one.key == "late"] == [b"1", b"2"]


def test_a_row_that_becomes_visible_late_is_found(connection: Connection, database_url: str) -> None:
    with connect(database_url, name="late") as late, late.transaction():
        outbox.add_messages(late, [outbox_row("late")])
        outbox.add_messages(connection, [outbox_row("early")] * 20)
        outbox.remove_published(connection, ids(outbox.read_pending_messages(connection, 100)))
    assert [one.key for one in outbox.read_pending_messages(connection, 100)] == ["late"]


def test_a_look_gives_the_first_of_many(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row(f"key-{number}", str(number).encode()) for number in range(100)])
    assert [int(one.payload) for one in outbox.read_pending_messages(connection, 10)] == list(range(10))


def test_topics_can_be_passed_over(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a", topic="gone"), outbox_row("b")])
    assert [one.key for one in outbox.read_pending_messages(connection, 10, excluded_topics=["gone"])] == ["b"]


def test_a_row_is_removed_once(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a"), outbox_row("b")])
    waiting = ids(outbox.read_pending_messages(connection, 10))
    assert outbox.remove_published(connection, waiting[:1]) == 1
    assert outbox.remove_published(connection, waiting) == 1
    assert outbox.read_pending_messages(connection, 10) == []


def test_a_row_set_aside_waits_no_more_and_is_counted(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a"), outbox_row("a", b"2")])
    outbox.set_aside(connection, outbox.read_pending_messages(connection, 10)[0].id, "too large")
    assert [one.payload for one in outbox.read_pending_messages(connection, 10)] == [b"2"]
    lag = outbox.read_lag(connection)
    assert (lag.waiting, lag.set_aside) == (1, 1)


def test_what_an_earlier_version_has_marked_is_not_pending_and_goes(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("marked"), outbox_row("waits"), outbox_row("marked too")])
    connection.execute("UPDATE outbox SET published_at = now() WHERE key <> 'waits'")
    assert [one.key for one in outbox.read_pending_messages(connection, 10)] == ["waits"]
    assert outbox.remove_legacy_published(connection, 2) == 1
    assert outbox.remove_legacy_published(connection, 2) == 1
    assert connection.execute("SELECT key FROM outbox ORDER BY id").fetchall() == [("waits",)]


def test_a_look_reads_no_marked_rows(connection: Connection) -> None:
    """The hot statement stays on its partial index, however much lies beside it."""
    outbox.add_messages(connection, [outbox_row(f"key-{number % 50}") for number in range(20_000)])
    connection.execute("UPDATE outbox SET published_at = now()")
    connection.execute("VACUUM ANALYZE outbox")
    outbox.add_messages(connection, [outbox_row("waits")])
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_reset_single_table_counters(oid) FROM pg_class WHERE relname ~ '^outbox'")
    assert [one.key for one in outbox.read_pending_messages(connection, 1000)] == ["waits"]
    assert [one.key for one in outbox.read_pending_messages(connection, 1000, window=100)] == ["waits"]
    connection.execute("SELECT pg_stat_force_next_flush()")
    [(scans,)] = connection.execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'outbox'").fetchall()
    [(read,)] = connection.execute(
        "SELECT sum(idx_tup_read)::int FROM pg_stat_user_indexes WHERE relname = 'outbox'"
    ).fetchall()
    assert scans == 0
    assert read < 10


def test_what_is_set_aside_is_shown_tried_again_or_dropped(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a", b"large"), outbox_row("a", b"2"), outbox_row("b", b"3")])
    large, _, other = ids(outbox.read_pending_messages(connection, 10))
    for one in (large, other):
        outbox.set_aside(connection, one, "too large")
    assert [(one.id, one.size_bytes, one.error) for one in outbox.list_set_aside(connection, 10)] == [
        (large, 5, "too large"),
        (other, 1, "too large"),
    ]
    assert outbox.retry_set_aside(connection, [large, 10_000]) == 1
    assert [one.payload for one in outbox.read_pending_messages(connection, 10)] == [b"large", b"2"]
    assert outbox.drop_set_aside(connection, [large, other]) == 1  # one that waits is not dropped
    assert outbox.list_set_aside(connection, 10) == []


def test_a_look_ends_at_its_bytes_and_takes_one_message_at_least(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row(f"key-{number}", b"x" * 1000) for number in range(10)])
    assert [one.key for one in outbox.read_pending_messages(connection, 100, max_bytes=2500)] == [
        "key-0",
        "key-1",
        "key-2",
    ]
    assert [one.key for one in outbox.read_pending_messages(connection, 100, max_bytes=1)] == ["key-0"]


def test_what_is_on_its_way_is_not_read_again_and_takes_no_bytes_of_the_look(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row(f"key-{number}", b"x" * 1000) for number in range(30)])
    on_way = ids(outbox.read_pending_messages(connection, 20))
    assert [one.key for one in outbox.read_pending_messages(connection, 100, max_bytes=1500, in_flight_ids=on_way)] == [
        "key-20",
        "key-21",
    ]
