"""Kafka's topics and the messages on them: a page, and an AsyncAPI 3 document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from docs.generator.markdown import GENERATED, code, document, fields_table, table

from vidflow import __version__
from vidflow.domain import errors, messages, topics
from vidflow.domain.detections import Detection
from vidflow.domain.scenario import DEFAULT_POOL, Skip
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.topics import PARTITIONS
from vidflow.roles.api.openapi import translate_patterns


class Topic(NamedTuple):
    """A topic: its name (with the pool's name in place of POOL), its key, who writes and reads it, its messages and headers."""

    name: str
    key: str
    sender: str
    reader: str
    kinds: tuple[type[messages.Message], ...]
    headers: tuple[str, ...]

    @property
    def partitions(self) -> int:
        """The number of partitions to create."""
        return PARTITIONS[self.name.replace("POOL", DEFAULT_POOL)]


_FROM_OUTBOX: Final = (clients.MESSAGE_ID_HEADER, clients.EPOCH_HEADER, clients.KIND_HEADER)
TOPICS: Final = (
    Topic(
        topics.INIT_SCENARIO, "scenario_uuid", "api", "orchestrator", (messages.Start, messages.Shutdown), _FROM_OUTBOX
    ),
    Topic(
        topics.commands_topic("POOL"),
        "scenario_uuid; of a ping the runner",
        "orchestrator",
        "runner",
        (messages.Deploy, messages.StopWork, messages.Forget, messages.Ping),
        (*_FROM_OUTBOX, clients.RUNNER_HEADER),
    ),
    Topic(topics.RUNNER_EVENTS, "runner", "runner", "orchestrator", (messages.Report, messages.Probe), ()),
    Topic(
        topics.RESULTS,
        "scenario_uuid",
        "worker",
        "inbox",
        (messages.SourceOpened, messages.SourceLost, messages.Frame, messages.End),
        (clients.KIND_HEADER, clients.EPOCH_HEADER),
    ),
    Topic(topics.DEAD_LETTERS, "topic/partition/offset of the message", "inbox", "operator", (messages.DeadLetter,), _FROM_OUTBOX),
)  # fmt: skip
VALUES: Final = (
    messages.FileIdentity,
    messages.ResumePoint,
    messages.Parameters,
    Skip,
    messages.Entry,
    messages.Gap,
    messages.ClockChanges,
    errors.ErrorInfo,
    Detection,
)
"""Structs inside messages."""
_HEADERS: Final = {
    clients.MESSAGE_ID_HEADER: "The id of the outbox row, a version 7 uuid. A message that is published twice has the same id.",
    clients.EPOCH_HEADER: "The epoch of the deployment, as a decimal number; 0 if there is none.",
    clients.KIND_HEADER: "The kind of the message, its `type`.",
    clients.RUNNER_HEADER: "The runner that a command is for. The others skip the message without decoding it.",
}
_INTRODUCTION: Final = """# Topics and messages

{download}`asyncapi.json` describes the same as an AsyncAPI 3 document.

A message is a JSON object, lz4-compressed, whose field `type` names its kind. Fields with their default value may be left out.
Unknown fields are ignored, so that versions can be mixed during an upgrade: readers are upgraded before writers
([](../how-to/upgrades.md)). Whoever can write to these topics can control vidflow ([](../how-to/security.md)).

Messages of the api, the orchestrator and the inbox (dead letters) go through the outbox and a relay; runners and workers publish
theirs directly. The leader sends its probes to itself. `dead_letters` is compacted: a dead letter stays until it is replayed or dropped.

"""


def build_page() -> str:
    """Return the page of all topics and messages."""
    parts = [GENERATED, _INTRODUCTION]
    rows = [(code(one.name), one.partitions, one.key, one.sender, one.reader) for one in TOPICS]
    parts += [table(("topic", "partitions", "key", "from", "to"), rows), "\n## Headers\n\n"]
    rows_of_headers = [
        (code(name), meaning, ", ".join(code(one.name) for one in TOPICS if name in one.headers))
        for name, meaning in _HEADERS.items()
    ]
    parts.append(table(("header", "meaning", "on"), rows_of_headers))
    for topic in TOPICS:
        parts.append(f"\n## {topic.name}\n")
        parts += [_section(str(kind.__struct_config__.tag), kind) for kind in topic.kinds]
    parts.append("\n## Objects inside messages\n")
    parts += [_section(kind.__name__, kind) for kind in VALUES]
    return "".join(parts)


def _section(name: str, struct: type[msgspec.Struct]) -> str:
    return f"\n### {name}\n\n{document(struct)}\n\n{fields_table(struct)}"


def build_asyncapi() -> str:
    """Return the AsyncAPI document."""
    return json.dumps(asyncapi_document(), indent=1) + "\n"


def asyncapi_document() -> dict[str, Any]:
    """Return the AsyncAPI document as JSON objects."""
    kinds = [kind for topic in TOPICS for kind in topic.kinds]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    translate_patterns(schemas)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "vidflow",
            "version": __version__,
            "description": "The messages that vidflow's roles exchange over Kafka.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {_channel_name(topic): _channel(topic) for topic in TOPICS},
        "operations": {
            f"{action}_{_channel_name(topic)}_{role}": {
                "action": action,
                "summary": f"{role} {'writes' if action == 'send' else 'reads'} {topic.name}",
                "channel": {"$ref": f"#/channels/{_channel_name(topic)}"},
            }
            for topic in TOPICS
            for action, role in (("send", topic.sender), ("receive", topic.reader))
        },
        "components": {
            "messages": {_message_name(kind): _message(topic, kind) for topic in TOPICS for kind in topic.kinds},
            "schemas": schemas,
        },
    }


def _channel_name(topic: Topic) -> str:
    return topic.name.partition(".")[0]


def _channel(topic: Topic) -> dict[str, Any]:
    parameters: Mapping[str, Any] = (
        {"parameters": {"pool": {"description": "The name of a runner pool.", "default": DEFAULT_POOL}}}
        if "POOL" in topic.name
        else {}
    )
    return {
        "address": topic.name.replace("POOL", "{pool}"),
        "description": f"Key: {topic.key}. Partitions: {topic.partitions}.",
        **parameters,
        "messages": {
            _message_name(kind): {"$ref": f"#/components/messages/{_message_name(kind)}"} for kind in topic.kinds
        },
    }


def _message(topic: Topic, kind: type[messages.Message]) -> dict[str, Any]:
    headers = {name: {"type": "string", "description": _HEADERS[name]} for name in topic.headers}
    return {
        "name": str(kind.__struct_config__.tag),
        "summary": document(kind).partition("\n")[0],
        **({"headers": {"type": "object", "properties": headers}} if headers else {}),
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
    }


def _message_name(kind: type[messages.Message]) -> str:
    return str(kind.__struct_config__.tag)
