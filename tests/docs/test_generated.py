"""The generated pages are those that the code gives today."""

from __future__ import annotations

import json
from typing import Any

import pytest
from docs.generator.__main__ import PAGES, REFERENCE
from docs.generator.kafka_messages import TOPICS, asyncapi_document
from openapi_spec_validator import validate

from vidflow.domain import messages
from vidflow.infra.kafka.topics import PARTITIONS


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (REFERENCE / name).read_text() == PAGES[name](), "run: python -m docs.generator"


def test_the_openapi_document_is_valid() -> None:
    validate(json.loads((REFERENCE / "openapi.json").read_text()))


def test_each_reference_in_the_asyncapi_document_has_a_target() -> None:
    document = asyncapi_document()
    found = references(document)
    assert found
    for reference in found:
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if "$ref" in value else set()
    return own.union(*(references(item) for item in value.values()))


def test_the_documented_topics_are_those_that_vidflow_creates() -> None:
    assert {topic.name.replace("POOL", "default") for topic in TOPICS} == set(PARTITIONS)


def test_every_kind_of_message_is_documented_on_one_topic() -> None:
    documented = [kind for topic in TOPICS for kind in topic.kinds]
    assert sorted(kind.__name__ for kind in documented) == sorted(
        kind.__name__ for kind in messages.Message.__subclasses__()
    )
