from __future__ import annotations

import uuid

import pytest
from confluent_kafka import KafkaError

from vidflow.infra.kafka import ClientBroken
from vidflow.infra.outbox import Pending
from vidflow.infra.publisher import _answers

TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)
TOO_LARGE = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)


def rows(*keys: str) -> list[Pending]:
    return [
        Pending(id=number, topic="t", key=key, kind="k", epoch=1, payload=b"", message_id=uuid.UUID(int=number))
        for number, key in enumerate(keys)
    ]


def test_a_failure_lets_only_the_rows_before_it_of_its_key_be_marked() -> None:
    answers = _answers(rows("a", "b", "a", "a", "b"), {2: TIMED_OUT}, {0, 1, 2, 3, 4})
    assert answers.acknowledged == [0, 1, 4]
    assert list(answers.failed) == ["a"]


def test_a_row_that_no_broker_takes_blocks_nothing_behind_it() -> None:
    answers = _answers(rows("a", "a", "b"), {0: TOO_LARGE}, {0, 1, 2})
    assert answers.acknowledged == [1, 2]
    assert list(answers.refused) == [0]


def test_a_row_without_an_answer_is_not_acknowledged() -> None:
    answers = _answers(rows("a", "b"), {}, {1})
    assert answers.acknowledged == [1]
    assert list(answers.failed) == ["a"]


def test_a_client_that_has_given_up_is_said_to_be_broken() -> None:
    with pytest.raises(ClientBroken):
        _answers(rows("a"), {0: KafkaError(KafkaError._FATAL)}, {0})
