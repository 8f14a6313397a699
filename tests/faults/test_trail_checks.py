"""The checks of traces find what they are there for: each is shown tables that one thing is wrong with."""

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


def births(tables: Connection) -> None:
    trail_checks.check_1_creations(tables, [UUID])


def late_rows(tables: Connection) -> None:
    trail_checks.check_4_late_rows(tables, [UUID])


def behind_inactive(tables: Connection) -> None:
    trail_checks.check_6_after_inactive(tables, [UUID])


def resume_points(tables: Connection) -> None:
    trail_checks.check_8_resume_points(tables, [UUID])


def first_frames(tables: Connection) -> None:
    trail_checks.check_8_first_frames(tables, {(UUID, 10): (0, 0), (UUID, 20): (1, 2)})


CHECKS = [births, trail_checks.check_2_no_copies, late_rows, behind_inactive, resume_points, first_frames]
REWRITTEN = "UPDATE scenario_results SET epoch = {epoch} WHERE frame_number = "
VIOLATIONS: dict[str, tuple[int, Callable[[Connection], None], list[str]]] = {
    "a birth wrote no message": (1, births, ["DELETE FROM outbox_trail"]),
    "a stop was given again while one waited": (2, trail_checks.check_2_no_copies, [
        COMMAND_COPIES.replace("{published}", "now() - interval '2 s'")]),
    "an epoch stored rows behind a newer one": (4, late_rows, [f"{REWRITTEN}{n}".replace("{epoch}", "10") for n in (1, 2)]),
    "rows were stored behind its end": (6, behind_inactive, [f"{REWRITTEN}{n}".replace("{epoch}", "20") for n in (1, 2)]),
    "it resumed elsewhere": (8, resume_points, ["UPDATE scenarios SET resume_frame = 0"]),
    "a deployment began elsewhere": (8, first_frames, ["DELETE FROM scenario_results WHERE frame_number = 0"]),
}  # fmt: skip


@pytest.fixture
def tables(database_url: str) -> Iterator[Connection]:
    """Tables with one scenario that is as it should be; as if they had never been, afterwards."""
    with psycopg.connect(database_url, row_factory=namedtuple_row) as connection:
        connection.execute(OUTBOX_TRAIL_SQL)
        connection.execute((VALID_SCENARIO + TRAIL_ROWS).format(uuid=UUID))
        yield connection
        connection.rollback()


def test_what_is_as_it_should_be_passes(tables: Connection) -> None:
    tables.execute(COMMAND_COPIES.format(uuid=UUID, published="now() - interval '8 s'"))
    for check in CHECKS:
        check(tables)


@pytest.mark.parametrize("what", VIOLATIONS)
def test_what_the_traces_tell_is_found(tables: Connection, what: str) -> None:
    number, check, statements = VIOLATIONS[what]
    for statement in statements:
        with tables.transaction():  # its rows have a number of their own
            tables.execute(statement.format(uuid=UUID))
    with pytest.raises(InvariantViolation, match=f"invariant {number}:"):
        check(tables)
