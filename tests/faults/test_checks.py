"""The checks of the fault suite find what they are there for: each is shown tables that one thing is wrong with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row
from tests.faults import checks
from tests.faults.violation import InvariantViolation

UUID = "01a20e0e-89d7-7249-83a0-0bbb819d329b"
VALID_SCENARIO = """
INSERT INTO scenarios (scenario_uuid, state, outcome, epoch, runner, source, model, fps)
VALUES ('{uuid}', 'inactive', 'completed', 20, 'second', '/clip.mp4', 'motion', 'all');
INSERT INTO scenario_history (scenario_uuid, number, from_state, to_state, epoch, attempt, reason) VALUES
    ('{uuid}', 1, NULL, 'init_startup', 0, 0, 'asked for'),
    ('{uuid}', 2, 'init_startup', 'in_startup_processing', 10, 0, 'assigned'),
    ('{uuid}', 3, 'in_startup_processing', 'init_startup', 10, 1, 'runner lost'),
    ('{uuid}', 4, 'init_startup', 'in_startup_processing', 20, 1, 'assigned'),
    ('{uuid}', 5, 'in_startup_processing', 'active', 20, 1, 'first frame'),
    ('{uuid}', 6, 'active', 'init_shutdown', 20, 1, 'whole'),
    ('{uuid}', 7, 'init_shutdown', 'in_shutdown_processing', 20, 1, 'taken'),
    ('{uuid}', 8, 'in_shutdown_processing', 'inactive', 20, 1, 'end marker stored');
INSERT INTO scenario_progress (scenario_uuid, epoch, next_frame, closed) VALUES ('{uuid}', 20, 3, true);
INSERT INTO scenario_results (scenario_uuid, frame_number, epoch, pts, time_s, width, height, at, detections) VALUES
    ('{uuid}', 0, 10, 0, 0, 96, 64, '', '[]'), ('{uuid}', 1, 20, 40, 0.04, 96, 64, '', '[]'),
    ('{uuid}', 2, 20, 80, 0.08, 96, 64, '', '[]');
"""
VIOLATIONS = {
    "a move is missing": (3, "DELETE FROM scenario_history WHERE number = 5"),
    "a move is not in the table": (3, "UPDATE scenario_history SET to_state = 'inactive' WHERE number = 7"),
    "the history ends elsewhere": (3, "DELETE FROM scenario_history WHERE number = 8"),
    "it was not born": (3, "DELETE FROM scenario_history WHERE number = 1"),
    "an epoch is given twice": (4, "UPDATE scenario_history SET epoch = 10 WHERE number >= 4"),
    "an epoch rises by itself": (4, "UPDATE scenario_history SET epoch = 30 WHERE number >= 6"),
    "a row is of an epoch that was over": (4, "UPDATE scenario_results SET epoch = 10 WHERE frame_number = 2"),
    "a row is of no epoch": (4, "UPDATE scenario_results SET epoch = 15 WHERE frame_number = 0"),
    "progress is at another epoch": (4, "UPDATE scenario_progress SET epoch = 10"),
    "a row is missing": (5, "DELETE FROM scenario_results WHERE frame_number = 1"),
    "a row is behind the progress": (5, "UPDATE scenario_progress SET next_frame = 2"),
    "a number means another moment": (5, "UPDATE scenario_results SET pts = 0 WHERE frame_number = 1"),
    "a message was set aside": (
        2,
        "INSERT INTO outbox (epoch, topic, key, kind, payload, error) VALUES (1, 't', 'k', 'ping', '', 'too large')",
    ),
}  # fmt: skip
FRAMES = [{"frame_number": number, "detections": [number]} for number in range(3)]


@pytest.fixture
def tables(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Tables with one scenario that is as it should be; as if they had never been, afterwards."""
    with psycopg.connect(database_url, row_factory=namedtuple_row) as connection:
        connection.execute(VALID_SCENARIO.format(uuid=UUID))
        yield connection
        connection.rollback()


def check(tables: psycopg.Connection[Any]) -> None:
    assert checks.check_1_created(tables, [UUID]) == [UUID]
    checks.check_2_outbox(tables)
    checks.check_3_history(tables, UUID)
    checks.check_4_epochs(tables, UUID)
    checks.check_5_rows(tables, UUID)


def test_what_is_as_it_should_be_passes(tables: psycopg.Connection[Any]) -> None:
    check(tables)
    checks.check_frames(UUID, "completed", FRAMES, FRAMES)
    checks.check_frames(UUID, "stopped", FRAMES[:2], FRAMES)


@pytest.mark.parametrize("what", VIOLATIONS)
def test_what_is_wrong_in_the_tables_is_found(tables: psycopg.Connection[Any], what: str) -> None:
    number, statement = VIOLATIONS[what]
    tables.execute(statement)
    with pytest.raises(InvariantViolation, match=f"invariant {number}:"):
        check(tables)


def test_a_scenario_that_a_client_knows_and_nobody_else_is_found(tables: psycopg.Connection[Any]) -> None:
    with pytest.raises(InvariantViolation, match="invariant 1:"):
        checks.check_1_created(tables, [UUID, "01a20e0e-0000-7249-83a0-0bbb819d329b"])


def test_a_message_that_stays_in_the_outbox_is_found(
    tables: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "OUTBOX_LIMIT_S", 0.1)
    tables.execute("INSERT INTO outbox (epoch, topic, key, kind, payload) VALUES (1, 't', 'k', 'ping', '')")
    with pytest.raises(AssertionError, match="invariant 2:"):
        checks.check_2_outbox(tables)


@pytest.mark.parametrize(
    ("outcome", "frames", "number"),
    [
        ("completed", FRAMES[:2], 6),
        ("stopped", [*FRAMES, FRAMES[0]], 5),
        ("stopped", [FRAMES[0], FRAMES[2]], 8),
        ("completed", [*FRAMES[:2], {"frame_number": 2, "detections": []}], 8),
    ],
)
def test_frames_that_an_undisturbed_run_did_not_see_are_found(outcome: str, frames: list[Any], number: int) -> None:
    with pytest.raises(InvariantViolation, match=f"invariant {number}:"):
        checks.check_frames(UUID, outcome, frames, FRAMES)
