"""Fake runners that do no work. They take deployments over the real topics and report each as running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from confluent_kafka import Consumer, Producer

from vidflow.domain.messages import Deploy, Entry, Report, WorkerWait, decode_command, encode
from vidflow.domain.topics import RUNNER_EVENTS, commands_topic
from vidflow.infra.kafka import admin, clients, offsets
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop

REPORT_S = 1.0
POLL_S = 0.02


class FakeRunner:
    """One fake runner. It reports `entries`; each deploy adds one."""

    def __init__(self, name: str, slots: int, pool: str = "default") -> None:
        self.name = name
        self.slots = slots
        self.pool = pool
        self.entries: dict[str, Entry] = {}
        self.deployed_at: dict[str, float] = {}
        self.taken = 0
        self.number = 0
        self.due_s = 0.0

    def report(self) -> Report:
        self.number += 1
        entries = tuple(self.entries[uuid] for uuid in sorted(self.entries))
        return Report(self.name, self.pool, self.number, self.slots, self.taken, False, entries)

    def handle_command(self, command: object) -> None:
        self.taken += 1
        self.due_s = 0.0
        if isinstance(command, Deploy):
            uuid, resume = command.scenario_uuid, command.resume.next_frame
            self.entries[uuid] = Entry(uuid, command.epoch, resume + 1, WorkerWait.SOURCE)
            self.deployed_at[uuid] = time.monotonic()
        else:
            self.entries.pop(getattr(command, "scenario_uuid", ""), None)


class FakeRunners:
    """All fake runners of a test, on one thread."""

    def __init__(self, settings: KafkaSettings, pools: Sequence[str] = ("default",)) -> None:
        self._producer: Producer = clients.create_producer(settings, client_id="fake-runners")
        self._consumer: Consumer = clients.create_consumer(settings, client_id="fake-runners")
        offsets.assign_at_end(admin.create_admin(settings), self._consumer, [commands_topic(pool) for pool in pools])
        clients.fetch_topic_metadata(self._producer, RUNNER_EVENTS)
        self._lock = threading.Lock()
        self._runners: dict[str, FakeRunner] = {}
        self._stop = Stop()
        self._thread = threading.Thread(target=self._run, name="fake runners")
        self._thread.start()

    def add(self, *runners: FakeRunner) -> None:
        with self._lock:
            self._runners |= {runner.name: runner for runner in runners}

    def kill(self, name: str) -> float:
        """Remove a runner, which reports nothing from then on. Return the time (monotonic)."""
        with self._lock:
            del self._runners[name]
        return time.monotonic()

    def close(self) -> None:
        self._stop.request()
        self._thread.join()
        self._producer.flush(5)
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.requested:
            messages = clients.consume_available(self._consumer, 500, POLL_S)
            with self._lock:
                for message in messages:
                    name = dict(clients.read_headers(message)).get(clients.RUNNER_HEADER)
                    if name and (runner := self._runners.get(name.decode())):
                        runner.handle_command(decode_command(message.value()))
                for runner in self._runners.values():
                    if time.monotonic() >= runner.due_s:
                        runner.due_s = time.monotonic() + REPORT_S
                        self._producer.produce(RUNNER_EVENTS, encode(runner.report()), key=runner.name)
            self._producer.poll(0)


@contextmanager
def fake_runners(settings: KafkaSettings, pools: Sequence[str] = ("default",)) -> Iterator[FakeRunners]:
    runners = FakeRunners(settings, pools)
    try:
        yield runners
    finally:
        runners.close()
