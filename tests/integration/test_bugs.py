"""Bugs in vidflow are reported as such, and not retried if a retry would meet them again. Real workers with deliberate bugs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import clips
from tests.integration import injected_bugs
from tests.integration.cli_process import run_command
from tests.integration.injected_bugs import AT_FRAME, AT_OPEN, AT_READ, BUG_FRAME, CRASH_AT_READ
from tests.integration.runner_harness import ControlPlane, make_deploy, new_uuid, resume_after, running_runner

from vidflow import VERSIONS
from vidflow.domain.messages import EndReason, Entry, Parameters, PoisonPolicy, WorkerWait
from vidflow.infra.kafka.settings import KafkaSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bugs and a clip for each."""
    folder = tmp_path_factory.mktemp("bugs")
    clip = clips.constant_rate(folder / "plain.mp4", frames=20)
    for name in (AT_OPEN, AT_READ, AT_FRAME, CRASH_AT_READ):
        shutil.copy(clip, folder / f"{name}.mp4")
    return folder


@pytest.fixture(scope="module")
def runner_id(kafka_settings: KafkaSettings, folder: Path, control_plane: ControlPlane) -> Iterator[str]:
    """The id of a runner whose workers have the bugs."""
    environment = injected_bugs.install(folder)
    with running_runner(kafka_settings, folder, "--any-file", environment=environment) as process:
        yield process.wait_for_id(control_plane)


def wait_until_failed(control_plane: ControlPlane, name: str, uuid: str, epoch: int = 1) -> Entry:
    entry = control_plane.wait_until_ended(name, uuid, epoch)
    assert entry.reason is EndReason.ERROR
    assert entry.error is not None
    assert entry.error.code == "internal_error"
    return entry


@pytest.mark.parametrize(
    ("bug", "waits_for", "text"),
    [(AT_OPEN, WorkerWait.START, "TypeError: open() got"), (AT_READ, WorkerWait.SOURCE, "IndexError: list index")],
)
def test_a_bug_that_a_retry_would_meet_again_is_permanent_and_reported_as_a_fault_of_vidflow(
    control_plane: ControlPlane, runner_id: str, folder: Path, bug: str, waits_for: WorkerWait, text: str
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, folder / f"{bug}.mp4"))
    entry = wait_until_failed(control_plane, runner_id, uuid)
    assert (entry.fatal, entry.waits_for) == (True, waits_for)
    assert entry.error is not None
    assert entry.error.message.startswith(f"Internal error in vidflow {VERSIONS} ({text}")
    assert "This is a bug in vidflow, not a fault of the request. Report it" in entry.error.message
    assert "Traceback (most recent call last)" in (entry.detail or "")
    assert text in (entry.detail or "")


def test_a_retry_does_not_take_a_crash_of_the_decoder_for_one_of_the_model(
    control_plane: ControlPlane, runner_id: str, folder: Path
) -> None:
    uuid = new_uuid()
    control_plane.send_command(runner_id, make_deploy(uuid, folder / f"{CRASH_AT_READ}.mp4", attempt=1))
    entry = control_plane.wait_until_ended(runner_id, uuid)
    # All frames before it are inferred: none of them was being inferred while this one was decoded.
    assert (entry.reason, entry.waits_for) == (EndReason.CRASHED, WorkerWait.SOURCE)
    assert entry.next_frame == BUG_FRAME


def test_a_bug_at_a_frame_is_permanent_if_a_retry_of_that_frame_alone_meets_it_again(
    control_plane: ControlPlane, runner_id: str, folder: Path
) -> None:
    uuid, source = new_uuid(), folder / f"{AT_FRAME}.mp4"
    control_plane.send_command(runner_id, make_deploy(uuid, source))
    first = wait_until_failed(control_plane, runner_id, uuid)
    assert (first.fatal, first.waits_for) == (False, WorkerWait.INFERENCE)

    stored = next(frame for frame in reversed(control_plane.frames(uuid)) if frame.frame_number < BUG_FRAME)
    resume = resume_after(stored, control_plane.opened(uuid)[0])
    control_plane.send_command(runner_id, make_deploy(uuid, source, epoch=2, attempt=1, resume=resume))
    again = wait_until_failed(control_plane, runner_id, uuid, epoch=2)
    assert again.error is not None
    assert (again.fatal, again.error.frame_number) == (True, BUG_FRAME)


def test_a_bug_at_a_frame_is_not_permanent_if_the_scenario_skips_poisonous_frames(
    control_plane: ControlPlane, runner_id: str, folder: Path
) -> None:
    uuid, source = new_uuid(), folder / f"{AT_FRAME}.mp4"
    skips = Parameters(on_poison=PoisonPolicy.SKIP)
    control_plane.send_command(runner_id, make_deploy(uuid, source, parameters=skips))
    wait_until_failed(control_plane, runner_id, uuid)
    resume = resume_after(control_plane.frames(uuid)[-1], control_plane.opened(uuid)[0])
    control_plane.send_command(
        runner_id, make_deploy(uuid, source, epoch=2, attempt=1, resume=resume, parameters=skips)
    )
    assert not wait_until_failed(control_plane, runner_id, uuid, epoch=2).fatal


@pytest.mark.long
@pytest.mark.usefixtures("control_plane")  # its setup writes the bugs to the folder
def test_run_reports_a_bug_of_vidflow_at_the_first_attempt_and_exits_with_1(folder: Path) -> None:
    result = run_command("run", str(folder / f"{AT_OPEN}.mp4"), variables=injected_bugs.install(folder))
    assert result.returncode == 1, result.stderr
    assert "Gave up after" not in result.stderr
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("vidflow: Scenario ")
    assert "failed: Internal error in vidflow" in last
    assert "Traceback (most recent call last)" in result.stderr  # the history ends with the servers of this run


def test_a_bug_in_a_command_prints_its_traceback_and_asks_to_report_it(folder: Path) -> None:
    (folder / "bug").mkdir()
    (folder / "bug" / "sitecustomize.py").write_text(
        "import vidflow.cli.app\nvidflow.cli.app.read_environment_variable = None\n"
    )
    result = run_command("relay", variables={"PYTHONPATH": str(folder / "bug")})
    assert result.returncode == 1, result.stderr
    assert "Traceback (most recent call last)" in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"vidflow: Internal error in vidflow {VERSIONS} (TypeError: ")
