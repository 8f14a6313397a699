"""The checks of the fault suite find violations: each gets tables with one thing wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row
from tests.faults import checks, live_checks
from tests.faults.violation import InvariantViolation

UUID = "01a20e0e-89d7-7249-83a0-0bbb819d329b"
VALID_SCENARIO = """
INSERT INTO scenarios (scenario_uuid, state, outcome, epoch, runner, source, model, fps)
VALUES ('{uuid}', 'inactive', 'completed', 20, 'second', '/clip.mp4', 'motion', 'all');
INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, epoch, attempt, reason_code, reason) VALUES
    ('{uuid}', 1, NULL, 'init_startup', 0, 0, 'created', 'requested'),
    ('{uuid}', 2, 'init_startup', 'in_startup_processing', 10, 0, 'assigned', 'assigned'),
    ('{uuid}', 3, 'in_startup_processing', 'init_startup', 10, 1, 'runner_lost', 'runner lost'),
    ('{uuid}', 4, 'init_startup', 'in_startup_processing', 20, 1, 'assigned', 'assigned'),
    ('{uuid}', 5, 'in_startup_processing', 'active', 20, 1, 'first_frame', 'first frame'),
    ('{uuid}', 6, 'active', 'init_shutdown', 20, 1, 'all_frames_stored', 'complete'),
    ('{uuid}', 7, 'init_shutdown', 'in_shutdown_processing', 20, 1, 'shutdown_started', 'taken'),
    ('{uuid}', 8, 'in_shutdown_processing', 'inactive', 20, 1, 'end_marker_stored', 'end marker stored');
INSERT INTO scenario_progress (scenario_uuid, epoch, next_frame, closed) VALUES ('{uuid}', 20, 3, true);
INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections) VALUES
    ('{uuid}', 0, 10, 0, 0, 96, 64, '', '[]'), ('{uuid}', 1, 20, 40, 0.04, 96, 64, '', '[]'),
    ('{uuid}', 2, 20, 80, 0.08, 96, 64, '', '[]');
"""
VIOLATIONS = {
    "a transition is missing": (3, "DELETE FROM scenario_history WHERE number = 5"),
    "a transition is illegal": (3, "UPDATE scenario_history SET to_state = 'inactive' WHERE number = 7"),
    "the history ends in another state": (3, "DELETE FROM scenario_history WHERE number = 8"),
    "the creation is missing": (3, "DELETE FROM scenario_history WHERE number = 1"),
    "an epoch is assigned twice": (4, "UPDATE scenario_history SET epoch = 10 WHERE number >= 4"),
    "an epoch rises without a deployment": (4, "UPDATE scenario_history SET epoch = 30 WHERE number >= 6"),
    "a row has an outdated epoch": (4, "UPDATE scenario_results SET epoch = 10 WHERE frame_number = 2"),
    "a row has an epoch that was never assigned": (4, "UPDATE scenario_results SET epoch = 15 WHERE frame_number = 0"),
    "the progress has another epoch": (4, "UPDATE scenario_progress SET epoch = 10"),
    "a row is missing": (5, "DELETE FROM scenario_results WHERE frame_number = 1"),
    "a row is beyond the progress": (5, "UPDATE scenario_progress SET next_frame = 2"),
    "a row has the pts of another frame": (5, "UPDATE scenario_results SET pts = 0 WHERE frame_number = 1"),
    "an outbox row has an error": (
        2,
        "INSERT INTO outbox (epoch, topic, key, kind, payload, error) VALUES (1, 't', 'k', 'ping', '', 'too large')",
    ),
}  # fmt: skip
FRAMES = [{"frame_number": number, "detections": [number]} for number in range(3)]


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose transaction contains one correct scenario. It is rolled back at the end."""
    with psycopg.connect(database_url, row_factory=namedtuple_row) as opened:
        opened.execute(VALID_SCENARIO.format(uuid=UUID))
        yield opened
        opened.rollback()


def check(connection: psycopg.Connection[Any]) -> None:
    assert checks.check_1_created(connection, [UUID]) == [UUID]
    checks.check_2_outbox(connection)
    checks.check_3_history(connection, UUID)
    checks.check_4_epochs(connection, UUID)
    checks.check_5_rows(connection, UUID)


def test_correct_tables_pass(connection: psycopg.Connection[Any]) -> None:
    check(connection)
    checks.check_frames(UUID, "completed", FRAMES, FRAMES)
    checks.check_frames(UUID, "stopped", FRAMES[:2], FRAMES)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_in_the_tables_is_found(connection: psycopg.Connection[Any], name: str) -> None:
    number, statement = VIOLATIONS[name]
    connection.execute(statement)
    with pytest.raises(InvariantViolation, match=f"invariant {number}:"):
        check(connection)


