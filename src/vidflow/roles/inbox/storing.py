"""Store a batch of results, the scenarios' progress and the partitions' positions in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec
from psycopg.errors import UniqueViolation

from vidflow.domain.errors import Unavailable, VidflowError
from vidflow.domain.messages import DeadLetter, End, Frame, encode
from vidflow.domain.progress import Progress, Verdict, advance, select_gaps
from vidflow.domain.report_size import keep_start
from vidflow.domain.topics import DEAD_LETTERS, RESULTS
from vidflow.infra.postgres import gaps, inbox_partitions, outbox, progress, results
from vidflow.infra.postgres.connection import Connection, transaction
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.telemetry import metrics
from vidflow.roles.inbox.reader import ReceivedMessage

DEAD_LETTER_VALUE_BYTES: Final = 500_000
"""Most bytes of a value that a dead letter keeps. In base64 they must fit the brokers' default limit of 1 MB."""
DEAD_LETTER_FIELD_BYTES: Final = 50_000
"""Most bytes that a dead letter keeps of the key, of the encoded headers and of the error."""
POISON_BATCH: Final = 20
POISON_RUN: Final = 50


class PositionLost(Unavailable):
    """The positions in the database differ from this inbox's. Nothing was stored; read again from those in the database."""

    default_code = "position_lost"

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(
            f"Another inbox or a restored database moved the positions of partitions {sorted(partitions)}."
        )
        self.partitions = partitions


class PoisonLimitExceeded(VidflowError):
    """Most messages of the workers cannot be stored. Then the inbox is at fault, and dead letters would lose valid results."""

    default_code = "mostly_poison"


class StoredBatch(msgspec.Struct, frozen=True):
    """The frames to store for a batch, the changed progress by scenario, and the number of messages by verdict.

    `with_gaps`: the messages whose gaps are to be stored.
    """

    frames: list[Frame]
    with_gaps: list[Frame | End]
    progress: dict[str, Progress]
    verdicts: Counter[str]


def advance_progress(progress: Mapping[str, Progress], messages: Sequence[ReceivedMessage]) -> StoredBatch:
    """Apply the messages in order to the progress of their scenarios. `progress` in the returned batch has only the changes."""
    current = dict(progress)
    batch = StoredBatch([], [], {}, Counter())
    for message in messages:
        result = message.result
        if result is None:
            continue
        old = current.get(result.scenario_uuid)
        if old is None:
            batch.verdicts[metrics.UNKNOWN_SCENARIO] += 1
            continue
        new, verdict = advance(old, result)
        batch.verdicts[verdict] += 1
        if new is not old:
            current[result.scenario_uuid] = batch.progress[result.scenario_uuid] = new
        if verdict is not Verdict.STORED or not isinstance(result, Frame | End):
            continue
        if isinstance(result, Frame):
            batch.frames.append(result)
        if select_gaps(old, result):
            batch.with_gaps.append(result)
    return batch


def store(
    connection: Connection,
    topic_id: str,
    positions: Mapping[int, int],
    messages: Sequence[ReceivedMessage],
    while_waiting: Callable[[], None],
) -> StoredBatch:
    """Store a batch and move the positions past it, in one transaction. `while_waiting` is called while the server works.

    Raises PositionLost, and psycopg.Error if the database is away or rejects a row.
    """
    moves = {message.partition: (positions[message.partition], message.offset + 1) for message in messages}
    try:
        batch = _store(connection, topic_id, moves, messages, partial(results.add_frames, while_waiting=while_waiting))
    except UniqueViolation:
        batch = _store(connection, topic_id, moves, messages, results.add_missing_frames)
    crashpoint("inbox.after_commit")
    return batch


def _store(
    connection: Connection,
    topic_id: str,
    moves: Mapping[int, tuple[int, int]],
    messages: Sequence[ReceivedMessage],
    add_frames: Callable[[Connection, Sequence[Frame]], None],
) -> StoredBatch:
    """Store a batch in one transaction."""
    uuids = sorted({message.result.scenario_uuid for message in messages if message.result})
    dead_letters = [_build_dead_letter_row(message) for message in messages if message.error is not None]
    with transaction(connection) as tx:
        batch = advance_progress(progress.lock_progress(tx, uuids), messages)
        add_frames(tx, batch.frames)
        gaps.add_gaps(tx, batch.with_gaps)
        progress.write_progress(tx, batch.progress)
        outbox.add_messages(tx, dead_letters)
        crashpoint("inbox.before_position")
        moved = inbox_partitions.move_positions(tx, RESULTS, topic_id, moves)
        if moved != moves.keys():
            raise PositionLost(frozenset(moves.keys() - moved))
        crashpoint("inbox.before_commit")
    return batch


def _build_dead_letter_row(message: ReceivedMessage) -> outbox.OutboxMessage:
    """Return a dead letter with the original message, cut to what fits in one Kafka message."""
    key, value, headers = message.key, message.value, tuple(message.headers)
    error, cut = message.error or "", False
    if value is not None and len(value) > DEAD_LETTER_VALUE_BYTES:
        error = f"{error} (only the first {DEAD_LETTER_VALUE_BYTES} of {len(value)} bytes are kept)"
        value, cut = value[:DEAD_LETTER_VALUE_BYTES], True
    if key is not None and len(key) > DEAD_LETTER_FIELD_BYTES:
        key, cut = key[:DEAD_LETTER_FIELD_BYTES], True
    if len(msgspec.json.encode(headers)) > DEAD_LETTER_FIELD_BYTES:
        headers, cut = (), True
    error = keep_start(error, DEAD_LETTER_FIELD_BYTES)
    letter = DeadLetter(RESULTS, message.partition, message.offset, error, key, value, headers, cut)
    return outbox.OutboxMessage(
        topic=DEAD_LETTERS, key=letter.place, kind="dead_letter", epoch=0, payload=encode(letter)
    )


def count_poison_run(run: int, messages: Sequence[ReceivedMessage]) -> int:
    """Return how many consecutive worker messages at the end of a batch cannot be stored. `run` is their number before it.

    Messages that no worker sent are ignored: they say nothing about the inbox's version. Raises PoisonLimitExceeded if POISON_RUN
    messages in a row, or most messages of a batch, cannot be stored.
    """
    from_workers = [message for message in messages if message.error is None or message.from_worker]
    poison = [message for message in from_workers if message.error is not None]
    longest = run
    for message in from_workers:
        run = run + 1 if message.error is not None else 0
        longest = max(longest, run)
    if longest >= POISON_RUN or (len(from_workers) >= POISON_BATCH and 2 * len(poison) > len(from_workers)):
        first = poison[0]
        raise PoisonLimitExceeded(
            f"{len(poison)} of the last {len(from_workers)} messages of workers cannot be stored, starting at "
            f"partition {first.partition} of {RESULTS}, offset {first.offset}: {first.error}. "
            "They and all later messages stay in Kafka and are not stored. The workers probably run a newer version: "
            "upgrade the inbox. To skip the messages, set the partition's position in inbox_partitions to an offset after them."
        )
    return run
