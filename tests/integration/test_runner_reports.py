"""A real runner whose workers fail with more error text than fits in a message keeps running and reports every failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests import clips
from tests.integration import faulty_models
from tests.integration.delivery import limited_message_size
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner

from vidflow.domain.messages import EndReason, Ping
from vidflow.domain.topics import RUNNER_EVENTS
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = pytest.mark.long

WORKERS = 40
"""With 8 kB of control characters from each, which take six bytes in JSON, a report would have 1.9 MB."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.constant_rate(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=5)


@contextmanager
def faulty_runner(settings: KafkaSettings, folder: Path) -> Iterator[RunnerProcess]:
    options = ["--any-file", "--max-workers", str(WORKERS)]
    with running_runner(settings, folder, *options, environment=faulty_models.install(folder)) as process:
        yield process


def fail_all(control_plane: ControlPlane, name: str, clip: Path, model: str) -> set[str]:
    """Deploy as many scenarios as the runner has slots. Return their uuids once all are reported as ended."""
    uuids = {new_uuid() for _ in range(WORKERS)}
    for uuid in uuids:
        control_plane.send_command(name, make_deploy(uuid, clip, model))

    def all_ended() -> bool:
        report = control_plane.last_report(name)
        return report is not None and uuids == {entry.scenario_uuid for entry in report.entries if not entry.is_running}

    control_plane.wait_until(all_ended, "all are reported as ended", limit_s=90)
    return uuids


def test_a_runner_whose_workers_all_fail_with_control_characters_keeps_running(
    kafka_settings: KafkaSettings, tmp_path: Path, control_plane: ControlPlane, clip: Path
) -> None:
    with faulty_runner(kafka_settings, tmp_path) as process:
        name = process.wait_for_id(control_plane)
        fail_all(control_plane, name, clip, "control_characters_on_stderr")
        report = control_plane.last_report(name)
        assert report is not None
        for entry in report.entries:
            assert entry.reason is EndReason.CRASHED
            assert entry.error is not None
            assert entry.error.code == "worker_crashed"
            assert (entry.detail or "").endswith("\x1b\x02")
        taken = report.taken
        control_plane.send_command(name, Ping(name))
        control_plane.wait_until(
            lambda: (last := control_plane.last_report(name)) and last.taken == taken + 1, "it still takes commands"
        )
        assert process.process.poll() is None
        assert "report_too_large" not in process.log


def test_a_low_message_size_limit_makes_reports_smaller_and_is_logged(
    kafka_settings: KafkaSettings, tmp_path: Path, control_plane: ControlPlane, clip: Path
) -> None:
    with (
        limited_message_size(kafka_settings, RUNNER_EVENTS, 60_000),
        faulty_runner(kafka_settings, tmp_path) as process,
    ):
        name = process.wait_for_id(control_plane)
        fail_all(control_plane, name, clip, "random_text_on_stderr")
        assert process.process.poll() is None
        assert "set max.message.bytes of the topic runner_events to 1048588" in process.log
        report = control_plane.last_report(name)
        assert report is not None
        assert all(entry.detail and entry.error and entry.error.message for entry in report.entries)
