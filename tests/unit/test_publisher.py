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


def results_of(
    keys: str, errors: dict[int, KafkaError], waiting: Collection[int] = (), previous: DeliveryResults | None = None
) -> DeliveryResults:
    """Return the results of a batch with a row for each key, numbered from 0, added to those of `previous` batches."""
    batch = InFlightBatch([
        PendingMessage(number, str(uuid.UUID(int=number)), 0, "t", key, "k", 1, None, b"")
        for number, key in enumerate(keys)
    ])  # fmt: skip
    batch.unanswered, batch.errors = set(waiting), errors
    results = DeliveryResults() if previous is None else previous
    add_delivery_results(results, batch)
    return results


def test_after_a_failure_only_earlier_rows_of_its_key_are_removed() -> None:
    results = results_of("abaab", {2: TIMED_OUT})
    assert results.acknowledged == [0, 1, 4]
    assert list(results.failed) == ["a"]


def test_after_a_failure_no_row_of_its_key_in_later_batches_is_removed() -> None:
    results = results_of("ab", {}, previous=results_of("a", {0: TIMED_OUT}))
    assert results.acknowledged == [1]


def test_a_refused_row_does_not_block_later_rows() -> None:
    results = results_of("aab", {0: TOO_LARGE})
    assert results.acknowledged == [1, 2]
    assert list(results.refused) == [0]


def test_a_row_without_an_answer_is_not_acknowledged() -> None:
    results = results_of("ab", {}, waiting={0})
    assert results.acknowledged == [1]
    assert list(results.failed) == ["a"]


def test_a_fatal_client_error_raises_client_broken() -> None:
    with pytest.raises(ClientBroken):
        results_of("a", {0: KafkaError(KafkaError._FATAL)})


def test_rows_that_were_too_large_together_are_sent_again() -> None:
    batch = InFlightBatch(
        [PendingMessage(number, str(uuid.UUID(int=number)), 0, "t", "a", "k", 1, None, b"") for number in range(3)]
    )
    batch.sent_alone.add(2)
    message = object()
    for number in range(3):
        batch.record_delivery(number, TOO_LARGE, None if number == 0 else message)
    add_delivery_results(results := DeliveryResults(), batch)
    assert (list(results.refused), list(results.failed)) == ([0], ["a"])
    assert batch.refused_together == {1}
