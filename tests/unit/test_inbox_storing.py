from __future__ import annotations

import msgspec
import pytest

from vidflow.domain.messages import End, EndReason, Frame, Gap, GapReason, Result, decode_dead_letter
from vidflow.domain.progress import Progress
from vidflow.infra.kafka.clients import Headers
from vidflow.roles.inbox.reader import ReceivedMessage
from vidflow.roles.inbox.storing import (
    POISON_RUN,
    PoisonLimitExceeded,
    _build_dead_letter_row,
    advance_progress,
    count_poison_run,
)

UUID = "01999999-0000-7000-8000-000000000001"
OTHER = "01999999-0000-7000-8000-000000000002"


def frame(number: int, epoch: int = 1, scenario_uuid: str = UUID) -> Frame:
    return Frame(scenario_uuid, epoch, number, number * 10, "1/90000", 0, number / 5, "2026-01-01T00:00:00Z", 64, 48)


def as_messages(*messages: Result) -> list[ReceivedMessage]:
    return [ReceivedMessage(0, offset, None, b"", message) for offset, message in enumerate(messages)]


def unreadable(count: int, *, from_worker: bool = True) -> list[ReceivedMessage]:
    return [
        ReceivedMessage(0, offset, None, b"?", error="not a message", from_worker=from_worker)
        for offset in range(count)
    ]


def test_frames_in_order_are_stored_and_advance_the_progress() -> None:
    batch = advance_progress({UUID: Progress(epoch=1)}, as_messages(frame(0), frame(1)))
    assert [stored.frame_number for stored in batch.frames] == [0, 1]
    assert batch.progress[UUID].next_frame == 2


def test_a_frame_after_a_hole_is_not_stored_and_the_hole_is_recorded() -> None:
    batch = advance_progress({UUID: Progress(epoch=1)}, as_messages(frame(0), frame(2), frame(3)))
    assert [stored.frame_number for stored in batch.frames] == [0]
    assert batch.progress[UUID].hole_epoch == 1
    assert batch.verdicts == {"stored": 1, "hole": 2}


def test_a_frame_of_an_older_epoch_has_no_effect() -> None:
    batch = advance_progress({UUID: Progress(epoch=2)}, as_messages(frame(0, epoch=1)))
    assert (batch.frames, batch.progress, batch.verdicts) == ([], {}, {"ignored": 1})


def test_a_message_of_an_unknown_scenario_is_only_counted() -> None:
    batch = advance_progress({}, as_messages(frame(0)))
    assert (batch.frames, batch.progress, batch.verdicts) == ([], {}, {"unknown": 1})


def test_two_scenarios_in_a_batch_do_not_mix() -> None:
    batch = advance_progress(
        {UUID: Progress(epoch=1), OTHER: Progress(epoch=1, next_frame=5)}, as_messages(frame(0), frame(5, 1, OTHER))
    )
    assert batch.progress[UUID].next_frame == 1
    assert batch.progress[OTHER].next_frame == 6


def test_gaps_are_stored_with_the_frame_or_the_end_after_them() -> None:
    gaps = (Gap(0.2, 0.4, GapReason.CORRUPT),)
    second, end = msgspec.structs.replace(frame(1), gaps=gaps), End(UUID, 1, 1, EndReason.FINISHED, gaps)
    batch = advance_progress({UUID: Progress(epoch=1)}, as_messages(frame(0), second, second, end))
    assert batch.with_gaps == [second, end]
    assert batch.progress[UUID].end_last_frame == 1


def test_gaps_of_a_message_that_is_not_stored_are_not_stored() -> None:
    gaps = (Gap(0.2, 0.4, GapReason.CORRUPT),)
    messages = [msgspec.structs.replace(frame(number, epoch), gaps=gaps) for number, epoch in ((4, 2), (6, 2), (5, 1))]
    batch = advance_progress({UUID: Progress(epoch=2, next_frame=5)}, as_messages(*messages))
    assert (batch.frames, batch.with_gaps) == ([], [])


def test_gaps_of_an_end_that_another_epoch_has_passed_are_not_stored() -> None:
    """A restored database has an earlier epoch, so that the messages of two epochs count."""
    end = End(UUID, 2, 3, EndReason.STOPPED, (Gap(0.8, 1.4, GapReason.DROPPED),))
    batch = advance_progress({UUID: Progress(epoch=1, next_frame=5)}, as_messages(end))
    assert batch.progress[UUID].end_epoch == 2
    assert batch.with_gaps == []


def test_an_unreadable_message_extends_the_poison_run() -> None:
    assert count_poison_run(3, unreadable(2)) == 5


def test_a_readable_message_ends_the_poison_run() -> None:
    assert count_poison_run(3, [*unreadable(2), *as_messages(frame(0))]) == 0


def test_a_mostly_unreadable_batch_exceeds_the_poison_limit() -> None:
    with pytest.raises(PoisonLimitExceeded, match="partition 0 of results, offset 0"):
        count_poison_run(0, [*unreadable(11), *as_messages(*[frame(number) for number in range(9)])])


def test_a_half_unreadable_batch_does_not_exceed_the_poison_limit() -> None:
    assert count_poison_run(0, [*as_messages(*[frame(number) for number in range(10)]), *unreadable(10)]) == 10


def test_messages_not_from_a_worker_neither_extend_nor_end_the_poison_run() -> None:
    assert count_poison_run(3, unreadable(1000, from_worker=False)) == 3
    assert count_poison_run(3, [*unreadable(1000, from_worker=False), *unreadable(2), *as_messages(frame(0))]) == 0


def test_messages_not_from_a_worker_do_not_hide_a_mostly_unreadable_batch() -> None:
    with pytest.raises(PoisonLimitExceeded, match="20 of the last 30"):
        count_poison_run(
            0,
            [
                *unreadable(500, from_worker=False),
                *unreadable(20),
                *as_messages(*[frame(number) for number in range(10)]),
            ],
        )


def test_a_long_run_over_small_batches_exceeds_the_poison_limit() -> None:
    with pytest.raises(PoisonLimitExceeded):
        count_poison_run(POISON_RUN - 1, unreadable(1))


@pytest.mark.parametrize("odd", ["\x01", '"', "a", "\N{GRINNING FACE}"])
def test_a_dead_letter_fits_into_a_message_whatever_it_contains(odd: str) -> None:
    headers: Headers = [(odd * 1000, b"\xff" * 300)] * 7
    letter = _build_dead_letter_row(
        ReceivedMessage(3, 2**53 - 1, b"k" * 60_000, b"\x00" * 5_000_000, error=odd * 500_000, headers=headers)
    )
    assert len(letter.payload) < 900_000
    kept = decode_dead_letter(letter.payload)
    assert (kept.cut, kept.place) == (True, letter.key)
    assert kept.error.startswith(odd * 1000)
