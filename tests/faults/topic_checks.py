"""Checks of the topics after a run: every runner's list is empty, only pings are still sent, and how many frames were sent."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from tests.faults.system_under_test import Processes
from tests.faults.violation import violation

from vidflow.domain.messages import Frame, Ping, Report, decode_command, decode_result, decode_runner_event
from vidflow.domain.topics import RESULTS, RUNNER_EVENTS, commands_topic
from vidflow.infra.kafka import admin, clients, offsets

QUIET_S: Final = 2.5
"""Longer than any interval after which a command is sent again."""
LIMIT_S: Final = 40.0


def check_7_quiescence(processes: Processes) -> None:
    """Every runner's list is empty, and no results and no commands other than pings are sent."""
    client = admin.create_admin(processes.kafka)
    reader = clients.create_consumer(processes.kafka, client_id="fault-checks")
    try:
        offsets.assign_at_end(client, reader, [RUNNER_EVENTS, RESULTS, commands_topic("default")])
        _wait_until_quiescent(reader, processes)
    finally:
        reader.close()


def count_frames_sent(processes: Processes, uuids: Collection[str]) -> int:
    """Return how many frames of these scenarios were sent, including those that were not stored."""
    client = admin.create_admin(processes.kafka)
    ends, wanted = offsets.read_end_offsets(client, RESULTS), set(uuids)
    firsts = offsets.read_first_offsets(client, RESULTS, ends)  # a test may have emptied it
    reader = clients.create_consumer(processes.kafka, client_id="fault-checks")
    try:
        reader.assign([TopicPartition(RESULTS, number, first) for number, first in firsts.items()])
        left, frames, deadline_s = sum(ends.values()) - sum(firsts.values()), 0, time.monotonic() + LIMIT_S
        while left > 0 and time.monotonic() < deadline_s:
            messages = [message for message in clients.consume_available(reader, 1000, 0.2) if not message.error()]
            left -= len(messages)
            results = [decode_result(message.value()) for message in messages]
            frames += sum(isinstance(result, Frame) and result.scenario_uuid in wanted for result in results)
    finally:
        reader.close()
    assert left <= 0, f"{left} results were not read within {LIMIT_S} s"
    return frames


def _wait_until_quiescent(reader: Consumer, processes: Processes) -> None:
    deadline_s, last_message_s = time.monotonic() + LIMIT_S, time.monotonic()
    reports: dict[str, Report] = {}
    seen: list[str] = []
    while time.monotonic() < deadline_s:
        for message in clients.consume_available(reader, 500, 0.1):
            if message.error():
                raise KafkaException(message.error())
            if message.topic() == RUNNER_EVENTS:
                event = decode_runner_event(message.value())
                reports |= {event.runner: event} if isinstance(event, Report) else {}
            elif (description := _describe_work_message(message)) is not None:
                seen.append(description)
                last_message_s = time.monotonic()
        if time.monotonic() - last_message_s > QUIET_S and _all_empty(reports, processes.pids()["runner"]):
            return
    raise violation(7, f"not quiescent within {LIMIT_S} s: {seen[-10:]}; reports {list(reports.values())}")


def _describe_work_message(message: Message) -> str | None:
    """Describe a message that is only sent while there is work. Return None for a ping."""
    if message.topic() == RESULTS:
        return f"result: {message.value()[:200]!r}"
    command = decode_command(message.value())
    return None if isinstance(command, Ping) else f"command: {command}"


def _all_empty(reports: dict[str, Report], pids: list[int]) -> bool:
    """Return whether every running runner has reported and no report has entries."""
    reported = {int(runner.split("-")[-2]) for runner in reports}
    return set(pids) <= reported and not any(report.entries for report in reports.values())
