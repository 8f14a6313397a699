"""What the traces tell of a run that its end does not: who stored a row, what was published, where each deployment began."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import namedtuple_row
from tests.faults.system_under_test import SystemUnderTest
from tests.faults.violation import violation

from vidflow.domain.messages import DEAD_LETTERS, RESULTS, Frame, decode_result
from vidflow.infra.kafka import clients, offsets
from vidflow.infra.kafka.settings import KafkaSettings

STALE_READ_S: Final = 0.5
"""A command is written by a look that may be that old: it may not know what was published since."""
CONCURRENT_TRANSACTIONS: Final = 1
"""Transactions that may store rows beside the one that outdates them: it and the inbox wait for the same lock."""

Connection = psycopg.Connection[Any]


def check_trails(scene: SystemUnderTest, uuids: Collection[str]) -> None:
    """All that holds whatever fault there was; what needs Kafka's past is left out where that is lost."""
    with _connect(scene) as tables:
        check_1_creations(tables, uuids)
        check_2_no_copies(tables)
        check_4_late_rows(tables, uuids)
        check_6_after_inactive(tables, uuids)
        check_8_resume_points(tables, uuids)
        if not scene.history_lost:
            check_2_published(tables, scene.processes.kafka)
            check_8_first_frames(tables, read_sent_frame_numbers(scene.processes.kafka, uuids))


def check_no_rows(tables: Connection, invariant: int, problem: str, query: LiteralString, *given: object) -> None:
    """Raises, with the first of them, where the query finds a row."""
    if found := tables.execute(query, given).fetchall():
        raise violation(invariant, f"{problem}: {found[:3]}")


def check_1_creations(tables: Connection, uuids: Collection[str]) -> None:
    """Every birth wrote its message."""
    check_no_rows(
        tables, 1, "born without a message",
        "SELECT scenario_uuid FROM scenarios s WHERE scenario_uuid = ANY(%s::uuid[])"
        " AND NOT EXISTS (SELECT FROM outbox_trail o WHERE o.key = s.scenario_uuid::text AND o.kind = 'start')",
        list(uuids),
    )  # fmt: skip


def check_2_no_copies(tables: Connection) -> None:
    """No command was given again while a copy of it waited unpublished."""
    check_no_rows(
        tables, 2, "given again while a copy waited",
        "SELECT o.kind, o.key, o.created_at, b.created_at AS again_at, o.published_at FROM outbox_trail o JOIN outbox_trail b"
        " ON b.id > o.id AND b.key = o.key AND b.kind = o.kind AND b.epoch = o.epoch AND b.runner IS NOT DISTINCT FROM o.runner"
        " WHERE o.runner IS NOT NULL AND b.created_at < o.published_at - make_interval(secs => %s)",
        STALE_READ_S,
    )  # fmt: skip


def check_2_published(tables: Connection, settings: KafkaSettings) -> None:
    """What was removed from the outbox lies in Kafka."""
    removed = tables.execute(
        "SELECT topic, message_id::text AS id, kind, key FROM outbox_trail WHERE published_at IS NOT NULL AND topic <> %s",
        (DEAD_LETTERS,),
    ).fetchall()
    for topic in {row.topic for row in removed}:
        there = {
            dict(clients.read_headers(message)).get(clients.MESSAGE_ID_HEADER)
            for message in offsets.read_log(settings, topic)
        }
        if missing := [row for row in removed if row.topic == topic and row.id.encode() not in there]:
            raise violation(2, f"{len(missing)} removed from the outbox, and not in Kafka: {missing[:3]}")


def check_4_late_rows(tables: Connection, uuids: Collection[str]) -> None:
    """No row of an epoch was stored behind the deployment that outdates it, told by the transactions' numbers."""
    check_no_rows(
        tables, 4, "rows of an epoch behind a newer deployment",
        "SELECT r.scenario_uuid, r.epoch, h.epoch AS newer, count(DISTINCT r.xmin::text) AS times"
        " FROM scenario_results r JOIN scenario_history h USING (scenario_uuid)"
        " WHERE h.to_state = 'in_startup_processing' AND r.epoch < h.epoch AND r.xmin::text::bigint > h.xmin::text::bigint"
        " AND r.scenario_uuid = ANY(%s::uuid[]) GROUP BY 1, 2, 3 HAVING count(DISTINCT r.xmin::text) > %s",
        list(uuids), CONCURRENT_TRANSACTIONS,
    )  # fmt: skip


