from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tests.integration.delivery import row

from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import Connection, connect


def ids(rows: list[outbox.Pending]) -> list[int]:
    return [one.id for one in rows]


def test_rows_written_together_wait_in_the_order_in_which_they_were_given(tables: Connection) -> None:
    given = [row(f"key-{number % 7}", str(number).encode()) for number in range(500)]
    outbox.add(tables, given)
    waiting = outbox.pending(tables, 1000)
    assert [one.payload for one in waiting] == [one.payload for one in given]
    assert all(before.id < after.id for before, after in pairwise(waiting))


def test_a_row_keeps_all_that_its_message_needs(tables: Connection) -> None:
    outbox.add(tables, [row("a", b"\x00\xff", kind="stop", epoch=7, runner="r1")])
    [one] = outbox.pending(tables, 10)
    assert (one.key, one.payload, one.kind, one.epoch, one.runner) == ("a", b"\x00\xff", "stop", 7, "r1")


def test_a_command_of_which_a_copy_waits_is_not_written_again(tables: Connection) -> None:
    assert outbox.add_commands(tables, [row("a"), row("b")]) == 2
    assert outbox.add_commands(tables, [row("a"), row("c")]) == 1
    assert [one.key for one in outbox.pending(tables, 10)] == ["a", "b", "c"]


def test_a_command_is_written_again_once_its_copy_is_published(tables: Connection) -> None:
    outbox.add_commands(tables, [row("a")])
    outbox.remove_published(tables, ids(outbox.pending(tables, 10)))
    assert outbox.add_commands(tables, [row("a")]) == 1


@pytest.mark.parametrize("other", [{"runner": "r2"}, {"epoch": 2}, {"kind": "stop"}])
def test_a_command_that_differs_is_no_copy(tables: Connection, other: dict[str, Any]) -> None:
    outbox.add_commands(tables, [row("a", runner="r1")])
    assert outbox.add_commands(tables, [row("a", **{"runner": "r1", **other})]) == 1


def test_a_look_at_the_last_ids_leaves_out_what_would_overtake_an_older_row_of_its_key(tables: Connection) -> None:
    others = [row(f"other-{number}") for number in range(10)]
    outbox.add(tables, [row("late", b"1"), *others, row("late", b"2")])
    assert [one.key for one in outbox.pending(tables, 100, window=5)] == ["other-6", "other-7", "other-8", "other-9"]
    assert [one.payload for one in outbox.pending(tables, 100) if one.key == "late"] == [b"1", b"2"]


def test_a_row_that_becomes_visible_late_is_found(tables: Connection, database_url: str) -> None:
    with connect(database_url, name="late") as late, late.transaction():
        outbox.add(late, [row("late")])
        outbox.add(tables, [row("early")] * 20)
        outbox.remove_published(tables, ids(outbox.pending(tables, 100)))
    assert [one.key for one in outbox.pending(tables, 100)] == ["late"]


def test_a_look_gives_the_first_of_many(tables: Connection) -> None:
    outbox.add(tables, [row(f"key-{number}", str(number).encode()) for number in range(100)])
    assert [int(one.payload) for one in outbox.pending(tables, 10)] == list(range(10))


def test_topics_can_be_passed_over(tables: Connection) -> None:
    outbox.add(tables, [row("a", topic="gone"), row("b")])
    assert [one.key for one in outbox.pending(tables, 10, without=["gone"])] == ["b"]


def test_a_row_is_removed_once(tables: Connection) -> None:
    outbox.add(tables, [row("a"), row("b")])
    waiting = ids(outbox.pending(tables, 10))
    assert outbox.remove_published(tables, waiting[:1]) == 1
    assert outbox.remove_published(tables, waiting) == 1
    assert outbox.pending(tables, 10) == []


def test_a_row_set_aside_waits_no_more_and_is_counted(tables: Connection) -> None:
    outbox.add(tables, [row("a"), row("a", b"2")])
    outbox.set_aside(tables, outbox.pending(tables, 10)[0].id, "too large")
    assert [one.payload for one in outbox.pending(tables, 10)] == [b"2"]
    lag = outbox.lag(tables)
    assert (lag.waiting, lag.set_aside) == (1, 1)


def test_what_an_earlier_version_has_marked_is_not_pending_and_goes(tables: Connection) -> None:
    outbox.add(tables, [row("marked"), row("waits"), row("marked too")])
    tables.execute("UPDATE outbox SET published_at = now() WHERE key <> 'waits'")
    assert [one.key for one in outbox.pending(tables, 10)] == ["waits"]
    assert outbox.remove_marked(tables, 2) == 1
    assert outbox.remove_marked(tables, 2) == 1
    assert tables.execute("SELECT key FROM outbox ORDER BY id").fetchall() == [("waits",)]


def test_a_look_reads_no_marked_rows(tables: Connection) -> None:
    """The hot statement stays on its partial index, however much lies beside it."""
    outbox.add(tables, [row(f"key-{number % 50}") for number in range(20_000)])
    tables.execute("UPDATE outbox SET published_at = now()")
    tables.execute("VACUUM ANALYZE outbox")
    outbox.add(tables, [row("waits")])
    tables.execute("SELECT pg_stat_force_next_flush()")
    tables.execute("SELECT pg_stat_reset_single_table_counters(oid) FROM pg_class WHERE relname ~ '^outbox'")
    assert [one.key for one in outbox.pending(tables, 1000)] == ["waits"]
    assert [one.key for one in outbox.pending(tables, 1000, window=100)] == ["waits"]
    tables.execute("SELECT pg_stat_force_next_flush()")
    [(scans,)] = tables.execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'outbox'").fetchall()
    [(read,)] = tables.execute(
        "SELECT sum(idx_tup_read)::int FROM pg_stat_user_indexes WHERE relname = 'outbox'"
    ).fetchall()
    assert scans == 0
    assert read < 10


def test_what_is_set_aside_is_shown_tried_again_or_dropped(tables: Connection) -> None:
    outbox.add(tables, [row("a", b"large"), row("a", b"2"), row("b", b"3")])
    large, _, other = ids(outbox.pending(tables, 10))
    for one in (large, other):
        outbox.set_aside(tables, one, "too large")
    assert [(one.id, one.size_bytes, one.error) for one in outbox.all_set_aside(tables, 10)] == [
        (large, 5, "too large"),
        (other, 1, "too large"),
    ]
    assert outbox.take_back(tables, [large, 10_000]) == 1
    assert [one.payload for one in outbox.pending(tables, 10)] == [b"large", b"2"]
    assert outbox.drop(tables, [large, other]) == 1  # one that waits is not dropped
    assert outbox.all_set_aside(tables, 10) == []


def test_a_look_ends_at_its_bytes_and_takes_one_message_at_least(tables: Connection) -> None:
    outbox.add(tables, [row(f"key-{number}", b"x" * 1000) for number in range(10)])
    assert [one.key for one in outbox.pending(tables, 100, max_bytes=2500)] == ["key-0", "key-1", "key-2"]
    assert [one.key for one in outbox.pending(tables, 100, max_bytes=1)] == ["key-0"]


def test_what_is_on_its_way_is_not_read_again_and_takes_no_bytes_of_the_look(tables: Connection) -> None:
    outbox.add(tables, [row(f"key-{number}", b"x" * 1000) for number in range(30)])
    on_way = ids(outbox.pending(tables, 20))
    assert [one.key for one in outbox.pending(tables, 100, max_bytes=1500, on_way=on_way)] == ["key-20", "key-21"]
