"""The lifecycle's rows: read for a decision, written back where they are still as they were read. Not the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from psycopg.rows import dict_row

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import Given, Known
from vidflow.domain.messages import (
    INIT_SCENARIO,
    Deploy,
    Message,
    Parameters,
    Resume,
    Shutdown,
    StopWork,
    commands_topic,
    encode,
)  # fmt: skip
from vidflow.domain.progress import Progress
from vidflow.domain.scenario import Decision, Outcome, Scenario, Send, Skip, State, is_due
from vidflow.infra import outbox, results
from vidflow.infra.postgres import Connection

LIFECYCLE_COLUMNS: Final = (
    "scenario_uuid::text, state, outcome, error, epoch, attempt, returns, runner, resume_frame, skips, parameters"
)


def scenario_of(row: dict[str, Any]) -> Scenario:
    """The lifecycle's part of a row of scenarios."""
    return Scenario(
        scenario_uuid=row["scenario_uuid"],
        state=State(row["state"]),
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        error=msgspec.convert(row["error"], ErrorInfo | None),
        epoch=row["epoch"],
        attempt=row["attempt"],
        returns=row["returns"],
        runner=row["runner"],
        resume_frame=row["resume_frame"],
        skips=msgspec.convert(row["skips"], tuple[Skip, ...]),
        skips_poison=row["parameters"].get("on_poison") == "skip",
    )


def read_one(tx: Connection, scenario_uuid: str) -> Scenario | None:
    """One scenario; None where there is none of this uuid."""
    query = f"SELECT {LIFECYCLE_COLUMNS} FROM scenarios WHERE scenario_uuid = %s"  # noqa: S608 - columns of our own
    row = tx.cursor(row_factory=dict_row).execute(query, (scenario_uuid,)).fetchone()
    return scenario_of(row) if row else None


def database_seconds(tx: Connection) -> float:
    """The database's clock, as seconds since 1970: what epochs and caught-up times are made of."""
    row = tx.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None  # a SELECT without FROM gives a row
    return float(row[0])


def unfinished(tx: Connection) -> list[Known]:
    """All scenarios that are not inactive, with their progress: what the leader compares the reports with."""
    rows = (
        tx.cursor(row_factory=dict_row)
        .execute(
            """
        SELECT s.scenario_uuid::text, s.state, s.outcome, s.error, s.epoch, s.attempt, s.returns, s.runner, s.resume_frame,
               s.skips, s.parameters, s.priority,
               extract(epoch FROM s.created_at)::float8 AS since_s,
               extract(epoch FROM s.due_at - clock_timestamp())::float8 AS due_in_s,
               s.state = 'in_startup_processing' AND EXISTS (
                   SELECT FROM outbox o
                    WHERE o.key = s.scenario_uuid::text AND o.kind = 'deploy' AND o.epoch = s.epoch
                      AND o.published_at IS NULL AND o.error IS NULL) AS deploy_waits,
               p.epoch AS progress_epoch, p.closed, p.next_frame, p.last_pts, p.end_epoch, p.end_last_frame, p.end_reason, p.hole_epoch
          FROM scenarios s
          JOIN scenario_progress p USING (scenario_uuid)
         WHERE s.state <> 'inactive'
        """
        )
        .fetchall()
    )
    return [_known_of(row) for row in rows]


def _known_of(row: dict[str, Any]) -> Known:
    progress = Progress(
        epoch=row["progress_epoch"],
        closed=row["closed"],
        next_frame=row["next_frame"],
        last_pts=row["last_pts"],
        end_epoch=row["end_epoch"],
        end_last_frame=row["end_last_frame"],
        end_reason=results.end_reason_of(row["end_reason"]),
        hole_epoch=row["hole_epoch"],
    )
    return Known(
        scenario_of(row), progress, row["priority"], row["since_s"], is_due(row["due_in_s"]), row["deploy_waits"]
    )


