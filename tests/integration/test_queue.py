"""Totals of the queue, which triggers maintain, and the cost of reads by the api."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.delivery import emptied_database
from tests.scopes import EVERYTHING

from vidflow.domain.messages import Parameters
from vidflow.domain.scenario import State
from vidflow.infra.postgres import gaps, history, results, scenarios
from vidflow.infra.postgres.connection import Connection, connect
from vidflow.infra.postgres.scenarios import NewScenario, QueueTotals, read_queue_totals

OTHERS = 20_000


@pytest.fixture(scope="module")
def connection(database_url: str) -> Iterator[Connection]:
    with emptied_database(database_url) as connection:
        yield connection


@pytest.fixture(autouse=True)
def _empty(connection: Connection) -> None:
    connection.execute("TRUNCATE scenarios, scenario_progress, scenario_history, outbox")


def counted(tx: Connection) -> QueueTotals:
    """Return the totals by counting the rows."""
    [(count, size)] = tx.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0)::bigint FROM scenarios WHERE state = 'init_startup'"
    ).fetchall()
    return QueueTotals(count, size)


def insert(tx: Connection, count: int = 1, source: str = "s", state: str = "init_startup") -> None:
    outcome = "stopped" if state == "inactive" else None
    tx.execute(
        "INSERT INTO scenarios (source, model, fps, state, outcome) SELECT %s, 'motion', 'all', %s, %s FROM generate_series(1, %s)",
        (source, state, outcome, count),
    )


def test_an_empty_queue_has_zero_totals(connection: Connection) -> None:
    assert read_queue_totals(connection) == QueueTotals(0, 0)


def test_the_size_of_a_scenario_includes_all_texts_of_the_client(connection: Connection) -> None:
    new = NewScenario(
        source="s" * 100, model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters(labels=("\u00e9" * 50,) * 10)
    )  # fmt: skip
    scenarios.insert_scenario(connection, EVERYTHING, new)
    totals = read_queue_totals(connection)
    assert totals == counted(connection)
    assert totals.scenarios == 1
    assert 1100 < totals.bytes < 1300
    assert abs(scenarios.estimate_size_bytes(new) - totals.bytes) < 100


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(1, 5), st.sampled_from([state.value for state in State])),
        st.tuples(st.just("move"), st.integers(0, 5), st.sampled_from([state.value for state in State])),
        st.tuples(st.just("delete"), st.integers(0, 5), st.none()),
        st.tuples(st.just("touch"), st.integers(0, 5), st.none()),
        st.tuples(st.just("rollback"), st.integers(1, 5), st.none()),
    ),
    max_size=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_the_totals_match_the_queue_after_any_changes(
    connection: Connection, steps: list[tuple[str, int, str | None]]
) -> None:
    condition = "scenario_uuid IN (SELECT scenario_uuid FROM scenarios ORDER BY scenario_uuid LIMIT %s)"
    for action, count, state in steps:
        outcome = "stopped" if state in {"init_shutdown", "in_shutdown_processing", "inactive"} else None
        if action == "insert":
            connection.execute(
                """
                INSERT INTO scenarios (source, model, fps, state, outcome, epoch, runner)
                SELECT repeat('x', n), 'motion', 'all', %s, %s, 5, 'r' FROM generate_series(1, %s) AS n
                """,
                (state, outcome, count),
            )
        elif action == "move":
            connection.execute(
                f"UPDATE scenarios SET state = %s, outcome = %s, epoch = 5, runner = 'r' WHERE {condition}",
                (state, outcome, count),
            )
        elif action == "delete":
            connection.execute(f"DELETE FROM scenarios WHERE {condition}", (count,))
        elif action == "touch":
            connection.execute(f"UPDATE scenarios SET attempt = attempt + 1 WHERE {condition}", (count,))
        else:
            with connection.transaction(force_rollback=True):
                insert(connection, count)
    assert read_queue_totals(connection) == counted(connection)


def test_concurrent_writers_keep_the_totals_correct(connection: Connection, database_url: str) -> None:
    def write(state: str) -> None:
        with connect(database_url, name="test") as tx:
            for number in range(25):
                insert(tx, 2, "x" * number)
                tx.execute(
                    """
                    UPDATE scenarios SET state = %s, epoch = 1, runner = 'r'
                     WHERE scenario_uuid = (SELECT scenario_uuid FROM scenarios WHERE state = 'init_startup'
                                             LIMIT 1 FOR UPDATE SKIP LOCKED)
                    """,
                    (state,),
                )

    threads = [threading.Thread(target=write, args=(state,)) for state in ("active", "in_startup_processing") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = read_queue_totals(connection)
    assert totals == counted(connection)
    assert totals.scenarios == 4 * 25


def rows_read(tx: Connection) -> int:
    """Return the number of rows that this transaction has read so far."""
    [(count,)] = tx.execute(
        "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint FROM pg_stat_xact_user_tables"
    ).fetchall()
    return int(count)


@pytest.mark.long
@pytest.mark.parametrize("common", ["init_startup", "inactive"])
def test_the_cost_of_a_read_does_not_grow_with_the_tables(connection: Connection, common: str) -> None:
    """Each statement reads a few rows per item of its page and no others."""
    insert(connection, OTHERS, state=common)
    [(scenario_uuid,)] = connection.execute("SELECT scenario_uuid::text FROM scenarios LIMIT 1").fetchall()
    connection.execute(
        "INSERT INTO scenario_history SELECT %s, now(), 1, n, 0, 'a', 'b', 'c', 'd' FROM generate_series(0, 9999) AS n",
        (scenario_uuid,),
    )
    connection.execute(
        "INSERT INTO scenario_gaps SELECT %s, 1, n / 5000, n, n, 1, 'corrupt' FROM generate_series(0, 9999) AS n",
        (scenario_uuid,),
    )
    connection.execute(
        "INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)"
        " SELECT %s, n, 1, n, n, 1, 1, '', '[]' FROM generate_series(0, 9999) AS n",
        (scenario_uuid,),
    )
    connection.execute("ANALYZE")
    reads: dict[str, Callable[[], object]] = {
        "queue": lambda: read_queue_totals(connection),
        "list": lambda: scenarios.read_scenario_page(connection, EVERYTHING, None, None, 20),
        "list of a common state": lambda: scenarios.read_scenario_page(connection, EVERYTHING, State(common), None, 20),
        "list of a rare state": lambda: scenarios.read_scenario_page(connection, EVERYTHING, State.ACTIVE, None, 20),
        "history": lambda: history.read_history_page(connection, EVERYTHING, scenario_uuid, 5000, 20),
        "gaps": lambda: gaps.read_gap_page(
            connection, EVERYTHING, scenario_uuid, gaps.GapKey(1, 7000.0, "corrupt"), 20
        ),
        "predictions": lambda: results.read_result_page(connection, EVERYTHING, scenario_uuid, 5000, 20),
    }
    rows_by_read = {}
    for name, statement in reads.items():
        for _ in range(7):  # more often than it takes to prepare a statement and switch to its generic plan
            with connection.transaction():
                rows_before = rows_read(connection)
                statement()
                rows_by_read[name] = rows_read(connection) - rows_before
    assert {name: count for name, count in rows_by_read.items() if count > 200} == {}, rows_by_read
    connection.execute("TRUNCATE scenario_history, scenario_gaps, scenario_results")
