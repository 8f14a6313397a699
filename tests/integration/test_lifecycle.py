"""Decisions are written only if the scenario is unchanged, together with their history and messages."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import psycopg
import pytest
from tests.scopes import EVERYTHING

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import ScenarioView
from vidflow.domain.messages import Deploy, End, EndReason, Gap, GapReason, Parameters, StopWork, decode_command
from vidflow.domain.progress import Progress
from vidflow.domain.reason_codes import ReasonCode
from vidflow.domain.scenario import (
    Event,
    Kind,
    Outcome,
    RetryPolicy,
    Scenario,
    State,
    build_shutdown_request,
    decide,
    next_epoch,
)
from vidflow.domain.warnings import ScenarioWarning, WarningCode
from vidflow.infra.postgres import history, leader_tables, lifecycle, outbox, scenarios
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.gaps import add_gaps
from vidflow.infra.postgres.progress import write_progress

RUNNER = "runner-1"


def create_scenario(connection: Connection) -> Scenario:
    details = scenarios.insert_scenario(
        connection,
        EVERYTHING,
        scenarios.NewScenario(
            source="clip.mp4", model="motion", model_sha256=None, fps="2", priority=0, parameters=Parameters()
        ),
    )
    scenario = lifecycle.read_scenario(connection, EVERYTHING, details.scenario_uuid)
    assert scenario is not None
    outbox.remove_published(connection, [row.id for row in outbox.read_pending_messages(connection, 10)])
    return scenario


def assigned_event(scenario: Scenario, database_ms: int = 1000) -> Event:
    return Event(
        kind=Kind.ASSIGNED, reason_code=ReasonCode.ASSIGNED, reason="assigned", epoch=scenario.epoch, runner=RUNNER,
        new_epoch=next_epoch(scenario.epoch, database_ms), resume_frame=0,
    )  # fmt: skip


def write_event(connection: Connection, scenario: Scenario, event: Event) -> int:
    with connection.transaction():
        return len(lifecycle.write_decisions(connection, [decide(scenario, event)]))


def reread(connection: Connection, scenario: Scenario) -> Scenario:
    current = lifecycle.read_scenario(connection, EVERYTHING, scenario.scenario_uuid)
    assert current is not None
    return current


def read_views(connection: Connection) -> Sequence[ScenarioView]:
    return leader_tables.read_tables_snapshot(connection, [], None, RetryPolicy()).scenarios


def test_an_assignment_sets_its_epoch_and_sends_one_deploy(connection: Connection) -> None:
    scenario = create_scenario(connection)
    assert write_event(connection, scenario, assigned_event(scenario)) == 1
    after = reread(connection, scenario)
    assert (after.state, after.epoch, after.runner) == (State.IN_STARTUP_PROCESSING, 1000, RUNNER)
    [view] = read_views(connection)
    assert (view.progress.epoch, view.deploy_waits) == (1000, True)
    [row] = outbox.read_pending_messages(connection, 10)
    deploy = decode_command(row.payload)
    assert isinstance(deploy, Deploy)
    assert (deploy.source, deploy.fps, deploy.epoch, row.runner) == ("clip.mp4", "2", 1000, RUNNER)


def test_a_deploy_rejected_by_kafka_is_read_with_its_scenario(connection: Connection) -> None:
    scenario = create_scenario(connection)
    write_event(connection, scenario, assigned_event(scenario))
    [row] = outbox.read_pending_messages(connection, 10)
    outbox.set_aside(connection, row.id, "Broker: Message size too large")
    [view] = read_views(connection)
    assert (view.deploy_waits, view.deploy_refused) == (False, "Broker: Message size too large")
    write_event(
        connection,
        reread(connection, scenario),
        Event(
            kind=Kind.RETURNED, reason_code=ReasonCode.DEPLOY_NOT_TAKEN, reason="not_taken", epoch=1000, resume_frame=0
        ),
    )
    write_event(connection, reread(connection, scenario), assigned_event(reread(connection, scenario), 2000))
    assert [view.deploy_refused for view in read_views(connection)] == [None], "the error is of an older epoch"


def test_a_deployment_resumes_after_the_rows_stored_when_it_is_written(
    connection: Connection,
) -> None:
    scenario = create_scenario(connection)
    connection.execute("UPDATE scenario_progress SET next_frame = 7, last_pts = 70, origin_pts = 0, time_base = '1/10'")
    write_event(connection, scenario, assigned_event(scenario))
    assert reread(connection, scenario).resume_frame == 7
    deploy = decode_command(outbox.read_pending_messages(connection, 10)[0].payload)
    assert isinstance(deploy, Deploy)
    assert (deploy.resume.next_frame, deploy.resume.last_pts, deploy.resume.clock_jumped) == (7, 70, False)
    assert deploy.resume.gap_until_s is None


def test_a_deployment_carries_the_end_of_the_gaps_after_the_last_frame(connection: Connection) -> None:
    scenario = create_scenario(connection)
    write_progress(connection, {scenario.scenario_uuid: Progress(next_frame=8)})
    ends = [(6, 20.0), (7, 3.5), (7, 9.5), (8, 30.0)]
    for index, (after, to_s) in enumerate(ends):
        gap = Gap(1.0, to_s, GapReason.DROPPED) if index < 2 else Gap(3.5, to_s, GapReason.STALLED)
        add_gaps(connection, [End(scenario.scenario_uuid, 1, after, EndReason.STOPPED, (gap,))])
    write_event(connection, scenario, assigned_event(scenario))
    deploy = decode_command(outbox.read_pending_messages(connection, 10)[0].payload)
    assert isinstance(deploy, Deploy)
    assert deploy.resume.gap_until_s == 9.5


@pytest.mark.parametrize("code", WarningCode)
def test_a_deployment_carries_whether_the_clock_has_jumped(connection: Connection, code: WarningCode) -> None:
    scenario = create_scenario(connection)
    jumped = Progress(next_frame=8, warnings=(ScenarioWarning(code, 1, 7, 2.0, 7, 2.0),))
    write_progress(connection, {scenario.scenario_uuid: jumped})
    write_event(connection, scenario, assigned_event(scenario))
    deploy = decode_command(outbox.read_pending_messages(connection, 10)[0].payload)
    assert isinstance(deploy, Deploy)
    assert deploy.resume.clock_jumped is (code is WarningCode.TIME_ADJUSTED)


def test_of_two_decisions_on_the_same_state_only_the_first_takes_effect(connection: Connection) -> None:
    scenario = create_scenario(connection)
    assert write_event(connection, scenario, assigned_event(scenario)) == 1
    assert write_event(connection, scenario, build_shutdown_request()) == 0
    assert reread(connection, scenario).state is State.IN_STARTUP_PROCESSING
    assert len(outbox.read_pending_messages(connection, 10)) == 1


def test_each_transition_has_a_history_row_in_order(connection: Connection) -> None:
    scenario = create_scenario(connection)
    write_event(connection, scenario, assigned_event(scenario))
    write_event(connection, reread(connection, scenario), build_shutdown_request())
    taken = Event(kind=Kind.TAKEN, reason_code=ReasonCode.SHUTDOWN_STARTED, reason="taken", epoch=1000)
    write_event(connection, reread(connection, scenario), taken)
    drained = Event(kind=Kind.DRAINED, reason_code=ReasonCode.END_MARKER_STORED, reason="end marker stored", epoch=1000)
    write_event(connection, reread(connection, scenario), drained)
    transitions, _ = history.read_history_page(
        connection, EVERYTHING, scenario.scenario_uuid, history.BEFORE_FIRST_TRANSITION, 100
    )
    assert [(row.number, row.to_state, row.reason_code) for row in transitions] == [
        (0, "init_startup", "created"),
        (1, "in_startup_processing", "assigned"),
        (2, "init_shutdown", "shutdown_requested"),
        (3, "in_shutdown_processing", "shutdown_started"),
        (4, "inactive", "end_marker_stored"),
    ]
    assert reread(connection, scenario).outcome is Outcome.STOPPED
    assert read_views(connection) == []
    assert connection.execute("SELECT closed FROM scenario_progress").fetchone() == (True,)


def test_a_shutdown_sends_a_stop_only_for_a_deployed_scenario(
    connection: Connection,
) -> None:
    deployed, waiting = create_scenario(connection), create_scenario(connection)
    write_event(connection, deployed, assigned_event(deployed))
    for scenario in (deployed, waiting):
        write_event(connection, reread(connection, scenario), build_shutdown_request())
        stopping = reread(connection, scenario)
        write_event(
            connection,
            stopping,
            Event(kind=Kind.TAKEN, reason_code=ReasonCode.SHUTDOWN_STARTED, reason="taken", epoch=stopping.epoch),
        )
    stops = [row for row in outbox.read_pending_messages(connection, 10) if row.kind == "stop"]
    assert [decode_command(row.payload) for row in stops] == [StopWork(deployed.scenario_uuid, 1000)]


def test_invariant_3_the_tables_reject_states_that_the_lifecycle_rules_out(connection: Connection) -> None:
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


def test_a_lost_race_does_not_affect_other_decisions_of_a_batch(connection: Connection) -> None:
    batch = [create_scenario(connection) for _ in range(50)]
    write_event(connection, batch[7], build_shutdown_request())
    decisions = [decide(scenario, assigned_event(scenario)) for scenario in batch]
    with connection.transaction():
        effective = lifecycle.write_decisions(connection, decisions)
    assert {d.before.scenario_uuid for d in effective} == {s.scenario_uuid for s in batch} - {batch[7].scenario_uuid}
    deploys = [row for row in outbox.read_pending_messages(connection, 100) if row.kind == "deploy"]
    assert len(deploys) == 49


def test_an_error_is_read_as_it_was_written(connection: Connection) -> None:
    scenario = create_scenario(connection)
    error = {"code": "no_frames", "message": "no frames", "frame_number": 3}
    write_event(connection, scenario, assigned_event(scenario))
    deployed = reread(connection, scenario)
    failed = Event(
        kind=Kind.FAILED,
        reason_code=ReasonCode.NON_RETRYABLE_ERROR,
        reason="no_frames",
        epoch=1000,
        error=msgspec.convert(error, ErrorInfo),
    )
    write_event(connection, deployed, failed)
    assert msgspec.to_builtins(reread(connection, scenario).error) == error


def test_a_decision_about_a_scenario_whose_pool_was_changed_meanwhile_has_no_effect(connection: Connection) -> None:
    scenario = create_scenario(connection)
    decision = decide(scenario, build_shutdown_request())
    assert scenarios.change_waiting(connection, EVERYTHING, scenario.scenario_uuid, priority=None, pool="gpu")
    assert lifecycle.write_decisions(connection, [decision]) == []
    changed = lifecycle.read_scenario(connection, EVERYTHING, scenario.scenario_uuid)
    assert changed is not None
    assert (changed.pool, changed.state) == ("gpu", scenario.state)
    assert lifecycle.write_decisions(connection, [decide(changed, build_shutdown_request())]) != []
