"""Rows that the leader reads in a tick: scenarios that may be on runners, and the head of each pool's queue."""

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


def insert_scenario(connection: Connection, state: str = "init_startup", ago_s: float = 0.0, **columns: object) -> str:
    """Insert a scenario that entered `state` some time ago. `delay_s` is the length of its backoff."""
    has_outcome = state in {"init_shutdown", "in_shutdown_processing", "inactive"}
    values = {
        "uuid": str(uuid.uuid4()), "state": state, "outcome": "stopped" if has_outcome else None, "epoch": 0, "runner": None, "attempt": 0,
        "priority": 0, "pool": "default", "parameters": Jsonb({}), "ago_s": ago_s, "delay_s": 0.0, **columns,
    }  # fmt: skip
    connection.execute(
        """
        INSERT INTO scenarios (scenario_uuid, source, model, fps, state, outcome, epoch, runner, attempt, priority, pool, parameters,
                               created_at, state_changed_at, due_at)
        SELECT %(uuid)s, 'http://a/b.mp4', 'motion', 'all', %(state)s, %(outcome)s, %(epoch)s, %(runner)s, %(attempt)s, %(priority)s,
               %(pool)s, %(parameters)s, at, at, at + make_interval(secs => %(delay_s)s)
          FROM (SELECT now() - make_interval(secs => %(ago_s)s) AS at) AS created
        """,
        values,
    )
    connection.execute("INSERT INTO scenario_progress (scenario_uuid) VALUES (%s)", (values["uuid"],))
    return str(values["uuid"])


def insert_deployed(connection: Connection, state: str = "active", **columns: Any) -> str:
    return insert_scenario(connection, state, epoch=1, runner="r1", **columns)


def read_snapshot(connection: Connection, *ended: str) -> TablesSnapshot:
    return leader_tables.read_tables_snapshot(connection, ended, None, LIMITS)


def uuids(views: list[ScenarioView]) -> list[str]:
    return [view.scenario.scenario_uuid for view in views]


def head(connection: Connection, **slots: int) -> list[str]:
    return uuids(leader_tables.read_queue_head(connection, slots, LIMITS))


def test_only_scenarios_that_may_be_on_runners_are_read(connection: Connection) -> None:
    expected = {
        insert_deployed(connection, "in_startup_processing"),
        insert_deployed(connection),
        insert_scenario(connection, "init_shutdown"),
        insert_deployed(connection, "in_shutdown_processing"),
    }
    insert_scenario(connection)
    insert_scenario(connection, "inactive")
    assert set(uuids(list(read_snapshot(connection).scenarios))) == expected


def test_of_many_shutdowns_the_oldest_are_read(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_tables, "SHUTDOWNS", 2)
    running = insert_deployed(connection)
    oldest, second, _ = [insert_scenario(connection, "init_shutdown", ago_s=ago_s) for ago_s in (9, 6, 3)]
    assert set(uuids(list(read_snapshot(connection).scenarios))) == {running, oldest, second}


def test_a_shutdown_that_a_runner_lists_as_ended_is_always_read(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the leader would treat the entry, which reports that the scenario is drained, as unknown."""
    monkeypatch.setattr(leader_tables, "SHUTDOWNS", 1)
    oldest = insert_scenario(connection, "init_shutdown", ago_s=9)
    ended = insert_deployed(connection, "in_shutdown_processing")
    waiting = insert_scenario(connection)
    assert set(uuids(list(read_snapshot(connection, ended, waiting, str(uuid.uuid4())).scenarios))) == {oldest, ended}


def test_the_queue_is_ordered_by_priority_then_age(connection: Connection) -> None:
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
    assert read_snapshot(connection).backoff_over
    leader_tables.end_backoffs(connection)
    assert head(connection, default=5) == [over]
    assert not read_snapshot(connection).backoff_over
    connection.execute("UPDATE scenarios SET due_at = now() WHERE scenario_uuid = %s", (soon,))
    leader_tables.end_backoffs(connection)
    assert set(head(connection, default=5)) == {over, soon}


def test_a_bounded_number_of_backoffs_ends_per_call_oldest_first(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_tables, "BACKOFFS", 2)
    over = [insert_scenario(connection, attempt=1, ago_s=ago_s, delay_s=1) for ago_s in (9, 8, 7)]
    leader_tables.end_backoffs(connection)
    assert set(head(connection, default=5)) == set(over[:2])
    assert read_snapshot(connection).backoff_over


def test_a_backoff_from_before_the_database_clock_stepped_back_is_over(connection: Connection) -> None:
    insert_scenario(connection, attempt=1, delay_s=3600)
    assert read_snapshot(connection).backoff_over
    leader_tables.end_backoffs(connection)
    assert len(head(connection, default=5)) == 1


def test_on_poison_is_read_only_before_the_last_attempt(
    connection: Connection,
) -> None:
    parameters = Jsonb({"on_poison": "skip"})
    for attempt in (3, 4):
        insert_deployed(connection, attempt=attempt, parameters=parameters)
    insert_deployed(connection, attempt=4)
    assert sorted(
        (view.scenario.attempt, view.scenario.skips_poison) for view in read_snapshot(connection).scenarios
    ) == [
        (3, False),
        (4, False),
        (4, True),
    ]


def test_the_pool_of_a_scenario_is_read(connection: Connection) -> None:
    insert_deployed(connection, pool="gpu")
    [view] = read_snapshot(connection).scenarios
    assert (view.scenario.pool, view.scenario.state) == ("gpu", State.ACTIVE)


@pytest.mark.parametrize("statement", ["on_runners", "queue", "backoffs"])
def test_the_cost_of_a_tick_does_not_grow_with_the_queue(connection: Connection, statement: str) -> None:
    """Counted in pages, which do not depend on the load of the machine."""
    for _ in range(5):
        insert_deployed(connection)
    fill_queue(connection, 100)
    pages_before = pages(connection, statement)
    fill_queue(connection, 10_000, parameters='{"labels": ["person"]}')
    connection.execute("UPDATE scenarios SET due_at = now() + interval '50 s' WHERE priority = -100 AND random() < 0.5")
    connection.execute("VACUUM (ANALYZE) scenarios")
    assert pages(connection, statement) <= pages_before + SLACK_PAGES


SLACK_PAGES = 20
"""For an additional index level, and for dead entries of updated rows."""


def pages(connection: Connection, statement: str) -> int:
    statements: dict[str, tuple[str, dict[str, Any]]] = {
        "on_runners": (leader_tables.SCENARIOS_ON_RUNNERS, {"shutdowns": 1000, "ended": [], "last_attempt": 4}),
        "queue": (leader_tables.HEAD_OF_QUEUE, {"pools": ["default"], "counts": [4], "last_attempt": 4}),
        "backoffs": (leader_tables.END_BACKOFFS, {"backoffs": 500}),
    }
    query, parameters = statements[statement]
    connection.execute("ANALYZE scenarios")
    [plan] = explain(connection, lambda tx: tx.execute(query, parameters))
    return plan.pages
