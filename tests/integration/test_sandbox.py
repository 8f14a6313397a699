"""What an attacker in a worker gets: a source takes over a real worker of a real runner, and tries what no worker needs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import clips
from tests.integration import intruder
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner

from vidflow.domain.messages import EndReason
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.sandbox import find_missing

pytestmark = pytest.mark.skipif(bool(find_missing()), reason=f"this system cannot confine workers: {find_missing()}")

SECRETS = {
    "VIDFLOW_DATABASE_URL": "postgresql://vidflow:hunter2@127.0.0.1/vidflow",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "GOOGLE_APPLICATION_CREDENTIALS": "/hunter2.json",
    "AZURE_CLIENT_SECRET": "hunter2",
    "PGPASSWORD": "hunter2",
    "SECRET_KEY": "hunter2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sandbox")


@pytest.fixture(scope="module")
def targets(folder: Path) -> Iterator[dict[str, str]]:
    """What an attacker would like to read or reach, by the name of the attempt."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_text("a private key")
    (folder / "other.mp4").write_text("the video of somebody else")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / ".s.PGSQL.5432"))
    server.listen()
    with server:
        yield {
            "read a private key": str(home / ".ssh" / "id_ed25519"),
            "read a video beside the source": str(folder / "other.mp4"),
            "read passwords of the system": "/etc/shadow",
            "connect to a database": str(folder / ".s.PGSQL.5432"),
        }


@pytest.fixture(scope="module")
def environment(folder: Path, targets: dict[str, str]) -> dict[str, str]:
    return {**SECRETS, "HOME": str(folder / "home"), **intruder.install(folder / "code", targets)}


def attack(control_plane: ControlPlane, runner: RunnerProcess, folder: Path) -> dict[str, str]:
    """Let the source take over a worker of this runner. Return what came of each attempt."""
    source = clips.constant_rate(folder / intruder.SOURCE, frames=5)
    uuid = new_uuid()
    control_plane.send_command(runner.wait_for_id(control_plane), make_deploy(uuid, source))
    end = control_plane.wait_for_end_marker(uuid)
    assert (end.reason, len(control_plane.frames(uuid))) == (EndReason.FINISHED, 5), runner.log
    labels = [detection.label for detection in control_plane.frames(uuid)[0].detections]
    return dict(label.split(": ", 1) if ": " in label else (label.rstrip(": "), "") for label in labels)


def test_an_attacker_in_a_worker_is_refused_everything_that_no_worker_needs(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str]
) -> None:
    options = ("--any-file", "--device", "cpu", "--sandbox", "require")
    with running_runner(kafka_settings, folder, *options, environment=environment) as runner:
        outcomes = attack(control_plane, runner, folder)
        log = runner.log
    facts = {
        "variables": "",
        "descriptors of the forkserver": "",
        "capabilities": "0",
        "core dump": "(0, 0)",
        "in another thread": "refused, refused",
    }
    assert {name: outcomes.pop(name) for name in facts} == facts
    assert len(outcomes) > 35
    assert {name: outcome for name, outcome in outcomes.items() if outcome != intruder.REFUSED} == {}
    assert "sandbox=landlock,seccomp" in log


def test_without_a_sandbox_the_same_attacker_gets_what_the_runner_may(
    control_plane: ControlPlane,
    kafka_settings: KafkaSettings,
    folder: Path,
    targets: dict[str, str],
    environment: dict[str, str],
) -> None:
    """This shows that the test above can fail."""
    options = ("--any-file", "--device", "cpu", "--sandbox", "off")
    harmless = intruder.install(folder / "harmless", targets, harmless=True)
    with running_runner(kafka_settings, folder, *options, environment={**environment, **harmless}) as runner:
        outcomes = attack(control_plane, runner, folder)
        log = runner.log
    assert outcomes["read a private key"] == "got b'a private key'"
    assert outcomes["connect to a database"] == "got None"
    assert "AWS_SECRET_ACCESS_KEY" in outcomes["variables"]
    assert "workers_unconfined" in log
