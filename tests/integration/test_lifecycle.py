"""Decisions written back: only where the row is still as it was read, each with its history and its messages."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import psycopg
import pytest

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.leader import Known
from vidflow.domain.messages import Deploy, Parameters, StopWork, decode_command
from vidflow.domain.scenario import Event, Kind, Limits, Outcome, Scenario, State, decide, next_epoch
from vidflow.infra.postgres import history, leader_tables, lifecycle, outbox, scenarios
from vidflow.infra.postgres.connection import Connection

RUNNER = "runner-1"


def born(tables: Connection) -> Scenario:
    shown = scenarios.insert(
        tables,
        scenarios.NewScenario(
            source="clip.mp4", model="motion", model_sha256=None, fps="2", priority=0, parameters=Parameters()
        ),
    )
    found = lifecycle.read_one(tables, shown.scenario_uuid)
    assert found is not None
    outbox.remove_published(tables, [one.id for one in outbox.pending(tables, 10)])
    return found


def assigned(scenario: Scenario, database_ms: int = 1000) -> Event:
    return Event(
        kind=Kind.ASSIGNED, reason="assigned", epoch=scenario.epoch, runner=RUNNER,
        new_epoch=next_epoch(scenario.epoch, database_ms), resume_frame=0,
    )  # fmt: skip


def write(tables: Connection, scenario: Scenario, event: Event) -> int:
    with tables.transaction():
        return len(lifecycle.write_back(tables, [decide(scenario, event)]))


def again(tables: Connection, scenario: Scenario) -> Scenario:
    found = lifecycle.read_one(tables, scenario.scenario_uuid)
    assert found is not None
    return found


def engaged(tables: Connection) -> Sequence[Known]:
    return leader_tables.engagement(tables, [], None, Limits()).known


def test_an_assignment_makes_its_epoch_count_and_sends_one_deploy(tables: Connection) -> None:
    scenario = born(tables)
    assert write(tables, scenario, assigned(scenario)) == 1
    after = again(tables, scenario)
    assert (after.state, after.epoch, after.runner) == (State.IN_STARTUP_PROCESSING, 1000, RUNNER)
    [known] = engaged(tables)
    assert (known.progress.epoch, known.deploy_waits) == (1000, True)
    [row] = outbox.pending(tables, 10)
    deploy = decode_command(row.payload)
    assert isinstance(deploy, Deploy)
    assert (deploy.source, deploy.fps, deploy.epoch, row.runner) == ("clip.mp4", "2", 1000, RUNNER)


def test_a_deploy_that_kafka_refused_is_read_with_its_scenario(tables: Connection) -> None:
    scenario = born(tables)
    write(tables, scenario, assigned(scenario))
    [row] = outbox.pending(tables, 10)
    outbox.set_aside(tables, row.id, "Broker: Message size too large")
    [known] = engaged(tables)
    assert (known.deploy_waits, known.deploy_refused) == (False, "Broker: Message size too large")
    write(tables, again(tables, scenario), Event(kind=Kind.RETURNED, reason="not_taken", epoch=1000, resume_frame=0))
    write(tables, again(tables, scenario), assigned(again(tables, scenario), 2000))
    assert [known.deploy_refused for known in engaged(tables)] == [None], "of an older epoch it says nothing"


def test_a_deployment_resumes_where_the_rows_end_at_that_moment_not_where_they_did_when_it_was_decided(
    tables: Connection,
) -> None:
    scenario = born(tables)
    tables.execute("UPDATE scenario_progress SET next_frame = 7, last_pts = 70, origin_pts = 0, time_base = '1/10'")
    write(tables, scenario, assigned(scenario))
    assert again(tables, scenario).resume_frame == 7
    deploy = decode_command(outbox.pending(tables, 10)[0].payload)
    assert isinstance(deploy, Deploy)
    assert (deploy.resume.next_frame, deploy.resume.last_pts) == (7, 70)


def test_of_two_decisions_about_the_same_reading_the_first_counts(tables: Connection) -> None:
    scenario = born(tables)
    assert write(tables, scenario, assigned(scenario)) == 1
    assert write(tables, scenario, Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested")) == 0
    assert again(tables, scenario).state is State.IN_STARTUP_PROCESSING
    assert len(outbox.pending(tables, 10)) == 1


def test_each_move_has_its_row_of_history_in_order(tables: Connection) -> None:
    scenario = born(tables)
    write(tables, scenario, assigned(scenario))
    write(tables, again(tables, scenario), Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested"))
    write(tables, again(tables, scenario), Event(kind=Kind.TAKEN, reason="taken", epoch=1000))
    write(tables, again(tables, scenario), Event(kind=Kind.DRAINED, reason="end marker stored", epoch=1000))
    moves, _ = history.page(tables, scenario.scenario_uuid, history.BEFORE_THE_FIRST, 100)
    assert [(move.number, move.to_state) for move in moves] == [
        (0, "init_startup"),
        (1, "in_startup_processing"),
        (2, "init_shutdown"),
        (3, "in_shutdown_processing"),
        (4, "inactive"),
    ]
    assert again(tables, scenario).outcome is Outcome.STOPPED
    assert engaged(tables) == []
    assert tables.execute("SELECT closed FROM scenario_progress").fetchone() == (True,)


def test_a_shutdown_tells_the_runner_that_may_have_it_and_none_where_it_was_never_deployed(tables: Connection) -> None:
    deployed, waiting = born(tables), born(tables)
    write(tables, deployed, assigned(deployed))
    for scenario in (deployed, waiting):
        write(tables, again(tables, scenario), Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested"))
        taken = again(tables, scenario)
        write(tables, taken, Event(kind=Kind.TAKEN, reason="taken", epoch=taken.epoch))
    stops = [row for row in outbox.pending(tables, 10) if row.kind == "stop"]
    assert [decode_command(row.payload) for row in stops] == [StopWork(deployed.scenario_uuid, 1000)]


def test_invariant_3_the_tables_refuse_what_the_lifecycle_forbids(tables: Connection) -> None:
    scenario = born(tables)
    for forbidden in (
        "state = 'active'",
        "outcome = 'completed'",
        "state = 'inactive'",
        "state = 'inactive', outcome = 'completed', error = '{}'",
        "epoch = 5",
        "state = 'paused'",
    ):
        with pytest.raises(psycopg.errors.CheckViolation):
            tables.execute(f"UPDATE scenarios SET {forbidden} WHERE scenario_uuid = %s", (scenario.scenario_uuid,))


def test_many_decisions_are_written_in_one_go_and_a_lost_race_leaves_the_others(tables: Connection) -> None:
    read = [born(tables) for _ in range(50)]
    write(tables, read[7], Event(kind=Kind.SHUTDOWN_REQUESTED, reason="shutdown requested"))
    decisions = [decide(scenario, assigned(scenario)) for scenario in read]
    with tables.transaction():
        effective = lifecycle.write_back(tables, decisions)
    assert {d.before.scenario_uuid for d in effective} == {s.scenario_uuid for s in read} - {read[7].scenario_uuid}
    deploys = [row for row in outbox.pending(tables, 100) if row.kind == "deploy"]
    assert len(deploys) == 49


def test_a_skip_and_an_error_come_back_as_they_were_written(tables: Connection) -> None:
    scenario = born(tables)
    error = {"code": "no_frames", "message": "gives not one frame", "frame_number": 3}
    write(tables, scenario, assigned(scenario))
    deployed = again(tables, scenario)
    failed = Event(kind=Kind.FAILED, reason="no_frames", epoch=1000, error=msgspec.convert(error, ErrorInfo))
    write(tables, deployed, failed)
    assert msgspec.to_builtins(again(tables, scenario).error) == error
