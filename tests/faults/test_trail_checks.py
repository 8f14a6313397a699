"""The checks of the trail find violations: each gets tables with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row
from tests.faults import trail_checks
from tests.faults.system_under_test import OUTBOX_TRAIL_SQL
from tests.faults.test_checks import UUID, VALID_SCENARIO
from tests.faults.violation import InvariantViolation

TRAIL_ROWS = """
UPDATE scenarios SET resume_frame = 1;
INSERT INTO outbox_trail (epoch, topic, key, kind, published_at) VALUES (0, 't', '{uuid}', 'start', now());
"""
COMMAND_COPIES = """
INSERT INTO outbox_trail (epoch, topic, key, kind, runner, created_at, published_at)
VALUES (20, 't', '{uuid}', 'stop', 'second', now() - interval '9 s', {published}),
       (20, 't', '{uuid}', 'stop', 'second', now() - interval '7 s', now());
"""
Connection = psycopg.Connection[Any]


def creations(connection: Connection) -> None:
    trail_checks.check_1_creations(connection, [UUID])


def late_rows(connection: Connection) -> None:
    trail_checks.check_4_late_rows(connection, [UUID])


def after_inactive(connection: Connection) -> None:
    trail_checks.check_6_after_inactive(connection, [UUID])


def resume_points(connection: Connection) -> None:
    trail_checks.check_8_resume_points(connection, [UUID])


def first_frames(connection: Connection) -> None:
    trail_checks.check_8_first_frames(connection, {(UUID, 10): (0, 0), (UUID, 20): (1, 2)})


CHECKS = [creations, trail_checks.check_2_no_copies, late_rows, after_inactive, resume_points, first_frames]
REWRITTEN = "UPDATE scenario_results SET epoch = {epoch} WHERE frame_number = "
VIOLATIONS: dict[str, tuple[int, Callable[[Connection], None], list[str]]] = {
    "a creation wrote no message": (1, creations, ["DELETE FROM outbox_trail"]),
    "a stop was sent again while one waited": (2, trail_checks.check_2_no_copies, [
        COMMAND_COPIES.replace("{published}", "now() - interval '2 s'")]),
    "an epoch stored rows after a newer one": (4, late_rows, [f"{REWRITTEN}{n}".replace("{epoch}", "10") for n in (1, 2)]),
    "rows were stored after inactive": (6, after_inactive, [f"{REWRITTEN}{n}".replace("{epoch}", "20") for n in (1, 2)]),
    "the resume point is wrong": (8, resume_points, ["UPDATE scenarios SET resume_frame = 0"]),
    "a deployment began with a wrong frame": (8, first_frames, ["DELETE FROM scenario_results WHERE frame_number = 0"]),
}  # fmt: skip


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection whose transaction contains one correct scenario. It is rolled back at the end."""
    with psycopg.connect(database_url, row_factory=namedtuple_row) as opened:
        opened.execute(OUTBOX_TRAIL_SQL)
        opened.execute((VALID_SCENARIO + TRAIL_ROWS).format(uuid=UUID))
        yield opened
        opened.rollback()


def test_a_correct_trail_passes(connection: Connection) -> None:
    connection.execute(COMMAND_COPIES.format(uuid=UUID, published="now() - interval '8 s'"))
    for check in CHECKS:
        check(connection)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_in_the_trail_is_found(connection: Connection, name: str) -> None:
    number, check, statements = VIOLATIONS[name]
    for statement in statements:
        with connection.transaction():  # so that its rows have their own transaction id (xmin)
            connection.execute(statement.format(uuid=UUID))
    with pytest.raises(InvariantViolation, match=f"invariant {number}:"):
        check(connection)
