"""What the topics tell when all is over: every runner's list is empty, only pings are sent any more; how much was sent."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from tests.faults.system_under_test import Processes
from tests.faults.violation import violation

from vidflow.domain.messages import (
    RESULTS,
    RUNNER_EVENTS,
    Frame,
    Ping,
    Report,
    commands_topic,
    decode_command,
    decode_result,
    decode_runner_event,
)
from vidflow.infra.kafka import admin, clients, offsets

QUIET_S: Final = 2.5
"""Longer than any pause after which a command is given again."""
LIMIT_S: Final = 40.0


def check_7_quiescence(parts: Processes) -> None:
    """Every runner's list is empty, and nothing is sent any more: no result, and no command but pings."""
    client = admin.create_admin(parts.kafka)
    reader = clients.create_consumer(parts.kafka, client_id="fault-checks")
    try:
        offsets.assign_at_end(client, reader, [RUNNER_EVENTS, RESULTS, commands_topic("default")])
        _wait_until_quiescent(reader, parts)
    finally:
        reader.close()


def count_frames_sent(parts: Processes, uuids: Collection[str]) -> int:
    """How many frames of these scenarios were sent, those that nobody stored among them."""
    client = admin.create_admin(parts.kafka)
    ends, wanted = offsets.read_end_offsets(client, RESULTS), set(uuids)
    firsts = offsets.read_first_offsets(client, RESULTS, ends)  # a test may have emptied it
    reader = clients.create_consumer(parts.kafka, client_id="fault-checks")
    try:
        reader.assign([TopicPartition(RESULTS, number, first) for number, first in firsts.items()])
        left, frames, until_s = sum(ends.values()) - sum(firsts.values()), 0, time.monotonic() + LIMIT_S
        while left > 0 and time.monotonic() < until_s:
            messages = [message for message in clients.consume_available(reader, 1000, 0.2) if not message.error()]
            left -= len(messages)
            results = [decode_result(message.value()) for message in messages]
            frames += sum(isinstance(one, Frame) and one.scenario_uuid in wanted for one in results)
    finally:
        reader.close()
    assert left <= 0, f"{left} of the results could not be read"
    return frames


def _wait_until_quiescent(reader: Consumer, parts: Processes) -> None:
    until_s, spoken_s = time.monotonic() + LIMIT_S, time.monotonic()
    lists: dict[str, Report] = {}
    heard: list[str] = []
    while time.monotonic() < until_s:
        for message in clients.consume_available(reader, 500, 0.1):
            if message.error():
                raise KafkaException(message.error())
            if message.topic() == RUNNER_EVENTS:
                event = decode_runner_event(message.value())
                lists |= {event.runner: event} if isinstance(event, Report) else {}
            elif (said := _describe_work_message(message)) is not None:
                heard.append(said)
                spoken_s = time.monotonic()
        if time.monotonic() - spoken_s > QUIET_S and _all_empty(lists, parts.pids()["runner"]):
            return
    raise violation(7, f"not silent within {LIMIT_S} s: {heard[-10:]}; lists {list(lists.values())}")


def _describe_work_message(message: Message) -> str | None:
    """What was sent that work alone sends."""
    if message.topic() == RESULTS:
        return f"a result: {message.value()[:200]!r}"
    command = decode_command(message.value())
    return None if isinstance(command, Ping) else f"a command: {command}"


def _all_empty(lists: dict[str, Report], pids: list[int]) -> bool:
    """Whether each runner that lives has reported, and nobody lists anything."""
    reported = {int(runner.split("-")[-2]) for runner in lists}
    return set(pids) <= reported and not any(report.entries for report in lists.values())
