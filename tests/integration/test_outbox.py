"""Statements on the outbox."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tests.integration.delivery import outbox_row

from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect


def ids(rows: list[outbox.PendingMessage]) -> list[int]:
    return [row.id for row in rows]


def test_rows_added_together_keep_their_order(connection: Connection) -> None:
    rows = [outbox_row(f"key-{number % 7}", str(number).encode()) for number in range(500)]
    outbox.add_messages(connection, rows)
    pending = outbox.read_pending_messages(connection, 1000)
    assert [row.payload for row in pending] == [row.payload for row in rows]
    assert all(first.id < second.id for first, second in pairwise(pending))


def test_a_row_keeps_all_fields_of_its_message(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a", b"\x00\xff", kind="stop", epoch=7, runner="r1")])
    [row] = outbox.read_pending_messages(connection, 10)
    assert (row.key, row.payload, row.kind, row.epoch, row.runner) == ("a", b"\x00\xff", "stop", 7, "r1")


def test_a_command_with_a_pending_copy_is_not_added_again(connection: Connection) -> None:
    assert outbox.add_commands(connection, [outbox_row("a"), outbox_row("b")]) == 2
    assert outbox.add_commands(connection, [outbox_row("a"), outbox_row("c")]) == 1
    assert [row.key for row in outbox.read_pending_messages(connection, 10)] == ["a", "b", "c"]


def test_a_command_is_added_again_once_its_copy_is_published(connection: Connection) -> None:
    outbox.add_commands(connection, [outbox_row("a")])
    outbox.remove_published(connection, ids(outbox.read_pending_messages(connection, 10)))
    assert outbox.add_commands(connection, [outbox_row("a")]) == 1


@pytest.mark.parametrize("other", [{"runner": "r2"}, {"epoch": 2}, {"kind": "stop"}])
def test_a_different_command_is_not_a_copy(connection: Connection, other: dict[str, Any]) -> None:
    outbox.add_commands(connection, [outbox_row("a", runner="r1")])
    assert outbox.add_commands(connection, [outbox_row("a", **{"runner": "r1", **other})]) == 1


def test_a_window_leaves_out_rows_that_would_overtake_an_older_row_of_their_key(connection: Connection) -> None:
    others = [outbox_row(f"other-{number}") for number in range(10)]
    outbox.add_messages(connection, [outbox_row("late", b"1"), *others, outbox_row("late", b"2")])
    assert [row.key for row in outbox.read_pending_messages(connection, 100, window=5)] == [
        "other-6",
        "other-7",
        "other-8",
        "other-9",
    ]
    assert [row.payload for row in outbox.read_pending_messages(connection, 100) if row.key == "late"] == [b"1", b"2"]


def test_a_row_that_becomes_visible_late_is_read(connection: Connection, database_url: str) -> None:
    with connect(database_url, name="late") as late, late.transaction():
        outbox.add_messages(late, [outbox_row("late")])
        outbox.add_messages(connection, [outbox_row("early")] * 20)
        outbox.remove_published(connection, ids(outbox.read_pending_messages(connection, 100)))
    assert [row.key for row in outbox.read_pending_messages(connection, 100)] == ["late"]


def test_a_limited_read_returns_the_oldest_rows(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row(f"key-{number}", str(number).encode()) for number in range(100)])
    assert [int(row.payload) for row in outbox.read_pending_messages(connection, 10)] == list(range(10))


def test_topics_can_be_excluded(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a", topic="gone"), outbox_row("b")])
    assert [row.key for row in outbox.read_pending_messages(connection, 10, excluded_topics=["gone"])] == ["b"]


def test_a_row_is_removed_once(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a"), outbox_row("b")])
    pending = ids(outbox.read_pending_messages(connection, 10))
    assert outbox.remove_published(connection, pending[:1]) == 1
    assert outbox.remove_published(connection, pending) == 1
    assert outbox.read_pending_messages(connection, 10) == []


def test_a_row_that_was_set_aside_is_not_pending_and_is_counted(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a"), outbox_row("a", b"2")])
    outbox.set_aside(connection, outbox.read_pending_messages(connection, 10)[0].id, "too large")
    assert [row.payload for row in outbox.read_pending_messages(connection, 10)] == [b"2"]
    lag = outbox.read_lag(connection)
    assert (lag.waiting, lag.set_aside) == (1, 1)


def test_a_read_of_pending_rows_does_not_scan_rows_that_were_set_aside(connection: Connection) -> None:
    """The frequent statement uses only its partial index, whatever else is in the table."""
    outbox.add_messages(connection, [outbox_row(f"key-{number % 50}") for number in range(20_000)])
    connection.execute("UPDATE outbox SET error = 'too large'")
    connection.execute("VACUUM ANALYZE outbox")
    outbox.add_messages(connection, [outbox_row("waits")])
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_reset_single_table_counters(oid) FROM pg_class WHERE relname ~ '^outbox'")
    assert [row.key for row in outbox.read_pending_messages(connection, 1000)] == ["waits"]
    assert [row.key for row in outbox.read_pending_messages(connection, 1000, window=100)] == ["waits"]
    connection.execute("SELECT pg_stat_force_next_flush()")
    [(scans,)] = connection.execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'outbox'").fetchall()
    [(read,)] = connection.execute(
        "SELECT sum(idx_tup_read)::int FROM pg_stat_user_indexes WHERE relname = 'outbox'"
    ).fetchall()
    assert scans == 0
    assert read < 10


def test_rows_that_were_set_aside_can_be_listed_retried_and_dropped(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row("a", b"large"), outbox_row("a", b"2"), outbox_row("b", b"3")])
    large, _, other = ids(outbox.read_pending_messages(connection, 10))
    for row_id in (large, other):
        outbox.set_aside(connection, row_id, "too large")
    assert [(row.id, row.size_bytes, row.error) for row in outbox.list_set_aside(connection, 10)] == [
        (large, 5, "too large"),
        (other, 1, "too large"),
    ]
    assert outbox.retry_set_aside(connection, [large, 10_000]) == 1
    assert [row.payload for row in outbox.read_pending_messages(connection, 10)] == [b"large", b"2"]
    assert outbox.drop_set_aside(connection, [large, other]) == 1  # a pending one is not dropped
    assert outbox.list_set_aside(connection, 10) == []


def test_a_read_ends_at_its_byte_limit_and_returns_at_least_one_message(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row(f"key-{number}", b"x" * 1000) for number in range(10)])
    assert [row.key for row in outbox.read_pending_messages(connection, 100, max_bytes=2500)] == [
        "key-0",
        "key-1",
        "key-2",
    ]
    assert [row.key for row in outbox.read_pending_messages(connection, 100, max_bytes=1)] == ["key-0"]


def test_messages_in_flight_are_not_read_and_do_not_count_towards_the_byte_limit(connection: Connection) -> None:
    outbox.add_messages(connection, [outbox_row(f"key-{number}", b"x" * 1000) for number in range(30)])
    in_flight = ids(outbox.read_pending_messages(connection, 20))
    assert [
        row.key for row in outbox.read_pending_messages(connection, 100, max_bytes=1500, in_flight_ids=in_flight)
    ] == [
        "key-20",
        "key-21",
    ]
