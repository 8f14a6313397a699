"""Bugs of vidflow's own: reported as such, not retried where a retry meets them again. Real workers with deliberate bugs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import clips
from tests.integration import broken_vidflow
from tests.integration.broken_vidflow import AT_FRAME, AT_OPEN, AT_READ, BAD_FRAME
from tests.integration.programs import ended
from tests.integration.runners import Stage, deploy, new_uuid, resume_behind, runner

from vidflow import VERSIONS
from vidflow.domain.messages import EndReason, Entry, OnPoison, Parameters, Waiting
from vidflow.infra.kafka.settings import KafkaSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the bugs, and a clip for each."""
    folder = tmp_path_factory.mktemp("bugs")
    clip = clips.constant_rate(folder / "plain.mp4", frames=20)
    for name in (AT_OPEN, AT_READ, AT_FRAME):
        shutil.copy(clip, folder / f"{name}.mp4")
    return folder


@pytest.fixture(scope="module")
def name(kafka_settings: KafkaSettings, folder: Path, stage: Stage) -> Iterator[str]:
    """The id of a runner whose workers have the bugs."""
    environment = broken_vidflow.install(folder)
    with runner(kafka_settings, folder, "--any-file", environment=environment) as process:
        yield process.id_on(stage)


def failed(stage: Stage, name: str, uuid: str, epoch: int = 1) -> Entry:
    entry = stage.ended(name, uuid, epoch)
    assert entry.reason is EndReason.ERROR
    assert entry.error is not None
    assert entry.error.code == "internal_error"
    return entry


@pytest.mark.parametrize(
    ("bug", "waits_for", "says"),
    [(AT_OPEN, Waiting.START, "TypeError: open() got"), (AT_READ, Waiting.SOURCE, "IndexError: list index")],
)
def test_a_bug_that_a_retry_would_meet_again_is_permanent_and_called_a_fault_of_vidflow(
    stage: Stage, name: str, folder: Path, bug: str, waits_for: Waiting, says: str
) -> None:
    uuid = new_uuid()
    stage.command(name, deploy(uuid, folder / f"{bug}.mp4"))
    entry = failed(stage, name, uuid)
    assert (entry.fatal, entry.waits_for) == (True, waits_for)
    assert entry.error is not None
    assert entry.error.message.startswith(f"Internal error in vidflow {VERSIONS} ({says}")
    assert "This is a fault of vidflow, not of the request; report it" in entry.error.message
    assert "Traceback (most recent call last)" in (entry.detail or "")
    assert says in (entry.detail or "")


def test_a_bug_at_a_frame_is_permanent_once_the_frame_alone_meets_it_again(
    stage: Stage, name: str, folder: Path
) -> None:
    uuid, source = new_uuid(), folder / f"{AT_FRAME}.mp4"
    stage.command(name, deploy(uuid, source))
    first = failed(stage, name, uuid)
    assert (first.fatal, first.waits_for) == (False, Waiting.INFERENCE)

    stored = next(frame for frame in reversed(stage.frames(uuid)) if frame.frame_number < BAD_FRAME)
    resume = resume_behind(stored, stage.opened(uuid)[0])
    stage.command(name, deploy(uuid, source, epoch=2, attempt=1, resume=resume))
    again = failed(stage, name, uuid, epoch=2)
    assert again.error is not None
    assert (again.fatal, again.error.frame_number) == (True, BAD_FRAME)


def test_a_bug_at_a_frame_is_left_to_the_attempts_of_a_scenario_that_skips_such_frames(
    stage: Stage, name: str, folder: Path
) -> None:
    uuid, source = new_uuid(), folder / f"{AT_FRAME}.mp4"
    skips = Parameters(on_poison=OnPoison.SKIP)
    stage.command(name, deploy(uuid, source, parameters=skips))
    failed(stage, name, uuid)
    resume = resume_behind(stage.frames(uuid)[-1], stage.opened(uuid)[0])
    stage.command(name, deploy(uuid, source, epoch=2, attempt=1, resume=resume, parameters=skips))
    assert not failed(stage, name, uuid, epoch=2).fatal


@pytest.mark.long
@pytest.mark.usefixtures("stage")  # its setup puts the bugs into the folder
def test_run_says_at_the_first_attempt_that_it_is_vidflows_fault_and_ends_with_1(folder: Path) -> None:
    end = ended("run", str(folder / f"{AT_OPEN}.mp4"), given=broken_vidflow.install(folder))
    assert end.returncode == 1, end.stderr
    assert "gave up after" not in end.stderr
    *_, last = end.stderr.strip().splitlines()
    assert last.startswith("vidflow: scenario ")
    assert "failed: Internal error in vidflow" in last
    assert "Traceback (most recent call last)" in end.stderr  # with the servers, their history is gone


def test_a_bug_in_a_command_ends_it_with_its_traceback_and_what_to_report(folder: Path) -> None:
    (folder / "bug").mkdir()
    (folder / "bug" / "sitecustomize.py").write_text("import vidflow.cli.app\nvidflow.cli.app.environment = None\n")
    end = ended("relay", given={"PYTHONPATH": str(folder / "bug")})
    assert end.returncode == 1, end.stderr
    assert "Traceback (most recent call last)" in end.stderr
    last = end.stderr.strip().splitlines()[-1]
    assert last.startswith(f"vidflow: Internal error in vidflow {VERSIONS} (TypeError: ")
