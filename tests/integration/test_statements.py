"""The cost of the roles' statements is bounded with 1,000,000 finished scenarios, 100,000 waiting ones and 100,000 messages.

The bounds are pages touched and rows sorted, not times. Each statement that a role runs in a loop has an entry in STATEMENTS.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import msgspec
import pytest
from tests.integration.delivery import frame, outbox_row, print_figure
from tests.integration.query_plans import explain
from tests.scopes import EVERYTHING

from vidflow.domain.access import ReadScope, format_token, hash_token
from vidflow.domain.messages import Gap, GapReason, Parameters
from vidflow.domain.progress import Progress
from vidflow.domain.retention import DAY_MS, TimeRange
from vidflow.domain.scenario import State
from vidflow.infra.postgres import (
    audit,
    gaps,
    history,
    idempotency,
    inbox_partitions,
    leader_tables,
    lease,
    lifecycle,
    outbox,
    progress,
    results,
    retention,
    scenarios,
    system_status,
    tokens,
)
from vidflow.infra.postgres.connection import Connection, connect

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

FINISHED, WAITING, MESSAGES = 1_000_000, 100_000, 100_000
HOLDER = uuid.UUID(int=1)
FILL = (
    # One scenario every 2.5 s in the last 30 days. The waiting ones are the newest.
    """
    INSERT INTO scenarios (scenario_uuid, created_at, state_changed_at, due_at, epoch, state, outcome, source, model, fps, runner)
    SELECT uuidv7(make_interval(secs => -2.5 * n)), now() - make_interval(secs => 2.5 * n), now() - make_interval(secs => 2.5 * n),
           now(), 1, 'inactive', 'completed', 'rtsp://camera/' || n, 'motion', '5', 'r'
      FROM generate_series({finished}, 1, -1) AS n
    """,
    """
    INSERT INTO scenarios (source, model, fps, priority)
    SELECT 'rtsp://camera/' || n, 'motion', '5', n %% 3 FROM generate_series(1, {waiting}) AS n
    """,
    """
    INSERT INTO scenario_progress (scenario_uuid, epoch, next_frame, closed)
    SELECT scenario_uuid, epoch, 100 * epoch, state = 'inactive' FROM scenarios
    """,
    """
    INSERT INTO scenario_history (scenario_uuid, epoch, number, attempt, to_state, reason_code, reason)
    SELECT scenario_uuid, 0, n, 0, 'active', 'x', 'x'
      FROM (SELECT scenario_uuid FROM scenarios LIMIT 200000) AS s, generate_series(0, 1) AS n
    """,
    """
    INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections)
    SELECT scenario_uuid, n, 1, n, n, 640, 480, '', '[]'
      FROM (SELECT scenario_uuid FROM scenarios WHERE state = 'inactive' ORDER BY scenario_uuid LIMIT 1000) AS s,
           generate_series(0, 99) AS n
    """,
    """
    INSERT INTO scenario_gaps (scenario_uuid, epoch, after_frame, from_s, to_s, reason)
    SELECT scenario_uuid, 1, 3, 0, 1, 'corrupt' FROM scenarios ORDER BY scenario_uuid LIMIT 200000
    """,
    """
    INSERT INTO outbox (topic, key, kind, epoch, payload)
    SELECT 'init_scenario', scenario_uuid::text, 'start', 0, convert_to(repeat('x', 100), 'UTF8')
      FROM scenarios WHERE state = 'init_startup' LIMIT {messages}
    """,
    "INSERT INTO lease SELECT 'outbox/' || n, uuidv7(), 1, now() + interval '1 h' FROM generate_series(0, 15) AS n",
    "INSERT INTO lease VALUES ('leader', uuidv7(), 1, now() + interval '1 h')",
    "INSERT INTO runners SELECT 'r' || n, now(), 2, 2, 0, false, false, 'default', '1' FROM generate_series(1, 50) AS n",
    "INSERT INTO inbox_partitions SELECT 'results', 'id', n, 0, now() FROM generate_series(0, 7) AS n",
    """
    INSERT INTO audit (at, action, owner, scenario_uuid)
    SELECT now() - make_interval(secs => 40 * n), 'scenario_created', 'local', uuidv7() FROM generate_series(300000, 1, -1) AS n
    """,
    """
    UPDATE scenarios SET owner = 'rare'
     WHERE get_byte(uuid_send(scenario_uuid), 15) = 0 AND get_byte(uuid_send(scenario_uuid), 14) < 3
    """,
    """
    INSERT INTO tokens (token_id, token_sha256, owner, rights)
    SELECT md5(n::text), 'x', 'local', 'read' FROM generate_series(1, 10000) AS n
    """,
    "INSERT INTO deleted_scenarios SELECT uuidv7(make_interval(secs => -n)) FROM generate_series(10000, 1, -1) AS n",
    """
    INSERT INTO idempotency_keys (created_at, owner, key, request_sha256, status, body)
    SELECT now() - make_interval(secs => n), 'local', n::text, 'x', 201, 'x' FROM generate_series(100000, 1, -1) AS n
    """,
    "INSERT INTO results_removed SELECT uuidv7(interval '-90 days'), uuidv7(interval '-60 days')",
)


@pytest.fixture(scope="module")
def full(database_url: str) -> Iterator[Connection]:
    """A connection to the filled database."""
    with connect(database_url, name="test") as connection:
        connection.execute("SET synchronous_commit = off")
        for table in ("scenarios", "scenario_progress", "scenario_history", "scenario_gaps", "outbox"):
            connection.execute(
                f"ALTER TABLE {table} SET UNLOGGED"
            )  # halves the time to fill them and does not change plans
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        for statement in FILL:
            connection.execute(
                statement.format(finished=FINISHED, waiting=WAITING, messages=MESSAGES).replace("%%", "%")
            )
        connection.execute("VACUUM ANALYZE")
        yield connection


def sample_scenarios(connection: Connection, state: str, count: int) -> list[str]:
    """Return the uuids of `count` scenarios in this state, sampled from all."""
    rows = connection.execute(
        "SELECT scenario_uuid::text FROM scenarios TABLESAMPLE SYSTEM (5) REPEATABLE (1) WHERE state = %s LIMIT %s",
        (state, count),
    ).fetchall()
    return [scenario_uuid for (scenario_uuid,) in rows]


def first_ids(connection: Connection, count: int) -> list[int]:
    return [
        row_id for (row_id,) in connection.execute("SELECT id FROM outbox ORDER BY id LIMIT %s", (count,)).fetchall()
    ]


Statement = tuple[str, int, Callable[[Connection], Callable[[Connection], object]]]
"""Name, most pages that it may touch, and a function that prepares the call. Statements of the preparation are not counted."""


def call(*functions: Callable[[Connection], object]) -> Callable[[Connection], Callable[[Connection], object]]:
    """Return a preparation that does nothing, for calls that need none."""

    def run_all(tx: Connection) -> None:
        for function in functions:
            function(tx)

    return lambda _connection: run_all


def with_ids(
    count: int, run: Callable[[Connection, list[int]], object]
) -> Callable[[Connection], Callable[[Connection], object]]:
    def prepare(connection: Connection) -> Callable[[Connection], object]:
        ids = first_ids(connection, count)
        return lambda tx: run(tx, ids)

    return prepare


def with_scenarios(
    state: str, count: int, run: Callable[[Connection, list[str]], object]
) -> Callable[[Connection], Callable[[Connection], object]]:
    def prepare(connection: Connection) -> Callable[[Connection], object]:
        uuids = sample_scenarios(connection, state, count)
        assert len(uuids) == count
        return lambda tx: run(tx, uuids)

    return prepare


def new_scenario(tx: Connection) -> object:
    new = scenarios.NewScenario(
        source="s", model="motion", model_sha256=None, fps="all", priority=0, parameters=Parameters()
    )
    return scenarios.insert_scenario(tx, EVERYTHING, new)


def day(days_ago: int) -> Callable[[Connection], TimeRange]:
    def make_range(tx: Connection) -> TimeRange:
        from_ms = retention.read_database_ms(tx) - days_ago * DAY_MS
        return TimeRange(from_ms, from_ms + DAY_MS)

    return make_range


def list_scenarios(
    scope: ReadScope, state: State | None = None
) -> Callable[[Connection], Callable[[Connection], object]]:
    return call(lambda tx: scenarios.read_scenario_page(tx, scope, state, None, 51))


COMMON = ReadScope(owner="local", is_for_all=False)
RARE = ReadScope(owner="rare", is_for_all=False)
TOKEN = format_token(bytes(8), bytes(32))
SHARD = [3]
STATEMENTS: list[Statement] = [
    # The relay: every 2 ms when it is busy.
    ("outbox.read_pending_messages", 3000, call(lambda tx: outbox.read_pending_messages(tx, 2000))),
    ("outbox.read_pending_messages, one shard", 40_000, call(lambda tx: outbox.read_pending_messages(tx, 2000, shards=SHARD))),
    ("outbox.read_pending_messages, window", 9000, call(lambda tx: outbox.read_pending_messages(tx, 2000, window=outbox.WINDOW))),
    (
        "outbox.read_pending_messages, in flight",
        6000,
        with_ids(4000, lambda tx, ids: outbox.read_pending_messages(tx, 2000, in_flight_ids=ids)),
    ),
    (
        "outbox.read_pending_messages, after",
        3000,
        with_ids(4000, lambda tx, ids: outbox.read_pending_messages(tx, 2000, after_id=ids[-1])),
    ),
    ("outbox.has_pending_messages", 20, call(outbox.has_pending_messages)),
    ("outbox.count_pending_up_to", 200, with_ids(4000, lambda tx, ids: outbox.count_pending_up_to(tx, ids[-1], range(16)))),
    ("outbox.remove_published", 30_000, with_ids(2000, outbox.remove_published)),
    ("outbox.set_aside", 60, with_ids(1, lambda tx, ids: outbox.set_aside(tx, ids[0], "too large"))),
    ("outbox.read_lag", 300, call(outbox.read_lag)),
    ("outbox.read_lag, one shard", 300, call(lambda tx: outbox.read_lag(tx, SHARD))),
    # Leases.
    ("lease.acquire", 50, call(lambda tx: lease.acquire(tx, lease.LEADER_LEASE, HOLDER))),
    ("lease.cap_expiry", 100, call(lease.cap_expiry)),
    ("lease.renew", 50, call(lambda tx: lease.renew(tx, {lease.LEADER_LEASE: 1}, HOLDER))),
    ("lease.release", 50, call(lambda tx: lease.release(tx, {lease.LEADER_LEASE: 1}, HOLDER))),
    ("lease.read_live_names", 50, call(lease.read_live_names, lease.delete_dead_relays)),
    # The inbox: once per batch.
    ("progress.lock_progress", 5000, with_scenarios("inactive", 500, progress.lock_progress)),
    (
        "progress.write_progress",
        15_000,
        with_scenarios("inactive", 500, lambda tx, uuids: progress.write_progress(tx, {uuid_: Progress(epoch=1) for uuid_ in uuids})),
    ),
    (
        "results.add_missing_frames",
        15_000,
        with_scenarios("inactive", 500, lambda tx, uuids: results.add_missing_frames(tx, [frame(uuid_, 1) for uuid_ in uuids])),
    ),
    (
        "gaps.add_gaps",
        15_000,
        with_scenarios(
            "inactive",
            500,
            lambda tx, uuids: gaps.add_gaps(
                tx, [msgspec.structs.replace(frame(uuid_, 4), gaps=(Gap(0.0, 1.0, GapReason.CORRUPT, 1),)) for uuid_ in uuids]
            ),
        ),
    ),
    ("outbox.add_messages", 10_000, call(lambda tx: outbox.add_messages(tx, [outbox_row(f"key-{number}") for number in range(500)]))),
    ("inbox_partitions.read_positions", 100, call(lambda tx: inbox_partitions.read_positions(tx, "results", "id", range(8)))),
    (
        "inbox_partitions.move_positions",
        100,
        call(lambda tx: inbox_partitions.move_positions(tx, "results", "id", dict.fromkeys(range(8), (0, 1)))),
    ),
    (
        "inbox_partitions.note_caught_up",
        100,
        call(
            lambda tx: inbox_partitions.note_caught_up(
                tx, "results", "id", dict.fromkeys(range(8), 0), dict.fromkeys(range(8), 0), inbox_partitions.read_database_time(tx)
            )
        ),
    ),
    # The leader: in each tick.
    (
        "leader_tables.SCENARIOS_ON_RUNNERS",
        300,
        call(lambda tx: tx.execute(leader_tables.SCENARIOS_ON_RUNNERS, {"shutdowns": 1000, "ended": [], "last_attempt": 4})),
    ),
    (
        "leader_tables.HEAD_OF_QUEUE",
        3000,
        call(lambda tx: tx.execute(leader_tables.HEAD_OF_QUEUE, {"pools": ["default"], "counts": [100], "last_attempt": 4})),
    ),
    ("leader_tables.end_backoffs", 100, call(leader_tables.end_backoffs)),
    # The leader's housekeeping: every minute.
    ("retention.list_partitions", 300, call(retention.list_partitions, retention.list_detached_partitions)),
    ("retention.default_span_ms", 50, call(retention.default_span_ms)),
    (
        "retention.find_ended_up_to",
        1000,
        call(lambda tx: retention.find_ended_up_to(tx, day(20)(tx), retention.read_database_ms(tx), retention.MIN_UUID, 5000)),
    ),
    (
        "retention.find_expired_scenarios",
        5000,
        call(lambda tx: retention.find_expired_scenarios(tx, retention.read_database_ms(tx), retention.MIN_UUID, 500)),
    ),
    ("retention.delete_scenarios", 40_000, with_scenarios("inactive", 500, retention.delete_scenarios)),
    ("retention.delete_from_default", 12_000, call(
        lambda tx: retention.delete_from_default(tx, TimeRange(0, 1 << 47), 2000))),
    ("retention.find_deleted_scenario", 50, call(retention.find_deleted_scenario)),
    ("retention.delete_rest", 30_000, with_scenarios("inactive", 1, lambda tx, uuids: retention.delete_rest(tx, uuids[0], 2000))),
    ("idempotency.find_answer", 50, call(lambda tx: idempotency.find_answer(tx, EVERYTHING, "7"))),
    ("idempotency.delete_expired", 12_000, call(idempotency.delete_expired)),
    ("scenarios.delete_scenario", 100, with_scenarios("inactive", 1,
        lambda tx, uuids: scenarios.delete_scenario(tx, EVERYTHING, uuids[0]))),
    ("retention.note_removed", 50, call(lambda tx: retention.note_removed(tx, day(20)(tx)))),
    # The api: health and metrics, then requests.
    ("system_status", 400, call(system_status.check_tables, system_status.read_system_status, system_status.read_pool_status)),
    ("scenarios.count_scenarios_by_state", 4000, call(scenarios.count_scenarios_by_state)),
    ("scenarios.read_queue_oldest_s", 100, call(scenarios.read_queue_oldest_s)),
    ("outbox.count_set_aside", 100, call(outbox.count_set_aside)),
    ("scenarios.read_queue_totals", 100, call(scenarios.read_queue_totals)),
    ("scenarios.insert_scenario", 400, call(new_scenario)),
    ("scenarios.find_scenario", 100, with_scenarios("inactive", 1, lambda tx, uuids: scenarios.find_scenario(tx, EVERYTHING, uuids[0]))),
    ("scenarios.read_scenario_page", 1000, call(lambda tx: scenarios.read_scenario_page(tx, EVERYTHING, None, None, 51))),
    ("scenarios.read_scenario_page, common state", 1000, list_scenarios(EVERYTHING, State.INIT_STARTUP)),
    ("scenarios.read_scenario_page, empty state", 1000, list_scenarios(EVERYTHING, State.ACTIVE)),
    ("scenarios.read_scenario_page, one owner", 1000, list_scenarios(RARE)),
    ("scenarios.read_scenario_page, one owner, inactive", 1000, list_scenarios(RARE, State.INACTIVE)),
    ("scenarios.read_scenario_page, one owner, waiting", 1000, list_scenarios(RARE, State.INIT_STARTUP)),
    ("scenarios.read_scenario_page, one owner, empty state", 1000, list_scenarios(RARE, State.ACTIVE)),
    ("scenarios.read_scenario_page, an owner of many", 1000, list_scenarios(COMMON)),
    ("scenarios.read_scenario_page, an owner of many, waiting", 1000, list_scenarios(COMMON, State.INIT_STARTUP)),
    ("scenarios.read_scenario_page, an owner of many, empty state", 1000, list_scenarios(COMMON, State.ACTIVE)),
    ("tokens.find_token", 50, call(lambda tx: tokens.find_token(tx, TOKEN, hash_token(TOKEN)), tokens.has_tokens)),
    ("audit.add_entry", 50, call(lambda tx: audit.add_entry(tx, EVERYTHING, "shutdown_requested", str(HOLDER)))),
    ("audit.delete_expired", 12_000, call(lambda tx: audit.delete_expired(tx, 90))),
    (
        "scenarios.read_scenario_page, after",
        1000,
        with_scenarios("inactive", 1, lambda tx, uuids: scenarios.read_scenario_page(tx, EVERYTHING, State.INACTIVE, uuids[0], 51)),
    ),
    ("history.read_history_page", 50, with_scenarios("inactive", 1,
        lambda tx, uuids: history.read_history_page(tx, EVERYTHING, uuids[0], history.BEFORE_FIRST_TRANSITION, 100))),
    ("gaps.read_gap_page", 50, with_scenarios("inactive", 1,
        lambda tx, uuids: gaps.read_gap_page(tx, EVERYTHING, uuids[0], gaps.BEFORE_FIRST_GAP, 100))),
    ("scenarios.exists", 50, with_scenarios("inactive", 1, lambda tx, uuids: scenarios.exists(tx, EVERYTHING, uuids[0]))),
    ("lifecycle.read_scenario", 50, with_scenarios("inactive", 1, lambda tx, uuids: lifecycle.read_scenario(tx, EVERYTHING, uuids[0]))),
    ("results.read_result_page", 300, with_scenarios("inactive", 1,
        lambda tx, uuids: results.read_result_page(tx, EVERYTHING, uuids[0], -1, 100))),
]  # fmt: skip
MAX_SORTED_ROWS = 5000
"""A batch or a page may be sorted, but not the whole queue."""


@pytest.mark.parametrize(("name", "pages", "prepare"), STATEMENTS, ids=[name for name, *_ in STATEMENTS])
def test_the_cost_of_a_statement_does_not_grow_with_the_tables(
    full: Connection, name: str, pages: int, prepare: Callable[[Connection], Callable[[Connection], object]]
) -> None:
    plans = explain(full, prepare(full))
    assert plans, "no statement was explained"
    print_figure(f"{name}: {sum(plan.pages for plan in plans)} pages")
    for plan in plans:
        assert plan.scanned <= {"queue_totals"}, plan.query  # which has 16 rows
        assert plan.sorted_rows <= MAX_SORTED_ROWS, plan.query
    assert sum(plan.pages for plan in plans) <= pages


def test_explain_detects_scans_and_large_sorts(full: Connection) -> None:
    [scan] = explain(full, lambda tx: tx.execute("SELECT count(*) FROM scenarios WHERE fps = 'x'"))
    assert scan.scanned == {"scenarios"}
    assert scan.pages > 1000
    [sort] = explain(full, lambda tx: tx.execute("SELECT key FROM outbox ORDER BY created_at, key LIMIT 1"))
    assert sort.sorted_rows >= MESSAGES
