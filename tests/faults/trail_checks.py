"""Checks of what the final state does not show: who stored a row, what was published, where each deployment began."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import namedtuple_row
from tests.faults.system_under_test import SystemUnderTest
from tests.faults.violation import violation

from vidflow.domain.messages import Frame, decode_result
from vidflow.domain.topics import DEAD_LETTERS, RESULTS
from vidflow.infra.kafka import clients, offsets
from vidflow.infra.kafka.settings import KafkaSettings

STALE_READ_S: Final = 0.5
"""The age that the leader's reading may have when it writes a command: it may not know what was published since."""
CONCURRENT_TRANSACTIONS: Final = 1
"""Transactions that may store rows concurrently with the one that outdates them: it waits for the same lock as the inbox."""

Connection = psycopg.Connection[Any]


def check_trails(system: SystemUnderTest, uuids: Collection[str]) -> None:
    """Make all checks that hold after any fault. Those that need Kafka's history are left out if it is lost."""
    with _connect(system) as connection:
        check_1_creations(connection, uuids)
        check_2_no_copies(connection)
        check_4_late_rows(connection, uuids)
        check_6_after_inactive(connection, uuids)
        check_8_resume_points(connection, uuids)
        if not system.history_lost:
            check_2_published(connection, system.processes.kafka)
            check_8_first_frames(connection, read_sent_frame_numbers(system.processes.kafka, uuids))


def check_no_rows(
    connection: Connection, invariant: int, problem: str, query: LiteralString, *parameters: object
) -> None:
    """Raise, with the first rows, if the query returns any."""
    if rows := connection.execute(query, parameters).fetchall():
        raise violation(invariant, f"{problem}: {rows[:3]}")


def check_1_creations(connection: Connection, uuids: Collection[str]) -> None:
    """Every scenario was created with its message."""
    check_no_rows(
        connection, 1, "created without a message",
        "SELECT scenario_uuid FROM scenarios s WHERE scenario_uuid = ANY(%s::uuid[])"
        " AND NOT EXISTS (SELECT FROM outbox_trail o WHERE o.key = s.scenario_uuid::text AND o.kind = 'start')",
        list(uuids),
    )  # fmt: skip


def check_2_no_copies(connection: Connection) -> None:
    """No command was sent again while a copy of it waited unpublished."""
    check_no_rows(
        connection, 2, "sent again while a copy waited",
        "SELECT o.kind, o.key, o.created_at, b.created_at AS again_at, o.published_at FROM outbox_trail o JOIN outbox_trail b"
        " ON b.id > o.id AND b.key = o.key AND b.kind = o.kind AND b.epoch = o.epoch AND b.runner IS NOT DISTINCT FROM o.runner"
        " WHERE o.runner IS NOT NULL AND b.created_at < o.published_at - make_interval(secs => %s)",
        STALE_READ_S,
    )  # fmt: skip


def check_2_published(connection: Connection, settings: KafkaSettings) -> None:
    """What was removed from the outbox is in Kafka."""
    removed = connection.execute(
        "SELECT topic, message_id::text AS id, kind, key FROM outbox_trail WHERE published_at IS NOT NULL AND topic <> %s",
        (DEAD_LETTERS,),
    ).fetchall()
    for topic in {row.topic for row in removed}:
        published = {
            dict(clients.read_headers(message)).get(clients.MESSAGE_ID_HEADER)
            for message in offsets.read_log(settings, topic)
        }
        if missing := [row for row in removed if row.topic == topic and row.id.encode() not in published]:
            raise violation(2, f"{len(missing)} rows removed from the outbox are not in Kafka: {missing[:3]}")


def check_4_late_rows(connection: Connection, uuids: Collection[str]) -> None:
    """No row of an epoch was stored after the deployment that outdates it, by the transactions' ids (xmin)."""
    check_no_rows(
        connection, 4, "rows of an epoch stored after a newer deployment",
        "SELECT r.scenario_uuid, r.epoch, h.epoch AS newer, count(DISTINCT r.xmin::text) AS times"
        " FROM scenario_results r JOIN scenario_history h USING (scenario_uuid)"
        " WHERE h.to_state = 'in_startup_processing' AND r.epoch < h.epoch AND r.xmin::text::bigint > h.xmin::text::bigint"
        " AND r.scenario_uuid = ANY(%s::uuid[]) GROUP BY 1, 2, 3 HAVING count(DISTINCT r.xmin::text) > %s",
        list(uuids), CONCURRENT_TRANSACTIONS,
    )  # fmt: skip


