"""Read scenarios for lifecycle decisions, and write decisions whose scenarios have not changed in the meantime.

In pipeline mode a statement waits for an earlier one only if its result is needed, so that a write takes two round trips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg.rows import dict_row

from vidflow.domain.access import WriteScope
from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import OutgoingCommand
from vidflow.domain.messages import Deploy, Message, Parameters, ResumePoint, Shutdown, StopWork, encode
from vidflow.domain.scenario import Decision, Outcome, Scenario, Send, Skip, State
from vidflow.domain.topics import INIT_SCENARIO, commands_topic
from vidflow.infra.postgres import history, outbox, progress
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.parameters import columns, to_json
from vidflow.infra.postgres.scopes import IS_IN_SCOPE


def decode_scenario(row: dict[str, Any]) -> Scenario:
    """Return the scenario of a row, in which `error` and `skips` are JSON texts or null."""
    return Scenario(
        scenario_uuid=row["scenario_uuid"],
        state=State(row["state"]),
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        error=msgspec.json.decode(row["error"], type=ErrorInfo) if row["error"] else None,
        epoch=row["epoch"],
        attempt=row["attempt"],
        requeues=row["requeues"],
        runner=row["runner"],
        resume_frame=row["resume_frame"],
        skips=msgspec.json.decode(row["skips"], type=tuple[Skip, ...]) if row["skips"] else (),
        skips_poison=row["skips_poison"],
        pool=row["pool"],
    )


def read_scenario(tx: Connection, scope: WriteScope, scenario_uuid: str) -> Scenario | None:
    """Return a scenario to change, or None if it does not exist in this scope."""
    query = f"""
        SELECT scenario_uuid::text, state, outcome, error::text, epoch, attempt, requeues, runner, resume_frame, skips::text, pool,
               coalesce(parameters ->> 'on_poison' = 'skip', false) AS skips_poison
          FROM scenarios s
         WHERE scenario_uuid = %(scenario_uuid)s AND {IS_IN_SCOPE}
    """  # noqa: S608 - a constant condition
    values = {"scenario_uuid": scenario_uuid, "owner": scope.only_owner}
    row = tx.cursor(row_factory=dict_row).execute(query, values).fetchone()
    return decode_scenario(row) if row else None


def write_decisions(
    tx: Connection, decisions: Sequence[Decision], commands: Sequence[OutgoingCommand] = ()
) -> list[Decision]:
    """Update each scenario that is still in the state, epoch and pool in which it was read. Return the decisions that took effect.

    History and outbox rows are written for these decisions only. `commands` are sent to their runners again, except those that still wait
    in the outbox. The caller owns the transaction and retries or drops the other decisions.
    """
    changes = [decision for decision in decisions if decision.after is not None]
    moved = _move(tx, changes) if changes else set()
    effective = [decision for decision in changes if decision.before.scenario_uuid in moved]
    if effective:
        history.add_transitions(tx, effective)
        _write_progress(tx, effective)
    deployed = [decision.before.scenario_uuid for decision in effective if decision.send is Send.DEPLOY]
    resent = {command.scenario_uuid for command in commands if command.kind == "deploy"}
    deploys = _deploy_rows(tx, [*deployed, *resent])
    outbox.add_messages(tx, [row for decision in effective if (row := _message_row(decision))])
    outbox.add_messages(tx, [row for row in deploys if row.key not in resent])
    other_commands = [
        _row(
            commands_topic(command.pool),
            command.scenario_uuid,
            command.kind,
            command.epoch,
            command.runner,
            command.command,
        )
        for command in commands
        if command.command
    ]
    outbox.add_commands(tx, [row for row in deploys if row.key in resent] + other_commands)
    return effective


def _move(tx: Connection, decisions: Sequence[Decision]) -> set[str]:
    rows = tx.execute(
        """
        WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS at)
        UPDATE scenarios s
           SET state = n.state, outcome = n.outcome, error = n.error::jsonb, epoch = n.epoch, attempt = n.attempt,
               requeues = n.requeues, runner = n.runner, resume_frame = n.resume_frame, skips = n.skips::jsonb,
               due_at = clock.at + make_interval(secs => n.delay_s), state_changed_at = clock.at
          FROM clock, unnest(%b::uuid[], %b::text[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::int[], %b::int[],
                      %b::text[], %b::bigint[], %b::text[], %b::float8[], %b::text[])
               AS n (scenario_uuid, state_read, epoch_read, state, outcome, error, epoch, attempt, requeues,
                     runner, resume_frame, skips, delay_s, pool_read)
         WHERE s.scenario_uuid = n.scenario_uuid AND s.state = n.state_read AND s.epoch = n.epoch_read
           AND s.pool = n.pool_read
     RETURNING s.scenario_uuid::text
        """,
        columns(
            (
                d.before.scenario_uuid, d.before.state.value, d.before.epoch, after.state.value,
                after.outcome.value if after.outcome else None, to_json(after.error) if after.error else None, after.epoch, after.attempt,
                after.requeues, after.runner, after.resume_frame, to_json(after.skips), d.delay_s,
                d.before.pool,
            )
            for d in decisions
            if (after := d.after)
        ),
    ).fetchall()  # fmt: skip
    return {uuid for (uuid,) in rows}


def _write_progress(tx: Connection, decisions: Sequence[Decision]) -> None:
    """Close the progress of scenarios that become inactive, and set the epoch of those that are deployed.

    The progress rows are locked in a fixed order. The inbox checks `closed` under the same lock, so that no result is stored after it. The
    resume frame is read under the lock as well.
    """
    closed = [d.before.scenario_uuid for d in decisions if d.after and d.after.state is State.INACTIVE]
    raised = [d.after for d in decisions if d.send is Send.DEPLOY and d.after]
    if closed or raised:
        progress.lock_progress_rows(tx, [*closed, *(scenario.scenario_uuid for scenario in raised)])
    if closed:
        progress.close_progress(tx, closed)
    if raised:
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
            columns((scenario.scenario_uuid, scenario.epoch) for scenario in raised),
        )


def _message_row(decision: Decision) -> outbox.OutboxMessage | None:
    """Return the outbox row of a stop or a shutdown. A deploy needs columns of the tables: see `_deploy_rows`."""
    scenario = decision.after
    if scenario is None or decision.send not in {Send.STOP, Send.SHUTDOWN}:
        return None
    uuid = scenario.scenario_uuid
    if decision.send is Send.STOP:
        stop = StopWork(uuid, scenario.epoch)
        return _row(commands_topic(scenario.pool), uuid, "stop", scenario.epoch, scenario.runner, stop)
    return _row(INIT_SCENARIO, uuid, "shutdown", scenario.epoch, None, Shutdown(uuid))


def _row(topic: str, key: str, kind: str, epoch: int, runner: str | None, message: Message) -> outbox.OutboxMessage:
    return outbox.OutboxMessage(topic=topic, key=key, kind=kind, epoch=epoch, runner=runner, payload=encode(message))


def _deploy_rows(tx: Connection, uuids: Sequence[str]) -> list[outbox.OutboxMessage]:
    """Return the outbox rows that deploy these scenarios, without scenarios that are not in a deployed state now."""
    if not uuids:
        return []
    rows = (
        tx.cursor(row_factory=dict_row)
        .execute(
            """
        SELECT s.scenario_uuid::text, s.epoch, s.runner, s.pool, s.source, s.model, s.model_sha256, s.fps, s.parameters, s.attempt, s.skips,
               p.next_frame, p.origin_pts, p.time_base, p.last_pts, p.last_time_s, p.opened -> 'identity' AS identity,
               p.warnings @> '[{"code": "time_adjusted"}]' AS clock_jumped,
               (SELECT max(g.to_s)
                  FROM scenario_gaps g
                 WHERE g.scenario_uuid = p.scenario_uuid AND g.after_frame = p.next_frame - 1) AS gap_until_s,
               p.opened @> '{"live": true}' AS live
          FROM scenarios s
          JOIN scenario_progress p USING (scenario_uuid)
         WHERE s.scenario_uuid = ANY(%b::uuid[]) AND s.state IN ('in_startup_processing', 'active')
        """,
            (list(uuids),),
        )
        .fetchall()
    )
    return [
        _row(
            commands_topic(row["pool"]),
            row["scenario_uuid"],
            "deploy",
            row["epoch"],
            row["runner"],
            _decode_deploy(row),
        )
        for row in rows
    ]


def _decode_deploy(row: dict[str, Any]) -> Deploy:
    return Deploy(
        scenario_uuid=row["scenario_uuid"],
        epoch=row["epoch"],
        source=row["source"],
        model=row["model"],
        model_sha256=row["model_sha256"],
        fps=row["fps"],
        parameters=msgspec.convert(row["parameters"], Parameters),
        resume=msgspec.convert(row, ResumePoint),
        attempt=row["attempt"],
        skips=msgspec.convert(row["skips"], tuple[Skip, ...]),
    )
