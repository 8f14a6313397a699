"""A real runner process for tests, and a control plane that sends it commands and reads its reports and its workers' results."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer
from tests.integration.processes import children
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import (
    Command,
    Deploy,
    End,
    Entry,
    Frame,
    Report,
    Result,
    ResumePoint,
    SourceOpened,
    decode_result,
    decode_runner_event,
    encode,
)
from vidflow.domain.topics import RESULTS, RUNNER_EVENTS, commands_topic
from vidflow.infra.kafka import admin, clients, offsets, topics
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.video import FrameGap

WAIT_LIMIT_S = 60.0


def new_uuid() -> str:
    """Return a uuid for a scenario. Version 4 is enough, since nothing here sorts by time."""
    return str(uuid.uuid4())


def make_deploy(scenario_uuid: str, source: Path | str, model: str = "motion", epoch: int = 1, **fields: Any) -> Deploy:
    return Deploy(scenario_uuid, epoch, str(source), model, **fields)


class ControlPlane:
    """Stands in for the leader and the inbox: sends commands, and collects all reports and results from its creation on."""

    def __init__(self, settings: KafkaSettings, pool: str = "default") -> None:
        topics.create_topics(settings)
        self._admin = admin.create_admin(settings)
        self._topic = commands_topic(pool)
        self._producer = clients.create_producer(settings, client_id="test-control-plane")
        self._reader: Consumer = clients.create_consumer(settings, client_id="test-control-plane")
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

    def wait_until(self, condition: Callable[[], Any], description: str, limit_s: float = WAIT_LIMIT_S) -> None:
        def is_met() -> bool:
            self.poll()
            return bool(condition())

        wait_until(is_met, description, limit_s)

    def last_report(self, runner: str) -> Report | None:
        return next((report for report in reversed(self.reports) if report.runner == runner), None)

    def entry(self, runner: str, scenario_uuid: str) -> Entry | None:
        report = self.last_report(runner)
        entries = report.entries if report else ()
        return next((entry for entry in entries if entry.scenario_uuid == scenario_uuid), None)

    def wait_until_ended(self, runner: str, scenario_uuid: str, epoch: int = 1, limit_s: float = WAIT_LIMIT_S) -> Entry:
        """Wait until the scenario's entry of this epoch has ended, and return it."""

        def is_ended() -> bool:
            entry = self.entry(runner, scenario_uuid)
            return entry is not None and entry.epoch == epoch and not entry.is_running

        self.wait_until(is_ended, f"the entry of {scenario_uuid} has ended", limit_s)
        entry = self.entry(runner, scenario_uuid)
        assert entry is not None
        return entry

    def results_of(self, scenario_uuid: str, epoch: int = 1) -> list[Result]:
        return [result for result in self.results if (result.scenario_uuid, result.epoch) == (scenario_uuid, epoch)]

    def frames(self, scenario_uuid: str, epoch: int = 1) -> list[Frame]:
        return [result for result in self.results_of(scenario_uuid, epoch) if isinstance(result, Frame)]

    def steps(self, scenario_uuid: str, epoch: int = 1) -> list[Frame | FrameGap]:
        """Return the frames and gaps in order."""
        steps: list[Frame | FrameGap] = []
        for result in self.results_of(scenario_uuid, epoch):
            if isinstance(result, Frame | End):
                after = result.previous_frame
                steps += [FrameGap(after, gap.from_s, gap.to_s, gap.frames, gap.reason) for gap in result.gaps]
            if isinstance(result, Frame):
                steps.append(result)
        return steps

    def gaps(self, scenario_uuid: str, epoch: int = 1) -> list[FrameGap]:
        return [step for step in self.steps(scenario_uuid, epoch) if isinstance(step, FrameGap)]

    def opened(self, scenario_uuid: str, epoch: int = 1) -> list[SourceOpened]:
        return [result for result in self.results_of(scenario_uuid, epoch) if isinstance(result, SourceOpened)]

    def wait_for_end_marker(self, scenario_uuid: str, epoch: int = 1, limit_s: float = WAIT_LIMIT_S) -> End:
        """Wait for the end marker and return it. It must be the last result."""
        self.wait_until(
            lambda: any(isinstance(result, End) for result in self.results_of(scenario_uuid, epoch)),
            "the end marker is received",
            limit_s,
        )
        last = self.results_of(scenario_uuid, epoch)[-1]
        assert isinstance(last, End)
        return last


class RunnerProcess:
    """A `vidflow runner` process. `launcher`: a command that runs it, in place of running it itself."""

    def __init__(
        self,
        settings: KafkaSettings,
        log: Path,
        *options: str,
        crash_at: str = "",
        environment: dict[str, str] | None = None,
        launcher: Sequence[str] = (),
    ) -> None:
        self._log = log
        command = [*launcher, sys.executable, "-m", "vidflow", "runner", "--kafka", settings.bootstrap, *options]
        variables = {"PATH": "/usr/bin:/bin", "VIDFLOW_CRASHPOINTS": crash_at, **(environment or {})}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, env=variables, stderr=stderr)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def workers(self) -> list[int]:
        """Return the pids of its workers, which are the children of its forkservers."""
        return [pid for child in children(self.process.pid) for pid in children(child)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for_id(self, control_plane: ControlPlane) -> str:
        """Wait until it has reported, and return its id."""
        id_part = f"-{self.process.pid}-"
        control_plane.wait_until(
            lambda: (
                self.process.poll() is not None or any(id_part in report.runner for report in control_plane.reports)
            ),
            "it reports",
        )
        assert self.process.poll() is None, self.log
        return next(report.runner for report in control_plane.reports if id_part in report.runner)


@contextmanager
def running_runner(settings: KafkaSettings, folder: Path, *options: str, **arguments: Any) -> Iterator[RunnerProcess]:
    """Start a runner, and kill it when the block ends."""
    process = RunnerProcess(settings, folder / f"runner-{time.monotonic_ns()}.log", *options, **arguments)
    try:
        yield process
    finally:
        process.kill()


def resume_after(frame: Frame, opened: SourceOpened) -> ResumePoint:
    """Return the resume point that the leader would send if `frame` were the last stored frame."""
    return ResumePoint(
        frame.frame_number + 1, frame.origin_pts, frame.time_base, frame.pts, frame.time_s, opened.identity,
        live=opened.live,
    )  # fmt: skip