def check_6_after_inactive(connection: Connection, uuids: Collection[str]) -> None:
    """No row was stored after `inactive`."""
    check_no_rows(
        connection, 6, "rows stored after `complete`",
        "SELECT r.scenario_uuid, count(*) AS rows FROM scenario_results r JOIN scenario_history h USING (scenario_uuid)"
        " WHERE h.to_state = 'inactive' AND r.xmin::text::bigint > h.xmin::text::bigint AND r.scenario_uuid = ANY(%s::uuid[])"
        " GROUP BY 1 HAVING count(DISTINCT r.xmin::text) > %s",
        list(uuids), CONCURRENT_TRANSACTIONS,
    )  # fmt: skip


def check_8_resume_points(connection: Connection, uuids: Collection[str]) -> None:
    """The last deployment resumed where the rows of the earlier ones end. Scenarios shut down while queued are left out."""
    check_no_rows(
        connection, 8, "did not resume where the rows ended",
        "SELECT s.scenario_uuid, s.resume_frame, count(r.epoch) AS rows FROM scenarios s"
        " LEFT JOIN scenario_results r ON r.scenario_uuid = s.scenario_uuid AND r.epoch < s.epoch"
        " WHERE s.epoch > 0 AND s.scenario_uuid = ANY(%s::uuid[]) AND NOT EXISTS (SELECT FROM scenario_history h"
        "  WHERE h.scenario_uuid = s.scenario_uuid AND h.from_state = 'init_startup' AND h.to_state = 'init_shutdown')"
        " GROUP BY 1, 2 HAVING count(r.epoch) <> s.resume_frame",
        list(uuids),
    )  # fmt: skip


def check_8_first_frames(connection: Connection, sent: dict[tuple[str, int], tuple[int, int]]) -> None:
    """Each deployment's first frame is the one after the rows of the earlier ones."""
    for (uuid, epoch), (first, _) in sent.items():
        if first != (rows := _count_rows_before(connection, uuid, epoch)):
            raise violation(8, f"{uuid}: epoch {epoch} began with frame {first}, but {rows} frames were stored")


def check_8_all_stored(system: SystemUnderTest) -> None:
    """Every frame sent was stored. Does not hold if a runner or Kafka was frozen."""
    with _connect(system) as connection:
        uuids = {str(row.scenario_uuid) for row in connection.execute("SELECT scenario_uuid FROM scenarios")}
        for (uuid, epoch), (_, highest) in read_sent_frame_numbers(system.processes.kafka, uuids).items():
            if (rows := _count_rows_before(connection, uuid, epoch + 1)) <= highest:
                raise violation(
                    8, f"{uuid}: epoch {epoch} sent frame {highest}, but only {rows} frames are stored up to this epoch"
                )


def check_5_no_repeats(system: SystemUnderTest) -> None:
    """The inbox received no frame twice. Does not hold if Kafka or the database lost data."""
    with _connect(system) as connection:
        [row] = connection.execute("SELECT coalesce(sum(repeats), 0) AS repeats FROM scenario_progress")
    if row.repeats:
        raise violation(5, f"{row.repeats} stored frames were received again")


def read_sent_frame_numbers(settings: KafkaSettings, uuids: Collection[str]) -> dict[tuple[str, int], tuple[int, int]]:
    """Return, by scenario and epoch, the number of the first frame sent and the highest."""
    sent: dict[tuple[str, int], tuple[int, int]] = {}
    for message in offsets.read_log(settings, RESULTS):
        result = decode_result(message.value())
        if isinstance(result, Frame) and result.scenario_uuid in uuids:
            deployment, number = (result.scenario_uuid, result.epoch), result.frame_number
            first, highest = sent.get(deployment, (number, number))
            sent[deployment] = first, max(highest, number)
    return sent


def reasons(system: SystemUnderTest) -> Counter[str]:
    """Count the reasons of all transitions."""
    with _connect(system) as connection:
        return Counter(row.reason for row in connection.execute("SELECT reason FROM scenario_history"))


def _count_rows_before(connection: Connection, uuid: str, epoch: int) -> int:
    query = "SELECT count(*) AS rows FROM scenario_results WHERE scenario_uuid = %s AND epoch < %s"
    [row] = connection.execute(query, (uuid, epoch))
    return int(row.rows)


@contextmanager
def _connect(system: SystemUnderTest) -> Iterator[Connection]:
    with system.connect() as connection:
        connection.row_factory = namedtuple_row
        yield connection
