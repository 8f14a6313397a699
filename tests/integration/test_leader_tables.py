"""What the leader reads in a tick: all that runners may have, and of what waits only the head of each pool's queue."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from tests.integration.query_plans import explain
from tests.integration.queues import fill_queue

from vidflow.domain.leader import ScenarioView
from vidflow.domain.scenario import RetryPolicy, State
from vidflow.infra.postgres import leader_tables
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.leader_tables import TablesSnapshot

LIMITS = RetryPolicy(max_attempts=5)


def insert_scenario(tables: Connection, state: str = "init_startup", ago_s: float = 0.0, **more: object) -> str:
    """A scenario as the tables have it some time after its birth."""
    shut = state in {"init_shutdown", "in_shutdown_processing", "inactive"}
    values = {
        "uuid": str(uuid.uuid4()), "state": state, "outcome": "stopped" if shut else None, "epoch": 0, "runner": None, "attempt": 0,
        "priority": 0, "pool": "default", "parameters": Jsonb({}), "ago_s": ago_s, "delay_s": 0.0, **more,
    }  # fmt: skip
    tables.execute(
        """
        INSERT INTO scenarios (scenario_uuid, source, model, fps, state, outcome, epoch, runner, attempt, priority, pool, parameters,
                               created_at, state_changed_at, due_at)
        SELECT %(uuid)s, 'http://a/b.mp4', 'motion', 'all', %(state)s, %(outcome)s, %(epoch)s, %(runner)s, %(attempt)s, %(priority)s,
               %(pool)s, %(parameters)s, at, at, at + make_interval(secs => %(delay_s)s)
          FROM (SELECT now() - make_interval(secs => %(ago_s)s) AS at) AS born
        """,
        values,
    )
    tables.execute("INSERT INTO scenario_progress (scenario_uuid) VALUES (%s)", (values["uuid"],))
    return str(values["uuid"])


def insert_deployed(tables: Connection, state: str = "active", **more: Any) -> str:
    return insert_scenario(tables, state, epoch=1, runner="r1", **more)


def read_engagement(tables: Connection, *ended: str) -> TablesSnapshot:
    return leader_tables.read_tables_snapshot(tables, ended, None, LIMITS)


def uuids(known: list[ScenarioView]) -> list[str]:
    return [one.scenario.scenario_uuid for one in known]


def head(tables: Connection, **room: int) -> list[str]:
    return uuids(leader_tables.read_queue_head(tables, room, LIMITS))


def test_what_runners_may_have_is_read_and_what_waits_or_is_finished_is_not(connection: Connection) -> None:
    wanted = {
        insert_deployed(connection, "in_startup_processing"),
        insert_deployed(connection),
        insert_scenario(connection, "init_shutdown"),
        insert_deployed(connection, "in_shutdown_processing"),
    }
    insert_scenario(connection)
    insert_scenario(connection, "inactive")
    assert set(uuids(list(read_engagement(connection).scenarios))) == wanted


def test_of_many_shutdowns_the_longest_waiting_are_read(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_tables, "SHUTDOWNS", 2)
    runs = insert_deployed(connection)
    oldest, second, _ = [insert_scenario(connection, "init_shutdown", ago_s=ago_s) for ago_s in (9, 6, 3)]
    assert set(uuids(list(read_engagement(connection).scenarios))) == {runs, oldest, second}


def test_a_shutdown_whose_runner_lists_it_as_ended_is_read_however_many_are_before_it(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unread, its entry would be taken for one that nobody wants, and forgotten: it tells that the scenario is drained."""
    monkeypatch.setattr(leader_tables, "SHUTDOWNS", 1)
    oldest = insert_scenario(connection, "init_shutdown", ago_s=9)
    ended = insert_deployed(connection, "in_shutdown_processing")
    waits = insert_scenario(connection)
    assert set(uuids(list(read_engagement(connection, ended, waits, str(uuid.uuid4())).scenarios))) == {oldest, ended}


def test_the_queue_is_read_from_its_head_by_priority_then_age(connection: Connection) -> None:
    late, old, urgent = (
        insert_scenario(connection, ago_s=1),
        insert_scenario(connection, ago_s=50),
        insert_scenario(connection, priority=7),
    )
    insert_scenario(connection, priority=-1, ago_s=99)
    assert head(connection, default=3) == [urgent, old, late]


