from __future__ import annotations

import uuid
from collections.abc import Collection

import pytest
from confluent_kafka import KafkaError

from vidflow.infra.kafka.errors import ClientBroken
from vidflow.infra.kafka.publisher import DeliveryResults, InFlightBatch, add_delivery_results
from vidflow.infra.postgres.outbox import PendingMessage

TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)
TOO_LARGE = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)


def answers_of(
    keys: str, errors: dict[int, KafkaError], waiting: Collection[int] = (), before: DeliveryResults | None = None
) -> DeliveryResults:
    """What becomes of a batch with a row for each key, numbered from 0, behind other batches."""
    flight = InFlightBatch([
        PendingMessage(number, str(uuid.UUID(int=number)), 0, "t", key, "k", 1, None, b"")
        for number, key in enumerate(keys)
    ])  # fmt: skip
    flight.unanswered, flight.errors = set(waiting), errors
    answers = DeliveryResults() if before is None else before
    add_delivery_results(answers, flight)
    return answers


def test_a_failure_lets_only_the_rows_before_it_of_its_key_be_removed() -> None:
    answers = answers_of("abaab", {2: TIMED_OUT})
    assert answers.acknowledged == [0, 1, 4]
    assert list(answers.failed) == ["a"]


def test_a_failure_lets_no_row_of_its_key_in_the_batches_behind_be_removed() -> None:
    answers = answers_of("ab", {}, before=answers_of("a", {0: TIMED_OUT}))
    assert answers.acknowledged == [1]


def test_a_row_that_no_broker_takes_blocks_nothing_behind_it() -> None:
    answers = answers_of("aab", {0: TOO_LARGE})
    assert answers.acknowledged == [1, 2]
    assert list(answers.refused) == [0]


def test_a_row_without_an_answer_is_not_acknowledged() -> None:
    answers = answers_of("ab", {}, waiting={0})
    assert answers.acknowledged == [1]
    assert list(answers.failed) == ["a"]


def test_a_client_that_has_given_up_is_said_to_be_broken() -> None:
    with pytest.raises(ClientBroken):
        answers_of("a", {0: KafkaError(KafkaError._FATAL)})


def test_rows_that_were_too_large_together_are_sent_again() -> None:
    flight = InFlightBatch(
        [PendingMessage(number, str(uuid.UUID(int=number)), 0, "t", "a", "k", 1, None, b"") for number in range(3)]
    )
    flight.sent_alone.add(2)
    message = object()
    for number in range(3):
        flight.record_delivery(number, TOO_LARGE, None if number == 0 else message)
    add_delivery_results(answers := DeliveryResults(), flight)
    assert (list(answers.refused), list(answers.failed)) == ([0], ["a"])
    assert flight.refused_together == {1}