def test_a_missing_scenario_that_was_confirmed_to_a_client_is_found(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(InvariantViolation, match="invariant 1:"):
        checks.check_1_created(connection, [UUID, "01a20e0e-0000-7249-83a0-0bbb819d329b"])


def test_a_scenario_that_no_client_knows_is_found(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(InvariantViolation, match=r"invariant 1: .*no client"):
        checks.check_1_created(connection, [])


def test_a_message_that_stays_in_the_outbox_is_found(
    connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "OUTBOX_LIMIT_S", 0.1)
    connection.execute("INSERT INTO outbox (epoch, topic, key, kind, payload) VALUES (1, 't', 'k', 'ping', '')")
    with pytest.raises(AssertionError, match="invariant 2:"):
        checks.check_2_outbox(connection)


@pytest.mark.parametrize(
    ("outcome", "frames", "number"),
    [
        ("completed", FRAMES[:2], 6),
        ("stopped", [*FRAMES, FRAMES[0]], 5),
        ("stopped", [FRAMES[0], FRAMES[2]], 8),
        ("completed", [*FRAMES[:2], {"frame_number": 2, "detections": []}], 8),
    ],
)
def test_frames_that_differ_from_an_undisturbed_run_are_found(outcome: str, frames: list[Any], number: int) -> None:
    with pytest.raises(InvariantViolation, match=f"invariant {number}:"):
        checks.check_frames(UUID, outcome, frames, FRAMES)


def live_frames(*times_s: float) -> list[Any]:
    return [{"frame_number": number, "time_s": time_s} for number, time_s in enumerate(times_s)]


def gap(after: int, from_s: float, to_s: float, frames: int) -> dict[str, Any]:
    return {"after_frame": after, "from_s": from_s, "to_s": to_s, "frames": frames, "reason": "dropped"}


HOLE = live_frames(0.0, 0.2, 2.2, 2.4)


@pytest.mark.parametrize(
    "gaps", [[gap(1, 0.4, 2.2, 9)], [gap(1, 0.4, 1.0, 3), gap(1, 1.0, 2.2, 6), gap(3, 2.6, 3.0, 2)]]
)
def test_frames_and_gaps_that_cover_a_cameras_time_pass(gaps: list[Any]) -> None:
    live_checks.check_covered(UUID, HOLE, gaps, 5)


@pytest.mark.parametrize(
    ("frames", "gaps", "number"),
    [
        (HOLE, [], 8),
        (HOLE, [gap(1, 0.4, 2.2, 5)], 8),
        (HOLE, [gap(1, 0.4, 2.2, 9), gap(1, 0.4, 2.2, 9)], 8),
        (HOLE, [gap(1, 0.4, 3.0, 9)], 8),
        (live_frames(0.0, 0.2, 0.2), [], 8),
        ([HOLE[0], HOLE[2]], [gap(0, 0.2, 2.2, 10)], 5),
        (HOLE, [gap(1, 0.4, 2.2, 9), gap(3, 2.6, 9.0, 2)], 8),
    ],
    ids=[
        "no gap",
        "few frames",
        "a time twice",
        "over a frame",
        "no time between",
        "a missing number",
        "few at the end",
    ],
)
def test_time_of_a_camera_that_is_not_covered_is_found(frames: list[Any], gaps: list[Any], number: int) -> None:
    with pytest.raises(InvariantViolation, match=f"invariant {number}:"):
        live_checks.check_covered(UUID, frames, gaps, 5)


@pytest.mark.parametrize(
    ("outcome", "shutdown_s", "number"),
    [("stopped", 3.5, None), ("completed", 3.5, 6), ("stopped", 9.0, 8), ("stopped", None, 6)],
)
def test_a_camera_that_was_not_read_until_its_shutdown_is_found(
    connection: psycopg.Connection[Any], outcome: str, shutdown_s: float | None, number: int | None
) -> None:
    connection.execute("UPDATE scenario_progress SET origin_pts = 1800000000000000, last_time_s = 3")
    if shutdown_s is None:
        connection.execute("DELETE FROM scenario_history WHERE to_state = 'init_shutdown'")
    else:
        connection.execute(
            "UPDATE scenario_history SET at = to_timestamp(%s) WHERE to_state = 'init_shutdown'",
            (1_800_000_000 + shutdown_s,),
        )
    with pytest.raises(InvariantViolation, match=f"invariant {number}:") if number else nullcontext():
        live_checks.check_stopped(connection, UUID, outcome)
