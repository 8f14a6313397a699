"""One batch into the database, in one transaction: what each message makes of its scenario, and how far the log is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from vidflow.domain.errors import Unavailable, VidflowError
from vidflow.domain.messages import DEAD_LETTERS, RESULTS, DeadLetter, Frame, Gap, encode
from vidflow.domain.progress import Progress, Verdict, advance
from vidflow.domain.report_size import keep_start
from vidflow.infra.postgres import inbox_partitions, outbox, results
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.telemetry import metrics
from vidflow.roles.inbox.reader import ReceivedMessage

DEAD_LETTER_VALUE_BYTES: Final = 500_000
"""The most of a message that its dead letter keeps: as base64 it must still pass the brokers' usual limit of 1 MB."""
DEAD_LETTER_FIELD_BYTES: Final = 50_000
"""The most of its key, of its headers as they are encoded, and of the error."""
POISON_BATCH: Final = 20
POISON_RUN: Final = 50


class PositionLost(Unavailable):
    """The table has other positions than this inbox holds: nothing was stored, and it begins again at the table's."""

    default_code = "position_lost"

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(f"another inbox or a restored database moved the partitions {sorted(partitions)}")
        self.partitions = partitions


class PoisonLimitExceeded(VidflowError):
    """Most of what the workers sent cannot be taken: then the taker is at fault, not they, and dead letters would be the damage."""

    default_code = "mostly_poison"


class StoredBatch(msgspec.Struct, frozen=True):
    """What is to be stored of a batch, and what became of its messages."""

    frames: list[Frame]
    gaps: list[Gap]
    progress: dict[str, Progress]
    verdicts: Counter[str]


def advance_progress(progress: Mapping[str, Progress], messages: Sequence[ReceivedMessage]) -> StoredBatch:
    """What the messages, in their order, make of the progress of their scenarios; `progress` in the answer is what changed."""
    after = dict(progress)
    batch = StoredBatch([], [], {}, Counter())
    for taken in messages:
        message = taken.result
        if message is None:
            continue
        before = after.get(message.scenario_uuid)
        if before is None:
            batch.verdicts[metrics.UNKNOWN_SCENARIO] += 1
            continue
        now, verdict = advance(before, message)
        batch.verdicts[verdict] += 1
        if now is not before:
            after[message.scenario_uuid] = batch.progress[message.scenario_uuid] = now
        if verdict is Verdict.STORED and isinstance(message, Frame):
            batch.frames.append(message)
        elif verdict is Verdict.STORED and isinstance(message, Gap):
            batch.gaps.append(message)
    return batch


def store(
    connection: Connection,
    topic_id: str,
    positions: Mapping[int, int],
    messages: Sequence[ReceivedMessage],
    while_waiting: Callable[[], None],
) -> StoredBatch:
    """Stores a batch and moves the positions past it, together or not at all; `while_waiting` is called while the server works.

    Raises PositionLost, and psycopg.Error where the database is away or refuses a row.
    """
    with connection.transaction():
        batch = _write(connection, messages, while_waiting)
        crashpoint("inbox.before_position")
        moves = {taken.partition: (positions[taken.partition], taken.offset + 1) for taken in messages}
        moved = inbox_partitions.move_positions(connection, RESULTS, topic_id, moves)
        if moved != moves.keys():
            raise PositionLost(frozenset(moves.keys() - moved))
        crashpoint("inbox.before_commit")
    crashpoint("inbox.after_commit")
    return batch


def _write(tx: Connection, messages: Sequence[ReceivedMessage], meanwhile: Callable[[], None]) -> StoredBatch:
    uuids = sorted({taken.result.scenario_uuid for taken in messages if taken.result})
    batch = advance_progress(results.lock_progress(tx, uuids), messages)
    results.add_frames(tx, batch.frames, meanwhile)
    results.add_gaps(tx, batch.gaps)
    results.write_progress(tx, batch.progress)
    outbox.add_messages(tx, [_build_dead_letter_row(taken) for taken in messages if taken.error is not None])
    return batch


def _build_dead_letter_row(taken: ReceivedMessage) -> outbox.OutboxMessage:
    """The message as it lay in the log, as much of it as Kafka takes in one message again."""
    key, value, headers = taken.key, taken.value, tuple(taken.headers)
    error, cut = taken.error or "", False
    if value is not None and len(value) > DEAD_LETTER_VALUE_BYTES:
        error = f"{error} (the first {DEAD_LETTER_VALUE_BYTES} of {len(value)} bytes are kept)"
        value, cut = value[:DEAD_LETTER_VALUE_BYTES], True
    if key is not None and len(key) > DEAD_LETTER_FIELD_BYTES:
        key, cut = key[:DEAD_LETTER_FIELD_BYTES], True
    if len(msgspec.json.encode(headers)) > DEAD_LETTER_FIELD_BYTES:
        headers, cut = (), True
    error = keep_start(error, DEAD_LETTER_FIELD_BYTES)
    letter = DeadLetter(RESULTS, taken.partition, taken.offset, error, key, value, headers, cut)
    return outbox.OutboxMessage(
        topic=DEAD_LETTERS, key=letter.place, kind="dead_letter", epoch=0, payload=encode(letter)
    )


def count_poison_run(run: int, messages: Sequence[ReceivedMessage]) -> int:
    """How many messages of workers in a row could not be taken, at the end of a batch, where `run` could not before it.

    What nobody of ours sent tells nothing of this version, however much of it there is: it counts neither way. Raises
    MostlyPoison where that run grew too long on the way, or most of a batch is poison.
    """
    sent = [taken for taken in messages if taken.error is None or taken.from_worker]
    poison = [taken for taken in sent if taken.error is not None]
    longest = run
    for taken in sent:
        run = run + 1 if taken.error is not None else 0
        longest = max(longest, run)
    if longest >= POISON_RUN or (len(sent) >= POISON_BATCH and 2 * len(poison) > len(sent)):
        first = poison[0]
        raise PoisonLimitExceeded(
            f"{len(poison)} of the last {len(sent)} messages of workers cannot be taken, from partition {first.partition} of "
            f"{RESULTS}, offset {first.offset} on: {first.error}. They are neither stored nor dropped, and nothing behind them "
            "is taken. Most likely the workers are of a newer version: upgrade the inbox. If nobody needs the messages, set the "
            "partition's position in inbox_partitions behind them: it goes on from there"
        )
    return run
