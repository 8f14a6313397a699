"""What the leader reads in a tick: all that runners may have, and of what waits only the head of each pool's queue."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from tests.integration.explained import explain
from tests.integration.queues import fill_queue

from vidflow.domain.leader import Known
from vidflow.domain.scenario import Limits, State
from vidflow.infra.postgres import leader_tables
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.leader_tables import Engagement

LIMITS = Limits(attempts=5)


def put(tables: Connection, state: str = "init_startup", ago_s: float = 0.0, **more: object) -> str:
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


def deployed(tables: Connection, state: str = "active", **more: Any) -> str:
    return put(tables, state, epoch=1, runner="r1", **more)


def engaged(tables: Connection, *ended: str) -> Engagement:
    return leader_tables.engagement(tables, ended, None, LIMITS)


def uuids(known: list[Known]) -> list[str]:
    return [one.scenario.scenario_uuid for one in known]


def head(tables: Connection, **room: int) -> list[str]:
    return uuids(leader_tables.head_of_queue(tables, room, LIMITS))


def test_what_runners_may_have_is_read_and_what_waits_or_is_finished_is_not(tables: Connection) -> None:
    wanted = {
        deployed(tables, "in_startup_processing"),
        deployed(tables),
        put(tables, "init_shutdown"),
        deployed(tables, "in_shutdown_processing"),
    }
    put(tables)
    put(tables, "inactive")
    assert set(uuids(list(engaged(tables).known))) == wanted


def test_of_many_shutdowns_the_longest_waiting_are_read(tables: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_tables, "SHUTDOWNS", 2)
    runs = deployed(tables)
    oldest, second, _ = [put(tables, "init_shutdown", ago_s=ago_s) for ago_s in (9, 6, 3)]
    assert set(uuids(list(engaged(tables).known))) == {runs, oldest, second}


def test_a_shutdown_whose_runner_lists_it_as_ended_is_read_however_many_are_before_it(
    tables: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unread, its entry would be taken for one that nobody wants, and forgotten: it tells that the scenario is drained."""
    monkeypatch.setattr(leader_tables, "SHUTDOWNS", 1)
    oldest = put(tables, "init_shutdown", ago_s=9)
    ended = deployed(tables, "in_shutdown_processing")
    waits = put(tables)
    assert set(uuids(list(engaged(tables, ended, waits, str(uuid.uuid4())).known))) == {oldest, ended}


def test_the_queue_is_read_from_its_head_by_priority_then_age(tables: Connection) -> None:
    late, old, urgent = put(tables, ago_s=1), put(tables, ago_s=50), put(tables, priority=7)
    put(tables, priority=-1, ago_s=99)
    assert head(tables, default=3) == [urgent, old, late]


def test_each_pool_has_its_own_queue(tables: Connection) -> None:
    for _ in range(3):
        put(tables)
    gpu = [put(tables, pool="gpu", ago_s=9), put(tables, pool="gpu")]
    assert len(head(tables, default=1)) == 1
    assert head(tables, gpu=5) == gpu
    assert len(head(tables, gpu=1, default=2)) == 3
    assert head(tables) == head(tables, tpu=4) == []


def test_a_scenario_in_backoff_is_not_in_the_queue_until_its_backoff_is_over(tables: Connection) -> None:
    soon = put(tables, attempt=1, ago_s=5, delay_s=20)
    over = put(tables, attempt=1, ago_s=5, delay_s=4)
    assert head(tables, default=5) == []
    assert engaged(tables).backoff_over
    leader_tables.end_backoffs(tables)
    assert head(tables, default=5) == [over]
    assert not engaged(tables).backoff_over
    tables.execute("UPDATE scenarios SET due_at = now() WHERE scenario_uuid = %s", (soon,))
    leader_tables.end_backoffs(tables)
    assert set(head(tables, default=5)) == {over, soon}


def test_backoffs_end_in_bounded_numbers_those_that_are_over_for_longest_first(
    tables: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_tables, "BACKOFFS", 2)
    over = [put(tables, attempt=1, ago_s=ago_s, delay_s=1) for ago_s in (9, 8, 7)]
    leader_tables.end_backoffs(tables)
    assert set(head(tables, default=5)) == set(over[:2])
    assert engaged(tables).backoff_over


def test_a_backoff_that_was_set_before_the_databases_clock_went_back_is_over(tables: Connection) -> None:
    put(tables, attempt=1, delay_s=3600)
    assert engaged(tables).backoff_over
    leader_tables.end_backoffs(tables)
    assert len(head(tables, default=5)) == 1


def test_whether_a_poisonous_frame_is_skipped_is_read_where_the_next_loss_would_be_the_last(tables: Connection) -> None:
    skips = Jsonb({"on_poison": "skip"})
    for attempt in (3, 4):
        deployed(tables, attempt=attempt, parameters=skips)
    deployed(tables, attempt=4)
    assert sorted((one.scenario.attempt, one.scenario.skips_poison) for one in engaged(tables).known) == [
        (3, False),
        (4, False),
        (4, True),
    ]


def test_the_pool_comes_with_the_scenario(tables: Connection) -> None:
    deployed(tables, pool="gpu")
    [known] = engaged(tables).known
    assert (known.scenario.pool, known.scenario.state) == ("gpu", State.ACTIVE)


@pytest.mark.parametrize("statement", ["engaged", "queue", "over"])
def test_a_tick_reads_no_more_where_ten_thousand_more_wait(tables: Connection, statement: str) -> None:
    """Counted in pages, which no load on the machine changes."""
    for _ in range(5):
        deployed(tables)
    fill_queue(tables, 100)
    few = pages(tables, statement)
    fill_queue(tables, 10_000, parameters='{"labels": ["person"]}')
    tables.execute("UPDATE scenarios SET due_at = now() + interval '50 s' WHERE priority = -100 AND random() < 0.5")
    tables.execute("VACUUM (ANALYZE) scenarios")
    assert pages(tables, statement) <= few + SLACK_PAGES


SLACK_PAGES = 20
"""An index grows by a level, and what was updated leaves dead entries."""


def pages(tables: Connection, statement: str) -> int:
    statements: dict[str, tuple[str, dict[str, Any]]] = {
        "engaged": (leader_tables.ENGAGED, {"shutdowns": 1000, "ended": [], "last_attempt": 4}),
        "queue": (leader_tables.HEAD_OF_QUEUE, {"pools": ["default"], "counts": [4], "last_attempt": 4}),
        "over": (leader_tables.END_BACKOFFS, {"backoffs": 500}),
    }
    query, given = statements[statement]
    tables.execute("ANALYZE scenarios")
    [explained] = explain(tables, lambda tx: tx.execute(query, given))
    return explained.pages
