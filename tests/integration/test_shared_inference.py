"""A real runner whose workers share a model in an inference process, with kills and freezes of either."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests import clips, slow_nets
from tests.integration.processes import is_alive
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner
from tests.integration.server_owner import wait_until

from vidflow.domain.messages import EndReason, Frame, Parameters, StopWork
from vidflow.infra.kafka.settings import KafkaSettings

pytestmark = pytest.mark.long  # starting runners takes long

FRAMES = 60
SLOW_ITERATIONS = 4000
OF_MULTIPROCESSING = "pymp-"
"""What the names of multiprocessing's own folders begin with."""
STARTED = re.compile(r"inference_process_started.*?pid=(\d+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def models(folder: Path) -> Path:
    path = folder / "models"
    path.mkdir()
    slow_nets.write(path, "fast")
    slow_nets.write(path, "slow", iterations=SLOW_ITERATIONS)
    slow_nets.write(path, "hangs", hangs_above=brightness(BRIGHT_FRAME) - 1)
    (path / "damaged.onnx").write_bytes(b"not a model")
    (path / "damaged.toml").write_text((path / "fast.toml").read_text().replace("fast.onnx", "damaged.onnx"))
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return clips.constant_rate(folder / "clip.mp4", frames=FRAMES)


def brightness(index: int) -> float:
    return clips.grey(index)


BRIGHT_FRAME = max(range(20), key=brightness)


@pytest.fixture
def runner(
    kafka_settings: KafkaSettings, folder: Path, models: Path, control_plane: ControlPlane
) -> Iterator[RunnerProcess]:
    options = ["--any-file", "--models-dir", str(models), "--inference", "shared", "--max-workers", "4"]
    with running_runner(kafka_settings, folder, *options, "--inference-deadline-s", "2") as process:
        process.wait_for_id(control_plane)
        yield process


def inference_pids(runner: RunnerProcess) -> list[int]:
    """Return the pids of all inference processes that the runner has started, in order."""
    return [int(pid) for pid in STARTED.findall(runner.log)]


def running_inference_pids(runner: RunnerProcess) -> list[int]:
    return [pid for pid in inference_pids(runner) if is_alive(pid)]


def worker_pids(runner: RunnerProcess) -> list[int]:
    return [pid for pid in runner.workers() if pid not in inference_pids(runner)]


def start(control_plane: ControlPlane, runner: RunnerProcess, source: Path, model: str, count: int = 1) -> list[str]:
    name = runner.wait_for_id(control_plane)
    uuids = [new_uuid() for _ in range(count)]
    for uuid in uuids:
        control_plane.send_command(name, make_deploy(uuid, source, model))
    return uuids


def assert_complete(control_plane: ControlPlane, runner: RunnerProcess, uuids: Sequence[str]) -> None:
    """Check that each scenario ends as if nothing had happened: all frames once, in order, each with its own box."""
    for uuid in uuids:
        entry = control_plane.wait_until_ended(runner.wait_for_id(control_plane), uuid)
        assert (entry.reason, entry.error) == (EndReason.FINISHED, None), runner.log
        control_plane.wait_for_end_marker(uuid)
        frames = control_plane.frames(uuid)
        assert [frame.frame_number for frame in frames] == list(range(FRAMES))
        widths = [slow_nets.BOX_SCALE * brightness(number) for number in range(FRAMES)]
        assert [box_right(frame) for frame in frames] == pytest.approx(widths, abs=0.5)


def box_right(frame: Frame) -> float:
    (detection,) = frame.detections
    return detection.box[2]


def wait_for_frames(control_plane: ControlPlane, uuids: Sequence[str], count: int = 5) -> None:
    control_plane.wait_until(
        lambda: all(len(control_plane.frames(uuid)) >= count for uuid in uuids), f"each has {count} frames"
    )


def test_workers_of_a_model_share_one_process_and_each_gets_its_own_results(
    control_plane: ControlPlane, runner: RunnerProcess, clip: Path
) -> None:
    uuids = start(control_plane, runner, clip, "slow", 4)
    wait_for_frames(control_plane, uuids)
    assert len(worker_pids(runner)) == 4
    assert_complete(control_plane, runner, uuids)
    assert len(inference_pids(runner)) == 1


def test_nothing_is_lost_when_the_inference_process_is_killed(
    control_plane: ControlPlane, runner: RunnerProcess, clip: Path
) -> None:
    uuids = start(control_plane, runner, clip, "slow", 3)
    for count in (5, 15, 25):
        wait_for_frames(control_plane, uuids, count)
        (pid,) = running_inference_pids(runner)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: any(other != pid for other in running_inference_pids(runner)), "the next one runs")
    assert_complete(control_plane, runner, uuids)
    assert len(inference_pids(runner)) == 4