def check_6_after_inactive(tables: Connection, uuids: Collection[str]) -> None:
    """No row was stored behind `inactive`."""
    check_no_rows(
        tables, 6, "rows behind `complete`",
        "SELECT r.scenario_uuid, count(*) AS rows FROM scenario_results r JOIN scenario_history h USING (scenario_uuid)"
        " WHERE h.to_state = 'inactive' AND r.xmin::text::bigint > h.xmin::text::bigint AND r.scenario_uuid = ANY(%s::uuid[])"
        " GROUP BY 1 HAVING count(DISTINCT r.xmin::text) > %s",
        list(uuids), CONCURRENT_TRANSACTIONS,
    )  # fmt: skip


def check_8_resume_points(tables: Connection, uuids: Collection[str]) -> None:
    """The last deployment's resume point is where the rows of those before it end. (One that came back has another.)"""
    check_no_rows(
        tables, 8, "resumed elsewhere than where the rows ended",
        "SELECT s.scenario_uuid, s.resume_frame, count(r.epoch) AS rows FROM scenarios s"
        " LEFT JOIN scenario_results r ON r.scenario_uuid = s.scenario_uuid AND r.epoch < s.epoch"
        " WHERE s.epoch > 0 AND s.scenario_uuid = ANY(%s::uuid[]) AND NOT EXISTS (SELECT FROM scenario_history h"
        "  WHERE h.scenario_uuid = s.scenario_uuid AND h.from_state = 'init_startup' AND h.to_state = 'init_shutdown')"
        " GROUP BY 1, 2 HAVING count(r.epoch) <> s.resume_frame",
        list(uuids),
    )  # fmt: skip


def check_8_first_frames(tables: Connection, sent: dict[tuple[str, int], tuple[int, int]]) -> None:
    """Each deployment's first frame is the one behind the rows of those before it."""
    for (uuid, epoch), (first, _) in sent.items():
        if first != (rows := _count_rows_before(tables, uuid, epoch)):
            raise violation(8, f"{uuid}: epoch {epoch} began with frame {first}, and {rows} were stored")


def check_8_all_stored(scene: SystemUnderTest) -> None:
    """Of what was sent, nothing was left behind by a new deployment or an end. Not where a runner or Kafka stood still."""
    with _connect(scene) as tables:
        uuids = {str(row.scenario_uuid) for row in tables.execute("SELECT scenario_uuid FROM scenarios")}
        for (uuid, epoch), (_, highest) in read_sent_frame_numbers(scene.processes.kafka, uuids).items():
            if (rows := _count_rows_before(tables, uuid, epoch + 1)) <= highest:
                raise violation(
                    8, f"{uuid}: epoch {epoch} sent frame {highest}, and {rows} are stored of it and before"
                )


def check_5_no_repeats(scene: SystemUnderTest) -> None:
    """The inbox took nothing twice. Not where Kafka or the database lost their past."""
    with _connect(scene) as tables:
        [row] = tables.execute("SELECT coalesce(sum(repeats), 0) AS repeats FROM scenario_progress")
    if row.repeats:
        raise violation(5, f"{row.repeats} frames were taken again that were stored")


def read_sent_frame_numbers(settings: KafkaSettings, uuids: Collection[str]) -> dict[tuple[str, int], tuple[int, int]]:
    """By scenario and epoch: the number of the first frame that was sent, and the highest."""
    sent: dict[tuple[str, int], tuple[int, int]] = {}
    for message in offsets.read_log(settings, RESULTS):
        result = decode_result(message.value())
        if isinstance(result, Frame) and result.scenario_uuid in uuids:
            place, number = (result.scenario_uuid, result.epoch), result.frame_number
            first, highest = sent.get(place, (number, number))
            sent[place] = first, max(highest, number)
    return sent


def reasons(scene: SystemUnderTest) -> Counter[str]:
    """How often scenarios moved for which reason."""
    with _connect(scene) as tables:
        return Counter(row.reason for row in tables.execute("SELECT reason FROM scenario_history"))


def _count_rows_before(tables: Connection, uuid: str, epoch: int) -> int:
    query = "SELECT count(*) AS rows FROM scenario_results WHERE scenario_uuid = %s AND epoch < %s"
    [row] = tables.execute(query, (uuid, epoch))
    return int(row.rows)


@contextmanager
def _connect(scene: SystemUnderTest) -> Iterator[Connection]:
    with scene.connect() as tables:
        tables.row_factory = namedtuple_row
        yield tables
