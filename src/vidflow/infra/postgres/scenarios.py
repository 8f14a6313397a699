"""Scenarios as clients ask for them and are told of them: birth, one, a page. Not how they move on: lifecycle.py."""

from __future__ import annotations

import datetime
from typing import Any, Final

import msgspec
from psycopg.rows import dict_row

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.messages import INIT_SCENARIO, Parameters, Start, encode
from vidflow.domain.scenario import DEFAULT_POOL, Outcome, Skip, State, is_due
from vidflow.domain.waiting import ComponentStatus
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.pages import MAX_PAGE_BYTES, trim_page
from vidflow.infra.postgres.system_status import COMPONENT_STATUS_COLUMNS

_PLACEHOLDER_UUID: Final = "00000000-0000-0000-0000-000000000000"
_START: Final = encode(Start(_PLACEHOLDER_UUID)).decode()
"""The message of a birth; the database puts in the uuid that it gives, so that a birth is one statement."""

_COLUMNS: Final = f"""
    s.scenario_uuid::text, s.source, s.model, s.fps, s.priority, s.parameters::text, s.state, s.outcome, s.error::text, s.epoch,
    s.attempt, s.runner, s.pool, s.resume_frame, s.skips::text, s.created_at, s.state_changed_at,
    extract(epoch FROM s.due_at - clock_timestamp())::float8 AS due_in_s,
    {COMPONENT_STATUS_COLUMNS}"""
_PROGRESS: Final = (
    "coalesce(p.next_frame, 0) AS frames_stored, (p.opened ->> 'frames_expected')::bigint AS frames_expected"
)
# What a scenario takes in an answer; the rest of it is of a fixed size.
_BYTES: Final = """
    1000 + octet_length(s.source) + octet_length(s.model) + octet_length(s.parameters::text) + octet_length(s.skips::text)
    + coalesce(octet_length(s.error::text), 0)"""
_MAX_UUID: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
"""Above every uuid that the database gives."""
# After a restore a scenario may have lost its progress; it is told of all the same.
_SELECT_SCENARIO: Final = (
    f"SELECT {_COLUMNS}, {_PROGRESS} FROM scenarios s LEFT JOIN scenario_progress p USING (scenario_uuid)"  # noqa: S608
)


class NewScenario(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, checked: the source as the runner is to open it, the frame rate resolved."""

    source: str
    model: str
    model_sha256: str | None
    fps: str
    priority: int
    parameters: Parameters
    pool: str = DEFAULT_POOL


class ScenarioDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario with its progress and what is there to move it, read in one snapshot."""

    scenario_uuid: str
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
    components: ComponentStatus


def insert_scenario(tx: Connection, new: NewScenario) -> ScenarioDetails:
    """A scenario's birth: its row, its progress, the first row of its history and its message, in one statement or not at all."""
    query = f"""
        WITH given AS MATERIALIZED (
            SELECT uuidv7() AS scenario_uuid
        ), s AS (
            INSERT INTO scenarios (scenario_uuid, source, model, model_sha256, fps, priority, pool, parameters)
            SELECT scenario_uuid, %(source)s, %(model)s, %(model_sha256)s, %(fps)s, %(priority)s, %(pool)s, %(parameters)s::jsonb
              FROM given
         RETURNING *
        ), progress AS (
            INSERT INTO scenario_progress (scenario_uuid)
            SELECT scenario_uuid FROM given
        ), history AS (
            INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, reason, epoch, attempt)
            SELECT scenario_uuid, 0, NULL, state, 'init requested', epoch, attempt FROM s
        ), message AS (
            INSERT INTO outbox (topic, key, kind, epoch, payload)
            SELECT %(topic)s, scenario_uuid::text, 'start', 0, convert_to(replace(%(start)s, %(nobody)s, scenario_uuid::text), 'UTF8')
              FROM given
        )
        SELECT {_COLUMNS}, 0::bigint AS frames_stored, NULL::bigint AS frames_expected FROM s
    """  # noqa: S608 - columns of our own
    values = {
        **msgspec.structs.asdict(new),
        "parameters": msgspec.json.encode(new.parameters).decode(),
        "topic": INIT_SCENARIO,
        "start": _START,
        "nobody": _PLACEHOLDER_UUID,
    }
    row = tx.cursor(row_factory=dict_row).execute(query, values).fetchone()
    assert row is not None
    return _decode_details(row)


class QueueTotals(msgspec.Struct, frozen=True):
    """The scenarios that wait for a runner: how many, and how many bytes they take together."""

    scenarios: int
    bytes: int


def read_queue_totals(tx: Connection) -> QueueTotals:
    """Return what waits, from totals that the database keeps: the cost does not depend on how much that is."""
    [(scenarios, size_bytes)] = tx.execute(
        "SELECT coalesce(sum(scenarios), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM queue_totals"
    ).fetchall()
    return QueueTotals(scenarios, size_bytes)


def estimate_size_bytes(new: NewScenario) -> int:
    """Return about how many bytes a scenario takes in the queue; the database counts its own."""
    return len(new.source.encode()) + len(new.model.encode()) + len(msgspec.json.encode(new.parameters))


def find_scenario(tx: Connection, scenario_uuid: str) -> ScenarioDetails | None:
    """One scenario; None where there is none of this uuid."""
    query = f"{_SELECT_SCENARIO} WHERE s.scenario_uuid = %s"
    row = tx.cursor(row_factory=dict_row).execute(query, (scenario_uuid,)).fetchone()
    return _decode_details(row) if row else None


def read_scenario_page(
    tx: Connection, state: State | None, after: str | None, limit: int
) -> tuple[list[ScenarioDetails], bool]:
    """Return at most `limit` scenarios older than `after`, the newest first, and whether more follow; `state`: only those in it."""
    # Not a parameter: the plan for a state that is rare is not the plan for one that is common.
    of_state = f"AND s.state = '{state}'" if state is not None else ""
    query = f"""
        WITH RECURSIVE listed AS (
            SELECT %(after)s::uuid AS scenario_uuid, 0 AS row_number, 0::bigint AS page_bytes
             UNION ALL
            SELECT next.scenario_uuid, listed.row_number + 1, listed.page_bytes + next.bytes
              FROM listed
             CROSS JOIN LATERAL (
                   SELECT s.scenario_uuid, {_BYTES} AS bytes
                     FROM scenarios s
                    WHERE s.scenario_uuid < listed.scenario_uuid {of_state}
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
    """  # noqa: S608 - columns of our own
    values = {"after": after or _MAX_UUID, "limit": limit, "page_bytes": MAX_PAGE_BYTES}
    rows = tx.cursor(row_factory=dict_row).execute(query, values).fetchall()
    sizes = [row.pop("page_bytes") for row in rows]
    return trim_page([(_decode_details(row), size) for row, size in zip(rows, sizes, strict=True)], limit)


def exists(tx: Connection, scenario_uuid: str) -> bool:
    """Whether there is a scenario of this uuid."""
    return tx.execute("SELECT FROM scenarios WHERE scenario_uuid = %s", (scenario_uuid,)).fetchone() is not None


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
            "skips": msgspec.json.decode(row["skips"], type=tuple[Skip, ...]),
            "due": is_due(row.pop("due_in_s")),
            "components": components,
        }
    )