@pytest.mark.parametrize("place", ["inference.in_batch:7", "inference.after_batch:7"])
def test_nothing_is_lost_when_the_inference_process_dies_at(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, models: Path, clip: Path, place: str
) -> None:
    options = ["--any-file", "--models-dir", str(models), "--inference", "shared"]
    with running_runner(kafka_settings, folder, *options, crash_at=place) as runner:
        uuids = start(control_plane, runner, clip, "fast", 2)
        assert_complete(control_plane, runner, uuids)
        assert len(inference_pids(runner)) == 2


def test_a_frozen_inference_process_is_replaced(control_plane: ControlPlane, runner: RunnerProcess, clip: Path) -> None:
    uuids = start(control_plane, runner, clip, "slow", 2)
    wait_for_frames(control_plane, uuids)
    (pid,) = running_inference_pids(runner)
    os.kill(pid, signal.SIGSTOP)
    assert_complete(control_plane, runner, uuids)
    assert not is_alive(pid)
    assert "reason=frozen" in runner.log


def test_a_killed_worker_does_not_disturb_the_others(
    control_plane: ControlPlane, runner: RunnerProcess, clip: Path
) -> None:
    uuids = start(control_plane, runner, clip, "slow", 3)
    wait_for_frames(control_plane, uuids)
    os.kill(worker_pids(runner)[0], signal.SIGKILL)
    name = runner.wait_for_id(control_plane)
    control_plane.wait_until(
        lambda: [
            entry.reason for uuid in uuids if (entry := control_plane.entry(name, uuid)) and not entry.is_running
        ].count(EndReason.CRASHED) == 1,
        "the killed worker is reported",
    )  # fmt: skip
    killed = next(uuid for uuid in uuids if control_plane.wait_until_ended(name, uuid).reason is EndReason.CRASHED)
    assert_complete(control_plane, runner, [uuid for uuid in uuids if uuid != killed])
    assert len(inference_pids(runner)) == 1, runner.log


def test_a_worker_is_stopped_alone(control_plane: ControlPlane, runner: RunnerProcess, clip: Path) -> None:
    uuids = start(control_plane, runner, clip, "slow", 2)
    wait_for_frames(control_plane, uuids)
    name = runner.wait_for_id(control_plane)
    control_plane.send_command(name, StopWork(uuids[0], 1))
    assert control_plane.wait_until_ended(name, uuids[0]).reason is EndReason.STOPPED
    assert_complete(control_plane, runner, uuids[1:])
    assert len(inference_pids(runner)) == 1


def test_a_worker_is_stopped_while_it_waits_for_a_frozen_inference_process(
    control_plane: ControlPlane, runner: RunnerProcess, clip: Path
) -> None:
    (uuid,) = start(control_plane, runner, clip, "slow")
    wait_for_frames(control_plane, [uuid])
    (pid,) = running_inference_pids(runner)
    os.kill(pid, signal.SIGSTOP)
    name = runner.wait_for_id(control_plane)
    control_plane.send_command(name, StopWork(uuid, 1))
    assert control_plane.wait_until_ended(name, uuid, limit_s=8).reason is EndReason.STOPPED
    assert control_plane.wait_for_end_marker(uuid).reason is EndReason.STOPPED


def test_a_frame_that_the_model_never_finishes_is_blamed_and_no_other_scenario(
    control_plane: ControlPlane, runner: RunnerProcess, folder: Path, clip: Path
) -> None:
    dark = clips.write(folder / "dark.mp4", [clips.plain(0)] * FRAMES, range(0, 40 * FRAMES, 40))
    uuids = start(control_plane, runner, dark, "hangs", 2)
    (poisonous,) = start(control_plane, runner, clip, "hangs")
    name = runner.wait_for_id(control_plane)
    entry = control_plane.wait_until_ended(name, poisonous)
    assert entry.reason is EndReason.ERROR
    assert entry.error is not None
    assert (entry.error.code, entry.error.frame_number) == ("inference_process_died", BRIGHT_FRAME)
    assert len(control_plane.frames(poisonous)) == BRIGHT_FRAME
    for uuid in uuids:
        assert control_plane.wait_until_ended(name, uuid).reason is EndReason.FINISHED
        assert len(control_plane.frames(uuid)) == FRAMES
    assert runner.log.count("reason=hung") == 3


