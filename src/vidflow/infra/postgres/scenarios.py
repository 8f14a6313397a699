"""Create, read and count scenarios for clients. State changes are written in lifecycle.py."""

from __future__ import annotations

import datetime
from typing import Any, Final

import msgspec
from psycopg.rows import dict_row

from vidflow.domain.access import ReadScope, WriteScope
from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import Parameters, Start, encode
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import DEFAULT_POOL, Outcome, Skip, State, is_due
from vidflow.domain.topics import INIT_SCENARIO
from vidflow.domain.waiting import ComponentStatus
from vidflow.domain.warnings import Warnings
from vidflow.infra.postgres import audit
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.pages import MAX_PAGE_BYTES, trim_page
from vidflow.infra.postgres.parameters import to_json
from vidflow.infra.postgres.scopes import IS_IN_SCOPE, IS_SCENARIO_IN_SCOPE
from vidflow.infra.postgres.system_status import COMPONENT_STATUS_COLUMNS

_PLACEHOLDER_UUID: Final = "00000000-0000-0000-0000-000000000000"
_START: Final = encode(Start(_PLACEHOLDER_UUID)).decode()
"""Start message of a new scenario. The database replaces the placeholder with the uuid, so that one statement creates the scenario."""

_COLUMNS: Final = f"""
    s.scenario_uuid::text, s.owner, s.source, s.model, s.fps, s.priority, s.parameters::text, s.state, s.outcome, s.error::text, s.epoch,
    s.attempt, s.runner, s.pool, s.resume_frame, s.skips::text, s.created_at, s.state_changed_at,
    extract(epoch FROM s.due_at - clock_timestamp())::float8 AS due_in_s,
    {COMPONENT_STATUS_COLUMNS}"""
_PROGRESS: Final = """
    coalesce(p.next_frame, 0) AS frames_stored, (p.opened ->> 'frames_expected')::bigint AS frames_expected,
    p.opened ->> 'device' AS device, coalesce(p.warnings, '[]')::text AS warnings,
    CASE WHEN (p.lost ->> 'epoch')::bigint = s.epoch THEN p.lost ->> 'error' END AS source_error"""
# Size of a scenario in a response: a fixed part and the columns of variable length.
_BYTES: Final = """
    2000 + octet_length(s.source) + octet_length(s.model) + octet_length(s.parameters::text) + octet_length(s.skips::text)
    + coalesce(octet_length(s.error::text), 0)"""
_MAX_UUID: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
"""Greater than every uuid that the database creates."""
MAX_COUNTED_SCENARIOS: Final = 10_000
"""Maximum number of scenarios that are counted per state, so that counting does not become more expensive."""
OLDEST: Final = 100
"""Number of oldest waiting scenarios that are examined. The oldest one may have returned to the queue only a moment ago."""
# LEFT JOIN, because after a restore a scenario may have no progress.
_SELECT_SCENARIO: Final = (
    f"SELECT {_COLUMNS}, {_PROGRESS} FROM scenarios s LEFT JOIN scenario_progress p USING (scenario_uuid)"  # noqa: S608
)

# One index scan per state. Without ORDER BY the planner may read all rows of a state into a bitmap first.
_STATES: Final = " UNION ALL ".join(
    f"SELECT '{state}', count(*) "  # noqa: S608 - constant names
    f"FROM (SELECT FROM scenarios WHERE state = '{state}' ORDER BY scenario_uuid DESC LIMIT {MAX_COUNTED_SCENARIOS}) AS {state}"
    for state in State
    if state is not State.INACTIVE
)


