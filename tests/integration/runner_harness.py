"""A real runner as a process of its own, what it is told, and what it and its workers say, for tests."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer
from tests.integration.processes import children
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import (
    RESULTS,
    RUNNER_EVENTS,
    Command,
    Deploy,
    End,
    Entry,
    Frame,
    Gap,
    Report,
    Result,
    ResumePoint,
    SourceOpened,
    commands_topic,
    decode_result,
    decode_runner_event,
    encode,
)
from vidflow.infra.kafka import admin, clients, offsets, topics
from vidflow.infra.kafka.settings import KafkaSettings

WAIT_LIMIT_S = 60.0


def new_uuid() -> str:
    """A scenario's uuid. (Version 4 serves: nothing here sorts by time.)"""
    return str(uuid.uuid4())


def make_deploy(scenario_uuid: str, source: Path | str, model: str = "motion", epoch: int = 1, **fields: Any) -> Deploy:
    return Deploy(scenario_uuid, epoch, str(source), model, **fields)


class ControlPlane:
    """The topics as the leader and the inbox see them: everything said since the stage was set, and a way to command."""

    def __init__(self, settings: KafkaSettings, pool: str = "default") -> None:
        topics.create_topics(settings)
        self._admin = admin.create_admin(settings)
        self._topic = commands_topic(pool)
        self._producer = clients.create_producer(settings, client_id="leader-under-test")
        self._reader: Consumer = clients.create_consumer(settings, client_id="stage")
        offsets.assign_at_end(self._admin, self._reader, [RUNNER_EVENTS, RESULTS])
        self.reports: list[Report] = []
        self.results: list[Result] = []

    def close(self) -> None:
        self._reader.close()

    def send_command(self, runner: str, command: Command | bytes) -> None:
        value = command if isinstance(command, bytes) else encode(command)
        key = getattr(command, "scenario_uuid", runner)
        self._producer.produce(self._topic, value, key=key, headers=[(clients.RUNNER_HEADER, runner.encode())])
        assert self._producer.flush(10) == 0

    def poll(self) -> None:
        for message in clients.consume_available(self._reader, 1000, 0.02):
            assert not message.error(), message.error()
            if message.topic() == RESULTS:
                self.results.append(decode_result(message.value()))
            else:
                event = decode_runner_event(message.value())
                assert isinstance(event, Report)
                self.reports.append(event)

    def wait_until(self, condition: Callable[[], Any], what: str, limit_s: float = WAIT_LIMIT_S) -> None:
        def met() -> bool:
            self.poll()
            return bool(condition())

        wait_until(met, what, limit_s)

    def last_report(self, runner: str) -> Report | None:
        return next((report for report in reversed(self.reports) if report.runner == runner), None)

    def entry(self, runner: str, scenario_uuid: str) -> Entry | None:
        report = self.last_report(runner)
        entries = report.entries if report else ()
        return next((entry for entry in entries if entry.scenario_uuid == scenario_uuid), None)

    def wait_until_ended(self, runner: str, scenario_uuid: str, epoch: int = 1, limit_s: float = WAIT_LIMIT_S) -> Entry:
        """The scenario's entry once it is ended."""

        def is_ended() -> bool:
            entry = self.entry(runner, scenario_uuid)
            return entry is not None and entry.epoch == epoch and not entry.is_running

        self.wait_until(is_ended, f"the entry of {scenario_uuid} is ended", limit_s)
        entry = self.entry(runner, scenario_uuid)
        assert entry is not None
        return entry

    def results_of(self, scenario_uuid: str, epoch: int = 1) -> list[Result]:
        return [result for result in self.results if (result.scenario_uuid, result.epoch) == (scenario_uuid, epoch)]

    def frames(self, scenario_uuid: str, epoch: int = 1) -> list[Frame]:
        return [result for result in self.results_of(scenario_uuid, epoch) if isinstance(result, Frame)]

    def gaps(self, scenario_uuid: str, epoch: int = 1) -> list[Gap]:
        return [result for result in self.results_of(scenario_uuid, epoch) if isinstance(result, Gap)]

    def opened(self, scenario_uuid: str, epoch: int = 1) -> list[SourceOpened]:
        return [result for result in self.results_of(scenario_uuid, epoch) if isinstance(result, SourceOpened)]

    def wait_for_end_marker(self, scenario_uuid: str, epoch: int = 1, limit_s: float = WAIT_LIMIT_S) -> End:
        """The end marker, once it is there; it must be the last word."""
        self.wait_until(
            lambda: any(isinstance(one, End) for one in self.results_of(scenario_uuid, epoch)),
            "the end marker is sent",
            limit_s,
        )
        last = self.results_of(scenario_uuid, epoch)[-1]
        assert isinstance(last, End)
        return last


class RunnerProcess:
    """`vidflow runner`, and the id under which it reports."""

    def __init__(
        self,
        settings: KafkaSettings,
        log: Path,
        *options: str,
        crash_at: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self._log = log
        command = [sys.executable, "-m", "vidflow", "runner", "--kafka", settings.bootstrap, *options]
        given = {"PATH": "/usr/bin:/bin", "VIDFLOW_CRASHPOINTS": crash_at, **(environment or {})}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, env=given, stderr=stderr)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def workers(self) -> list[int]:
        """The pids of its worker processes: the children of its forkserver."""
        return [pid for child in children(self.process.pid) for pid in children(child)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for_id(self, control_plane: ControlPlane) -> str:
        """Its id, once it has reported on this stage."""
        wanted = f"-{self.process.pid}-"
        control_plane.wait_until(
            lambda: self.process.poll() is not None or any(wanted in report.runner for report in control_plane.reports),
            "it reports",
        )
        assert self.process.poll() is None, self.log
        return next(report.runner for report in control_plane.reports if wanted in report.runner)


@contextmanager
def running_runner(settings: KafkaSettings, folder: Path, *options: str, **arguments: Any) -> Iterator[RunnerProcess]:
    """A runner until the block ends; then it is killed."""
    process = RunnerProcess(settings, folder / f"runner-{time.monotonic_ns()}.log", *options, **arguments)
    try:
        yield process
    finally:
        process.kill()


def resume_after(frame: Frame, opened: SourceOpened) -> ResumePoint:
    """What the leader tells the next deployment where `frame` is the last stored one."""
    return ResumePoint(
        frame.frame_number + 1, frame.origin_pts, frame.time_base, frame.pts, frame.time_s, opened.identity
    )  # fmt: skip