def test_a_model_that_cannot_be_loaded_is_refused_as_in_a_worker(
    control_plane: ControlPlane, runner: RunnerProcess, clip: Path
) -> None:
    (uuid,) = start(control_plane, runner, clip, "damaged")
    entry = control_plane.wait_until_ended(runner.wait_for_id(control_plane), uuid)
    assert entry.error is not None
    assert (entry.error.code, entry.fatal) == ("model_refused", True)


def test_a_model_with_a_state_runs_in_its_worker(
    control_plane: ControlPlane, runner: RunnerProcess, clip: Path
) -> None:
    (uuid,) = start(control_plane, runner, clip, "motion")
    assert control_plane.wait_until_ended(runner.wait_for_id(control_plane), uuid).reason is EndReason.FINISHED
    assert inference_pids(runner) == []


def test_an_inference_process_dies_with_its_runner(
    control_plane: ControlPlane, runner: RunnerProcess, clip: Path
) -> None:
    uuids = start(control_plane, runner, clip, "slow")
    wait_for_frames(control_plane, uuids)
    (pid,) = running_inference_pids(runner)
    runner.process.send_signal(signal.SIGSTOP)
    runner.kill()
    wait_until(lambda: not is_alive(pid), "the inference process is dead")


def test_workers_share_a_detector_of_torchvision(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, shared: Path
) -> None:
    pytest.importorskip("torchvision", reason="the extra torch is not installed")
    from tests import torch_nets  # noqa: PLC0415 - needs torch

    models = folder / "detectors"
    models.mkdir()
    torch_nets.write(models, "random", torch_nets.FASTER_RCNN, "score = 0.9")
    results = []
    for mode in ("worker", "shared"):
        options = ["--any-file", "--models-dir", str(models), "--inference", mode]
        with running_runner(kafka_settings, folder, *options) as runner:
            uuids, runner_id = [new_uuid() for _ in range(2)], runner.wait_for_id(control_plane)
            for uuid in uuids:
                deploy = make_deploy(
                    uuid, shared / "videos/vtest.avi", "random", fps="1", parameters=Parameters(duration_s=5.0)
                )
                control_plane.send_command(runner_id, deploy)
            for uuid in uuids:
                assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.FINISHED, runner.log
                control_plane.wait_for_end_marker(uuid)
                results.append([(frame.frame_number, frame.detections) for frame in control_plane.frames(uuid)])
            assert len(inference_pids(runner)) == (mode == "shared")
    assert all(result == results[0] for result in results)
    assert any(detections for _, detections in results[0])


def test_a_killed_runner_leaves_no_file_of_its_shared_models(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, models: Path, clip: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    temporary = tmp_path_factory.mktemp("t")
    options = ["--any-file", "--models-dir", str(models), "--inference", "shared"]
    with running_runner(kafka_settings, folder, *options, environment={"TMPDIR": str(temporary)}) as runner:
        wait_for_frames(control_plane, start(control_plane, runner, clip, "slow"))
        assert running_inference_pids(runner)
        runner.kill()
        wait_until(lambda: not running_inference_pids(runner), "the inference process is dead")
    assert [path.name for path in temporary.iterdir() if not path.name.startswith(OF_MULTIPROCESSING)] == []


@pytest.mark.parametrize(
    "name",
    ["bottle-detection.mp4", "one-by-one-person.mp4", "vtest.avi", "tree.avi", "nasa-13013.mp4", "rotated-90.mov",
     "corrupted.mp4", "h265-10bit.mp4"],
)  # fmt: skip
def test_results_on_a_sample_equal_those_of_a_model_in_the_worker(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, shared: Path, name: str
) -> None:
    results = []
    for mode in ("worker", "shared"):
        with running_runner(kafka_settings, folder, "--any-file", "--inference", mode) as runner:
            uuid, runner_id = new_uuid(), runner.wait_for_id(control_plane)
            parameters = Parameters(duration_s=20.0)
            deploy = make_deploy(uuid, shared / "videos" / name, "yolox_nano", fps="3", parameters=parameters)
            control_plane.send_command(runner_id, deploy)
            assert control_plane.wait_until_ended(runner_id, uuid).reason is EndReason.FINISHED
            control_plane.wait_for_end_marker(uuid)
            results.append([(frame.frame_number, frame.pts, frame.detections) for frame in control_plane.frames(uuid)])
    assert results[0] == results[1]
    assert results[0]