def test_each_pool_has_its_own_queue(connection: Connection) -> None:
    for _ in range(3):
        insert_scenario(connection)
    gpu = [insert_scenario(connection, pool="gpu", ago_s=9), insert_scenario(connection, pool="gpu")]
    assert len(head(connection, default=1)) == 1
    assert head(connection, gpu=5) == gpu
    assert len(head(connection, gpu=1, default=2)) == 3
    assert head(connection) == head(connection, tpu=4) == []


def test_a_scenario_in_backoff_is_not_in_the_queue_until_its_backoff_is_over(connection: Connection) -> None:
    soon = insert_scenario(connection, attempt=1, ago_s=5, delay_s=20)
    over = insert_scenario(connection, attempt=1, ago_s=5, delay_s=4)
    assert head(connection, default=5) == []
    assert read_engagement(connection).backoff_over
    leader_tables.end_backoffs(connection)
    assert head(connection, default=5) == [over]
    assert not read_engagement(connection).backoff_over
    connection.execute("UPDATE scenarios SET due_at = now() WHERE scenario_uuid = %s", (soon,))
    leader_tables.end_backoffs(connection)
    assert set(head(connection, default=5)) == {over, soon}


def test_backoffs_end_in_bounded_numbers_those_that_are_over_for_longest_first(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_tables, "BACKOFFS", 2)
    over = [insert_scenario(connection, attempt=1, ago_s=ago_s, delay_s=1) for ago_s in (9, 8, 7)]
    leader_tables.end_backoffs(connection)
    assert set(head(connection, default=5)) == set(over[:2])
    assert read_engagement(connection).backoff_over


def test_a_backoff_that_was_set_before_the_databases_clock_went_back_is_over(connection: Connection) -> None:
    insert_scenario(connection, attempt=1, delay_s=3600)
    assert read_engagement(connection).backoff_over
    leader_tables.end_backoffs(connection)
    assert len(head(connection, default=5)) == 1


def test_whether_a_poisonous_frame_is_skipped_is_read_where_the_next_loss_would_be_the_last(
    connection: Connection,
) -> None:
    skips = Jsonb({"on_poison": "skip"})
    for attempt in (3, 4):
        insert_deployed(connection, attempt=attempt, parameters=skips)
    insert_deployed(connection, attempt=4)
    assert sorted(
        (one.scenario.attempt, one.scenario.skips_poison) for one in read_engagement(connection).scenarios
    ) == [
        (3, False),
        (4, False),
        (4, True),
    ]


def test_the_pool_comes_with_the_scenario(connection: Connection) -> None:
    insert_deployed(connection, pool="gpu")
    [known] = read_engagement(connection).scenarios
    assert (known.scenario.pool, known.scenario.state) == ("gpu", State.ACTIVE)


@pytest.mark.parametrize("statement", ["engaged", "queue", "over"])
def test_a_tick_reads_no_more_where_ten_thousand_more_wait(connection: Connection, statement: str) -> None:
    """Counted in pages, which no load on the machine changes."""
    for _ in range(5):
        insert_deployed(connection)
    fill_queue(connection, 100)
    few = pages(connection, statement)
    fill_queue(connection, 10_000, parameters='{"labels": ["person"]}')
    connection.execute("UPDATE scenarios SET due_at = now() + interval '50 s' WHERE priority = -100 AND random() < 0.5")
    connection.execute("VACUUM (ANALYZE) scenarios")
    assert pages(connection, statement) <= few + SLACK_PAGES


SLACK_PAGES = 20
"""An index grows by a level, and what was updated leaves dead entries."""


def pages(tables: Connection, statement: str) -> int:
    statements: dict[str, tuple[str, dict[str, Any]]] = {
        "engaged": (leader_tables.SCENARIOS_ON_RUNNERS, {"shutdowns": 1000, "ended": [], "last_attempt": 4}),
        "queue": (leader_tables.HEAD_OF_QUEUE, {"pools": ["default"], "counts": [4], "last_attempt": 4}),
        "over": (leader_tables.END_BACKOFFS, {"backoffs": 500}),
    }
    query, given = statements[statement]
    tables.execute("ANALYZE scenarios")
    [explained] = explain(tables, lambda tx: tx.execute(query, given))
    return explained.pages