def write_back(tx: Connection, decisions: Sequence[Decision], pool: str = "default") -> list[Decision]:
    """Moves each scenario that is still in the state and epoch in which it was read; returns the decisions that took effect.

    History and outbox rows are written for these alone. The caller owns the transaction, and retries or drops the others.
    """
    wanted = [decision for decision in decisions if decision.after is not None]
    if not wanted:
        return []
    moved = _move(tx, wanted)
    effective = [decision for decision in wanted if decision.before.scenario_uuid in moved]
    _write_history(tx, effective)
    _close(tx, [d.before.scenario_uuid for d in effective if d.after and d.after.state is State.INACTIVE])
    _raise_epochs(tx, [d.after for d in effective if d.send is Send.DEPLOY and d.after])
    rows = [row for decision in effective if (row := _message_row(decision, pool))]
    rows += deploy_rows(tx, [d.before.scenario_uuid for d in effective if d.send is Send.DEPLOY], pool)
    outbox.add(tx, rows)
    return effective


def _move(tx: Connection, decisions: Sequence[Decision]) -> set[str]:
    after = [decision.after for decision in decisions if decision.after]
    rows = tx.execute(
        """
        UPDATE scenarios s
           SET state = n.state, outcome = n.outcome, error = n.error::jsonb, epoch = n.epoch, attempt = n.attempt,
               returns = n.returns, runner = n.runner, resume_frame = n.resume_frame, skips = n.skips::jsonb,
               due_at = clock_timestamp() + make_interval(secs => n.delay_s), state_changed_at = clock_timestamp()
          FROM unnest(%b::uuid[], %b::text[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::int[], %b::int[],
                      %b::text[], %b::bigint[], %b::text[], %b::float8[])
               AS n (scenario_uuid, state_read, epoch_read, state, outcome, error, epoch, attempt, returns,
                     runner, resume_frame, skips, delay_s)
         WHERE s.scenario_uuid = n.scenario_uuid AND s.state = n.state_read AND s.epoch = n.epoch_read
     RETURNING s.scenario_uuid::text
        """,
        (
            [d.before.scenario_uuid for d in decisions],
            [d.before.state.value for d in decisions],
            [d.before.epoch for d in decisions],
            [a.state.value for a in after],
            [a.outcome.value if a.outcome else None for a in after],
            [_json(a.error) if a.error else None for a in after],
            [a.epoch for a in after],
            [a.attempt for a in after],
            [a.returns for a in after],
            [a.runner for a in after],
            [a.resume_frame for a in after],
            [_json(a.skips) for a in after],
            [d.delay_s for d in decisions],
        ),
    ).fetchall()
    return {uuid for (uuid,) in rows}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _write_history(tx: Connection, decisions: Sequence[Decision]) -> None:
    """One row a move. Its number is safe, since the scenario's row is locked by the move itself."""
    tx.execute(
        """
        INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, reason, epoch, attempt, runner, detail)
        SELECT n.scenario_uuid,
               (SELECT coalesce(max(h.number) + 1, 0) FROM scenario_history h WHERE h.scenario_uuid = n.scenario_uuid),
               n.from_state, n.to_state, n.reason, n.epoch, n.attempt, n.runner, n.detail
          FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::int[], %b::text[], %b::text[])
               AS n (scenario_uuid, from_state, to_state, reason, epoch, attempt, runner, detail)
        """,
        (
            [d.before.scenario_uuid for d in decisions],
            [d.before.state.value for d in decisions],
            [d.after.state.value for d in decisions if d.after],
            [d.event.reason for d in decisions],
            [d.after.epoch for d in decisions if d.after],
            [d.after.attempt for d in decisions if d.after],
            [d.after.runner for d in decisions if d.after],
            [d.event.detail for d in decisions],
        ),
    )


def _close(tx: Connection, uuids: Sequence[str]) -> None:
    """No row is stored behind this: the inbox looks at `closed` under the same lock."""
    if uuids:
        results.lock_progress(tx, uuids)
        tx.execute("UPDATE scenario_progress SET closed = true WHERE scenario_uuid = ANY(%b::uuid[])", (list(uuids),))


