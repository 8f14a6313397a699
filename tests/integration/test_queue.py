"""The totals of what waits: kept by the database in the transactions that change it, and read at a cost that never grows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.delivery import emptied_database

from vidflow.domain.messages import Parameters
from vidflow.domain.scenario import State
from vidflow.infra.postgres import gaps, history, predictions, scenarios
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
    """What really waits."""
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


def test_an_empty_queue_is_nothing(connection: Connection) -> None:
    assert read_queue_totals(connection) == QueueTotals(0, 0)


def test_a_scenario_counts_with_all_that_a_client_can_make_large(connection: Connection) -> None:
    new = NewScenario(
        source="s" * 100, model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters(labels=("\u00e9" * 50,) * 10)
    )  # fmt: skip
    scenarios.insert_scenario(connection, new)
    found = read_queue_totals(connection)
    assert found == counted(connection)
    assert found.scenarios == 1
    assert 1100 < found.bytes < 1300
    assert abs(scenarios.estimate_size_bytes(new) - found.bytes) < 100


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
def test_whatever_happens_the_totals_are_what_waits(
    connection: Connection, steps: list[tuple[str, int, str | None]]
) -> None:
    some = "scenario_uuid IN (SELECT scenario_uuid FROM scenarios ORDER BY scenario_uuid LIMIT %s)"
    for what, count, state in steps:
        ended = "stopped" if state in {"init_shutdown", "in_shutdown_processing", "inactive"} else None
        if what == "insert":
            connection.execute(
                """
                INSERT INTO scenarios (source, model, fps, state, outcome, epoch, runner)
                SELECT repeat('x', n), 'motion', 'all', %s, %s, 5, 'r' FROM generate_series(1, %s) AS n
                """,
                (state, ended, count),
            )
        elif what == "move":
            connection.execute(
                f"UPDATE scenarios SET state = %s, outcome = %s, epoch = 5, runner = 'r' WHERE {some}",
                (state, ended, count),
            )
        elif what == "delete":
            connection.execute(f"DELETE FROM scenarios WHERE {some}", (count,))
        elif what == "touch":
            connection.execute(f"UPDATE scenarios SET attempt = attempt + 1 WHERE {some}", (count,))
        else:
            with connection.transaction(force_rollback=True):
                insert(connection, count)
    assert read_queue_totals(connection) == counted(connection)


def test_writers_at_the_same_time_lose_no_count(connection: Connection, database_url: str) -> None:
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
    found = read_queue_totals(connection)
    assert found == counted(connection)
    assert found.scenarios == 4 * 25


def rows_read(tx: Connection) -> int:
    """Rows of tables that this transaction has read so far."""
    [(count,)] = tx.execute(
        "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint FROM pg_stat_xact_user_tables"
    ).fetchall()
    return int(count)


@pytest.mark.parametrize("common", ["init_startup", "inactive"])
def test_no_read_of_the_api_costs_more_the_more_there_is(connection: Connection, common: str) -> None:
    """Each reads some rows for each item of its page, and nothing of the others, whatever state they are in."""
    insert(connection, OTHERS, state=common)
    [(uuid_,)] = connection.execute("SELECT scenario_uuid::text FROM scenarios LIMIT 1").fetchall()
    connection.execute(
        "INSERT INTO scenario_history SELECT %s, now(), 1, n, 0, 'a', 'b', 'c' FROM generate_series(0, 9999) AS n",
        (uuid_,),
    )
    connection.execute(
        "INSERT INTO scenario_gaps SELECT %s, 1, n / 5000, n, n, 1, 'corrupt' FROM generate_series(0, 9999) AS n",
        (uuid_,),
    )
    connection.execute(
        "INSERT INTO scenario_results SELECT %s, n, 1, n, n, 1, 1, '', '[]' FROM generate_series(0, 9999) AS n",
        (uuid_,),
    )
    connection.execute("ANALYZE")
    reads: dict[str, Callable[[], object]] = {
        "queue": lambda: read_queue_totals(connection),
        "list": lambda: scenarios.read_scenario_page(connection, None, None, 20),
        "list of a common state": lambda: scenarios.read_scenario_page(connection, State(common), None, 20),
        "list of a rare state": lambda: scenarios.read_scenario_page(connection, State.ACTIVE, None, 20),
        "history": lambda: history.read_history_page(connection, uuid_, 5000, 20),
        "gaps": lambda: gaps.read_gap_page(connection, uuid_, gaps.GapKey(1, 7000.0, "corrupt"), 20),
        "predictions": lambda: predictions.read_result_page(connection, uuid_, 5000, 20),
    }
    read = {}
    for name, statement in reads.items():
        for _ in range(7):  # beyond the number at which statements are prepared and planned for any parameters
            with connection.transaction():
                before = rows_read(connection)
                statement()
                read[name] = rows_read(connection) - before
    assert {name: count for name, count in read.items() if count > 200} == {}, read
    connection.execute("TRUNCATE scenario_history, scenario_gaps, scenario_results")