class NewScenario(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request for a scenario, with the source as the runner opens it and the resolved frame rate."""

    source: str
    model: str
    model_sha256: str | None
    fps: str
    priority: int
    parameters: Parameters
    pool: str = DEFAULT_POOL


class ScenarioDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario with its progress and the status of the components that it depends on, read in one snapshot."""

    scenario_uuid: str
    owner: str
    source: str
    model: str
    fps: str
    priority: int
    parameters: Parameters
    state: State
    outcome: Outcome | None
    error: ErrorInfo | None
    epoch: int
    attempt: int
    runner: str | None
    pool: str
    resume_frame: int
    skips: tuple[Skip, ...]
    created_at: datetime.datetime
    state_changed_at: datetime.datetime
    due: bool
    frames_stored: int
    frames_expected: int | None
    device: str | None
    warnings: Warnings
    source_error: ErrorInfo | None
    components: ComponentStatus


def insert_scenario(tx: Connection, scope: WriteScope, new: NewScenario) -> ScenarioDetails:
    """Create a scenario with its progress, the first row of its history, its start message and its audit entry, in one statement."""
    query = f"""
        WITH generated AS MATERIALIZED (
            SELECT uuidv7() AS scenario_uuid
        ), s AS (
            INSERT INTO scenarios (scenario_uuid, owner, source, model, model_sha256, fps, priority, pool, parameters)
            SELECT scenario_uuid, %(by)s, %(source)s, %(model)s, %(model_sha256)s, %(fps)s, %(priority)s, %(pool)s,
                   %(parameters)s::jsonb
              FROM generated
         RETURNING *
        ), progress AS (
            INSERT INTO scenario_progress (scenario_uuid)
            SELECT scenario_uuid FROM generated
        ), history AS (
            INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, reason_code, reason, epoch, attempt)
            SELECT scenario_uuid, 0, NULL, state, %(reason_code)s, 'init requested', epoch, attempt FROM s
        ), message AS (
            INSERT INTO outbox (topic, key, kind, epoch, payload)
            SELECT %(topic)s, scenario_uuid::text, 'start', 0, convert_to(replace(%(start)s, %(placeholder)s, scenario_uuid::text), 'UTF8')
              FROM generated
        ), audited AS (
            INSERT INTO audit (action, owner, token_id, address, scenario_uuid)
            SELECT 'scenario_created', %(by)s, %(token_id)s, %(address)s, scenario_uuid FROM generated
        )
        SELECT {_COLUMNS}, 0::bigint AS frames_stored, NULL::bigint AS frames_expected, NULL AS device, '[]' AS warnings,
               NULL AS source_error
          FROM s
    """  # noqa: S608 - constant columns
    values = {
        **msgspec.structs.asdict(new),
        **audit.author_of(scope),
        "parameters": to_json(new.parameters),
        "topic": INIT_SCENARIO,
        "start": _START,
        "reason_code": ReasonCode.CREATED.value,
        "placeholder": _PLACEHOLDER_UUID,
    }
    row = tx.cursor(row_factory=dict_row).execute(query, values).fetchone()
    assert row is not None
    return _decode_details(row)


class QueueTotals(msgspec.Struct, frozen=True):
    """The number of scenarios that wait for a runner, and their total size in bytes."""

    scenarios: int
    bytes: int


def read_queue_totals(tx: Connection) -> QueueTotals:
    """Return the totals that triggers maintain. The cost does not depend on the length of the queue."""
    [(scenarios, size_bytes)] = tx.execute(
        "SELECT coalesce(sum(scenarios), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM queue_totals"
    ).fetchall()
    return QueueTotals(scenarios, size_bytes)


def count_unfinished_of_owner(tx: Connection, owner: str) -> int:
    """Return how many scenarios of an owner have not ended. Triggers maintain the count."""
    [(count,)] = tx.execute(
        "SELECT coalesce(sum(scenarios), 0)::bigint FROM owner_totals WHERE owner = %s", (owner,)
    ).fetchall()
    return int(count)


def read_queue_oldest_s(tx: Connection) -> float:
    """Return the longest time that one of the OLDEST oldest scenarios in the queue has waited for a runner, or 0 if none waits."""
    [(oldest_s,)] = tx.execute(
        """
        SELECT coalesce(extract(epoch FROM clock_timestamp() - min(state_changed_at)), 0)::float8
          FROM (SELECT state_changed_at
                  FROM scenarios
                 WHERE state = 'init_startup'
                 ORDER BY scenario_uuid
                 LIMIT %(oldest)s) AS waiting
        """,
        {"oldest": OLDEST},
    ).fetchall()
    return max(float(oldest_s), 0.0)


def count_scenarios_by_state(tx: Connection) -> dict[str, int]:
    """Return how many scenarios are in each state but `inactive`, counting at most MAX_COUNTED_SCENARIOS of each."""
    return dict(tx.execute(_STATES).fetchall())


def estimate_size_bytes(new: NewScenario) -> int:
    """Return the approximate size of a scenario in the queue. The database counts the exact size itself."""
    return len(new.source.encode()) + len(new.model.encode()) + len(msgspec.json.encode(new.parameters))


def find_scenario(tx: Connection, scope: ReadScope, scenario_uuid: str) -> ScenarioDetails | None:
    """Return a scenario, or None if it does not exist in this scope."""
    query = f"{_SELECT_SCENARIO} WHERE s.scenario_uuid = %(scenario_uuid)s AND {IS_IN_SCOPE}"
    values = {"scenario_uuid": scenario_uuid, "owner": scope.only_owner}
    row = tx.cursor(row_factory=dict_row).execute(query, values).fetchone()
    return _decode_details(row) if row else None


def read_scenario_page(
    tx: Connection, scope: ReadScope, state: State | None, after: str | None, limit: int
) -> tuple[list[ScenarioDetails], bool]:
    """Return at most `limit` scenarios older than `after`, newest first, and whether more follow. `state` selects those in a state."""
    # The state is part of the SQL text, because rare and common states need different plans. So is whether there is an owner.
    of_state = f"AND s.state = '{state}'" if state is not None else ""
    of_owner = "AND s.owner = %(owner)s" if scope.only_owner is not None else ""
    query = f"""
        WITH RECURSIVE listed AS (
            SELECT %(after)s::uuid AS scenario_uuid, 0 AS row_number, 0::bigint AS page_bytes
             UNION ALL
            SELECT next.scenario_uuid, listed.row_number + 1, listed.page_bytes + next.bytes
              FROM listed
             CROSS JOIN LATERAL (
                   SELECT s.scenario_uuid, {_BYTES} AS bytes
                     FROM scenarios s
                    WHERE s.scenario_uuid < listed.scenario_uuid {of_state} {of_owner}
                    ORDER BY s.scenario_uuid DESC
                    LIMIT 1) AS next
             WHERE listed.row_number <= %(limit)s AND (listed.row_number <= 1 OR listed.page_bytes <= %(page_bytes)s)
        )
        SELECT {_COLUMNS}, {_PROGRESS}, listed.page_bytes
          FROM listed
          JOIN scenarios s USING (scenario_uuid)
          LEFT JOIN scenario_progress p USING (scenario_uuid)
         WHERE listed.row_number > 0
         ORDER BY listed.row_number
    """  # noqa: S608 - constant columns
    values = {
        "after": after or _MAX_UUID,
        "limit": limit,
        "page_bytes": MAX_PAGE_BYTES,
        "owner": scope.only_owner,
    }
    rows = tx.cursor(row_factory=dict_row).execute(query, values).fetchall()
    sizes = [row.pop("page_bytes") for row in rows]
    return trim_page([(_decode_details(row), size) for row, size in zip(rows, sizes, strict=True)], limit)


def change_waiting(
    tx: Connection, scope: WriteScope, scenario_uuid: str, *, priority: int | None, pool: str | None
) -> bool:
    """Change the priority or the pool of a waiting scenario of this scope, with an entry in the audit. None keeps a value.

    A scenario that was deployed before keeps its pool, since what it has left on a runner is ended by that pool's topic. Returns False
    if the scenario may not be changed so.
    """
    query = f"""
        WITH changed AS (
            UPDATE scenarios s
               SET priority = coalesce(%(priority)s, s.priority), pool = coalesce(%(pool)s, s.pool)
             WHERE s.scenario_uuid = %(scenario_uuid)s AND s.state = 'init_startup' AND {IS_IN_SCOPE}
               AND (s.epoch = 0 OR %(pool)s::text IS NULL OR s.pool = %(pool)s)
         RETURNING s.scenario_uuid, s.priority, s.pool
        ), audited AS (
            INSERT INTO audit (action, owner, token_id, address, scenario_uuid, detail)
            SELECT 'scenario_changed', %(by)s, %(token_id)s, %(address)s, scenario_uuid, format('priority %%s, pool %%s', priority, pool)
              FROM changed
        )
        SELECT count(*) FROM changed
    """  # noqa: S608 - a constant condition
    values = {
        "scenario_uuid": scenario_uuid,
        "priority": priority,
        "pool": pool,
        "owner": scope.only_owner,
        **audit.author_of(scope),
    }
    [(count,)] = tx.execute(query, values).fetchall()
    return bool(count)


def delete_scenario(tx: Connection, scope: WriteScope, scenario_uuid: str) -> bool:
    """Delete a scenario of this scope if it is inactive, with an entry in the audit. Return whether it was deleted.

    Nobody can read what belongs to it from then on. The leader's housekeeping deletes that, which may take many transactions.
    """
    query = f"""
        WITH gone AS (
            DELETE FROM scenarios s
             WHERE s.scenario_uuid = %(scenario_uuid)s AND s.state = 'inactive' AND {IS_IN_SCOPE}
         RETURNING s.scenario_uuid
        ), noted AS (
            INSERT INTO deleted_scenarios (scenario_uuid) SELECT scenario_uuid FROM gone
        ), audited AS (
            INSERT INTO audit (action, owner, token_id, address, scenario_uuid)
            SELECT 'scenario_deleted', %(by)s, %(token_id)s, %(address)s, scenario_uuid FROM gone
        )
        SELECT count(*) FROM gone
    """  # noqa: S608 - a constant condition
    values = {
        "scenario_uuid": scenario_uuid,
        "owner": scope.only_owner,
        **audit.author_of(scope),
    }
    [(count,)] = tx.execute(query, values).fetchall()
    return bool(count)


def exists(tx: Connection, scope: ReadScope, scenario_uuid: str) -> bool:
    """Return whether the scenario exists in this scope."""
    query = f"SELECT {IS_SCENARIO_IN_SCOPE}"
    [(found,)] = tx.execute(query, {"scenario_uuid": scenario_uuid, "owner": scope.only_owner}).fetchall()
    return bool(found)


def _decode_details(row: dict[str, Any]) -> ScenarioDetails:
    components = ComponentStatus(
        *(row.pop(name) for name in ("leads", "relays", "free_slot", "caught_up", "empty_pool"))
    )
    return ScenarioDetails(
        **row
        | {
            "state": State(row["state"]),
            "outcome": Outcome(row["outcome"]) if row["outcome"] else None,
            "error": msgspec.json.decode(row["error"], type=ErrorInfo) if row["error"] else None,
            "parameters": msgspec.json.decode(row["parameters"], type=Parameters),
            "source_error": msgspec.json.decode(row["source_error"], type=ErrorInfo) if row["source_error"] else None,
            "warnings": msgspec.json.decode(row["warnings"], type=Warnings),
            "skips": msgspec.json.decode(row["skips"], type=tuple[Skip, ...]),
            "due": is_due(row.pop("due_in_s")),
            "components": components,
        }
    )