def _raise_epochs(tx: Connection, scenarios: Sequence[Scenario]) -> None:
    """Makes the new epochs count, and sets the resume point to what is stored at that moment: both under the progress lock."""
    if not scenarios:
        return
    uuids = [scenario.scenario_uuid for scenario in scenarios]
    results.lock_progress(tx, uuids)
    tx.execute(
        """
        WITH raised AS (
            UPDATE scenario_progress p
               SET epoch = n.epoch
              FROM unnest(%b::uuid[], %b::bigint[]) AS n (scenario_uuid, epoch)
             WHERE p.scenario_uuid = n.scenario_uuid
         RETURNING p.scenario_uuid, p.next_frame)
        UPDATE scenarios s
           SET resume_frame = raised.next_frame
          FROM raised
         WHERE s.scenario_uuid = raised.scenario_uuid
        """,
        (uuids, [scenario.epoch for scenario in scenarios]),
    )


def _message_row(decision: Decision, pool: str) -> outbox.Row | None:
    """The message of a step whose body needs nothing but the scenario's name and epoch."""
    scenario = decision.after
    if scenario is None or decision.send not in {Send.STOP, Send.SHUTDOWN}:
        return None
    uuid = scenario.scenario_uuid
    if decision.send is Send.STOP:
        return _row(commands_topic(pool), uuid, "stop", scenario.epoch, scenario.runner, StopWork(uuid, scenario.epoch))
    return _row(INIT_SCENARIO, uuid, "shutdown", scenario.epoch, None, Shutdown(uuid))


def _row(topic: str, key: str, kind: str, epoch: int, runner: str | None, message: Message) -> outbox.Row:
    return outbox.Row(topic=topic, key=key, kind=kind, epoch=epoch, runner=runner, payload=encode(message))


def deploy_rows(tx: Connection, uuids: Sequence[str], pool: str) -> list[outbox.Row]:
    """The deploys of scenarios that are deployed now, as the tables have them: the first time and each time again."""
    if not uuids:
        return []
    rows = (
        tx.cursor(row_factory=dict_row)
        .execute(
            """
        SELECT s.scenario_uuid::text, s.epoch, s.runner, s.source, s.model, s.model_sha256, s.fps, s.parameters, s.attempt, s.skips,
               p.next_frame, p.origin_pts, p.time_base, p.last_pts, p.last_time_s, p.opened -> 'identity' AS identity
          FROM scenarios s
          JOIN scenario_progress p USING (scenario_uuid)
         WHERE s.scenario_uuid = ANY(%b::uuid[]) AND s.state IN ('in_startup_processing', 'active')
        """,
            (list(uuids),),
        )
        .fetchall()
    )
    return [
        _row(commands_topic(pool), row["scenario_uuid"], "deploy", row["epoch"], row["runner"], _deploy_of(row))
        for row in rows
    ]


def _deploy_of(row: dict[str, Any]) -> Deploy:
    return Deploy(
        scenario_uuid=row["scenario_uuid"],
        epoch=row["epoch"],
        source=row["source"],
        model=row["model"],
        model_sha256=row["model_sha256"],
        fps=row["fps"],
        parameters=msgspec.convert(row["parameters"], Parameters),
        resume=msgspec.convert(row, Resume),
        attempt=row["attempt"],
        skips=msgspec.convert(row["skips"], tuple[Skip, ...]),
    )


def command_rows(tx: Connection, commands: Sequence[Given], pool: str) -> list[outbox.Row]:
    """The commands that the leader gives again, as outbox rows."""
    again = deploy_rows(tx, [one.scenario_uuid for one in commands if one.kind == "deploy"], pool)
    topic = commands_topic(pool)
    return again + [
        _row(topic, one.scenario_uuid, one.kind, one.epoch, one.runner, one.command) for one in commands if one.command
    ]
