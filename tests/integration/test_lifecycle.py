"""Decisions written back: only where the row is still as it was read, each with its history and its messages."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import psycopg
import pytest

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import ScenarioView
from vidflow.domain.messages import Deploy, Parameters, StopWork, decode_command
from vidflow.domain.scenario import Event, Kind, Outcome, RetryPolicy, Scenario, State, decide, next_epoch
from vidflow.infra.postgres import history, leader_tables, lifecycle, outbox, scenarios
from vidflow.infra.postgres.connection import Connection

RUNNER = "runner-1"


def create_scenario(tables: Connection) -> Scenario:
    shown = scenarios.insert_scenario(
        tables,
        scenarios.NewScenario(
            source="clip.mp4", model="motion", model_sha256=None, fps="2", priority=0, parameters=Parameters()
        ),
    )
    found = lifecycle.read_scenario(tables, shown.scenario_uuid)
    assert found is not None
    outbox.remove_published(tables, [one.id for one in outbox.read_pending_messages(tables, 10)])
    return found


def assigned_event(scenario: Scenario, database_ms: int = 1000) -> Event:
    return Event(
        kind=Kind.ASSIGNED, reason="assigned", epoch=scenario.epoch, runner=RUNNER,
        new_epoch=next_epoch(scenario.epoch, database_ms), resume_frame=0,
    )  # fmt: skip


def write_event(tables: Connection, scenario: Scenario, event: Event) -> int:
    with tables.transaction():
        return len(lifecycle.write_decisions(tables, [decide(scenario, event)]))


def reread(tables: Connection, scenario: Scenario) -> Scenario:
    found = lifecycle.read_scenario(tables, scenario.scenario_uuid)
    assert found is not None
    return found


def engaged(tables: Connection) -> Sequence[ScenarioView]:
    return leader_tables.read_tables_snapshot(tables, [], None, RetryPolicy()).scenarios


def test_an_assignment_makes_its_epoch_count_and_sends_one_deploy(connection: Connection) -> None:
    scenario = create_scenario(connection)
    assert write_event(connection, scenario, assigned_event(scenario)) == 1
    after = reread(connection, scenario)
    assert (after.state, after.epoch, after.runner) == (State.IN_STARTUP_PROCESSING, 1000, RUNNER)
    [known] = engaged(connection)
    assert (known.progress.epoch, known.deploy_waits) == (1000, True)
    [row] = outbox.read_pending_messages(connection, 10)
    deploy = decode_command(row.payload)
    assert isinstance(deploy, Deploy)
    assert (deploy.source, deploy.fps, deploy.epoch, row.runner) == ("clip.mp4", "2", 1000, RUNNER)


def test_a_deploy_that_kafka_refused_is_read_with_its_scenario(connection: Connection) -> None:
    scenario = create_scenario(connection)
    write_event(connection, scenario, assigned_event(scenario))
    [row] = outbox.read_pending_messages(connection, 10)
    outbox.set_aside(connection, row.id, "Broker: Message size too large")
    [known] = engaged(connection)
    assert (known.deploy_waits, known.deploy_refused) == (False, "Broker: Message size too large")
    write_event(
        connection,
        reread(connection, scenario),
        Event(kind=Kind.RETURNED, reason="not_taken", epoch=1000, resume_frame=0),
    )
    write_event(connection, reread(connection, scenario), assigned_event(reread(connection, scenario), 2000))
    assert [known.deploy_refused for known in engaged(connection)] == [None], "of an older epoch it says nothing"


def test_a_deployment_resumes_where_the_rows_end_at_that_moment_not_where_they_did_when_it_was_decided(
    connection: Connection,
) -> None:
    scenario = create_scenario(connection)
    connection.execute("UPDATE scenario_progress SET next_frame = 7, last_pts = 70, origin_pts = 0, time_base = '1/10'")
    write_event(connection, scenario, assigned_event(scenario))
    assert reread(connection, scenario).resume_frame == 7
    deploy = decode_command(outbox.read_pending_messages(connection, 10)[0].payload)
    assert isinstance(deploy, Deploy)
    assert (deploy.resume.next_frame, deploy.resume.last_pts) == (7, 70)


def test_of_two_decisions_about_the_same_reading_the_first_counts(connection: Connection) -> None:
    scenario = create_scenario(connection)
    assert write_event(connection, scenario, assigned_event(scenario)) == 1
    assert write_event(connection, scenario, Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested")) == 0
    assert reread(connection, scenario).state is State.IN_STARTUP_PROCESSING
    assert len(outbox.read_pending_messages(connection, 10)) == 1


def test_each_move_has_its_row_of_history_in_order(connection: Connection) -> None:
    scenario = create_scenario(connection)
    write_event(connection, scenario, assigned_event(scenario))
    write_event(
        connection, reread(connection, scenario), Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested")
    )
    write_event(connection, reread(connection, scenario), Event(kind=Kind.TAKEN, reason="taken", epoch=1000))
    write_event(
        connection, reread(connection, scenario), Event(kind=Kind.DRAINED, reason="end marker stored", epoch=1000)
    )
    moves, _ = history.read_history_page(connection, scenario.scenario_uuid, history.BEFORE_FIRST_TRANSITION, 100)
    assert [(move.number, move.to_state) for move in moves] == [
        (0, "init_startup"),
        (1, "in_startup_processing"),
        (2, "init_shutdown"),
        (3, "in_shutdown_processing"),
        (4, "inactive"),
    ]
    assert reread(connection, scenario).outcome is Outcome.STOPPED
    assert engaged(connection) == []
    assert connection.execute("SELECT closed FROM scenario_progress").fetchone() == (True,)


def test_a_shutdown_tells_the_runner_that_may_have_it_and_none_where_it_was_never_deployed(
    connection: Connection,
) -> None:
    deployed, waiting = create_scenario(connection), create_scenario(connection)
    write_event(connection, deployed, assigned_event(deployed))
    for scenario in (deployed, waiting):
        write_event(
            connection, reread(connection, scenario), Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested")
        )
        taken = reread(connection, scenario)
        write_event(connection, taken, Event(kind=Kind.TAKEN, reason="taken", epoch=taken.epoch))
    stops = [row for row in outbox.read_pending_messages(connection, 10) if row.kind == "stop"]
    assert [decode_command(row.payload) for row in stops] == [StopWork(deployed.scenario_uuid, 1000)]


def test_invariant_3_the_tables_refuse_what_the_lifecycle_forbids(connection: Connection) -> None:
    scenario = create_scenario(connection)
    for forbidden in (
        "state = 'active'",
        "outcome = 'completed'",
        "state = 'inactive'",
        "state = 'inactive', outcome = 'completed', error = '{}'",
        "epoch = 5",
        "state = 'paused'",
    ):
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(f"UPDATE scenarios SET {forbidden} WHERE scenario_uuid = %s", (scenario.scenario_uuid,))


def test_many_decisions_are_written_in_one_go_and_a_lost_race_leaves_the_others(connection: Connection) -> None:
    read = [create_scenario(connection) for _ in range(50)]
    write_event(connection, read[7], Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested"))
    decisions = [decide(scenario, assigned_event(scenario)) for scenario in read]
    with connection.transaction():
        effective = lifecycle.write_decisions(connection, decisions)
    assert {d.before.scenario_uuid for d in effective} == {s.scenario_uuid for s in read} - {read[7].scenario_uuid}
    deploys = [row for row in outbox.read_pending_messages(connection, 100) if row.kind == "deploy"]
    assert len(deploys) == 49


def test_a_skip_and_an_error_come_back_as_they_were_written(connection: Connection) -> None:
    scenario = create_scenario(connection)
    error = {"code": "no_frames", "message": "gives not one frame", "frame_number": 3}
    write_event(connection, scenario, assigned_event(scenario))
    deployed = reread(connection, scenario)
    failed = Event(kind=Kind.FAILED, reason="no_frames", epoch=1000, error=msgspec.convert(error, ErrorInfo))
    write_event(connection, deployed, failed)
    assert msgspec.to_builtins(reread(connection, scenario).error) == error
