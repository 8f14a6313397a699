"""Models of tasks beyond detection in workers: results of a resumed run are those of an uninterrupted one, byte for byte."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import ModelProto, helper
from tests import clips
from tests.integration.runner_harness import (
    ControlPlane,
    RunnerProcess,
    make_deploy,
    new_uuid,
    resume_after,
    running_runner,
)
from tests.onnx_nets import build_net, floats, image_input

from vidflow.domain.messages import EndReason, Frame
from vidflow.infra.kafka.settings import KafkaSettings

FRAMES = 1500
SIDE = 64
INPUT = f'[input]\nsize = [{SIDE}, {SIDE}]\nresize = "letterbox"\nnormalise = "unit"'
TASKS = {
    "classification": 'labels = ["dark", "bright"]\n[output]\ndecoder = "classes"\nactivation = "softmax"',
    "keypoints": 'labels = ["thing"]\n[output]\ndecoder = "yolo_end2end"\nkeypoints = 2',
    "oriented_boxes": 'labels = ["thing"]\n[output]\ndecoder = "yolo_end2end"',
    "instance_segmentation": 'labels = ["thing"]\n[output]\ndecoder = "yolo_end2end"',
}
ROWS = {
    "classification": (floats([[1, 0]]), floats([[0, 3]])),
    "keypoints": (floats([[[4, 4, 60, 40, 0.9, 0, 8, 8, 0.5, 20, 20, 0.5]]]), floats([[[0] * 6 + [30, 20, 0.4, 9, -9, -0.4]]])),
    "oriented_boxes": (floats([[[30, 20, 20, 10, 0.9, 0, 0]]]), floats([[[9, 3, 0, 0, 0, 0, 3]]])),
    "instance_segmentation": (floats([[[0, 0, 64, 43, 0.9, 0, 1]]]), floats([[[0] * 7]])),
}  # fmt: skip
"""A model's rows for a black picture, and what is added to them for a white one."""


def net_of(task: str) -> ModelProto:
    """Return a net whose results depend on the brightness of the picture. Its masks are the bright pixels."""
    start, growth = ROWS[task]
    outputs = {"rows": start}
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["growth", "mean"], ["added"]),
        helper.make_node("Add", ["start", "added"], ["rows"]),
    ]
    if task == "instance_segmentation":
        outputs["prototypes"] = np.zeros((1, 1, SIDE, SIDE), dtype=np.float32)
        nodes += [
            helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1]),
            helper.make_node("Sub", ["grey", "half"], ["prototypes"]),
        ]
    constants = {"start": start, "growth": growth, "half": floats(0.5)}
    return build_net(nodes, constants, outputs, image_input(1, 3, SIDE, SIDE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    """A bright square that moves over a background which changes with each frame."""
    pictures = (np.maximum(clips.moving_square(index), clips.plain(index) // 2) for index in range(FRAMES))
    return clips.write(folder / "clip.mp4", pictures, [40 * index for index in range(FRAMES)])


@pytest.fixture(scope="module")
def process(kafka_settings: KafkaSettings, folder: Path, control_plane: ControlPlane) -> Iterator[RunnerProcess]:  # noqa: ARG001
    models = folder / "models"
    models.mkdir()
    for task, rest in TASKS.items():
        (models / f"{task}.onnx").write_bytes(net_of(task).SerializeToString())
        labels, output = rest.split("\n", 1)
        head = f'kind = "onnx"\nfile = "{task}.onnx"\ntask = "{task}"\n{labels}'
        (models / f"{task}.toml").write_text(f"{head}\n{INPUT}\n{output}")
    with running_runner(kafka_settings, folder, "--any-file", "--models-dir", str(models)) as process:
        yield process


@pytest.fixture(scope="module")
def runner_id(process: RunnerProcess, control_plane: ControlPlane) -> str:
    return process.wait_for_id(control_plane)


def results(frames: list[Frame]) -> list[tuple[int, bytes]]:
    return [(frame.frame_number, msgspec.json.encode(frame.detections)) for frame in frames]


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_is_killed_and_resumed_gives_the_results_of_an_uninterrupted_one(
    control_plane: ControlPlane, process: RunnerProcess, runner_id: str, clip: Path, task: str
) -> None:
    whole, killed = new_uuid(), new_uuid()
    control_plane.send_command(runner_id, make_deploy(killed, clip, task))
    control_plane.wait_until(lambda: control_plane.frames(killed), "its worker sends frames")
    [pid] = process.workers()
    os.kill(pid, signal.SIGKILL)
    assert control_plane.wait_until_ended(runner_id, killed).reason is EndReason.CRASHED
    first = control_plane.frames(killed)
    resume = resume_after(first[-1], control_plane.opened(killed)[0])
    control_plane.send_command(runner_id, make_deploy(killed, clip, task, epoch=2, attempt=1, resume=resume))
    control_plane.send_command(runner_id, make_deploy(whole, clip, task))
    assert control_plane.wait_for_end_marker(killed, epoch=2).reason is EndReason.FINISHED
    assert control_plane.wait_for_end_marker(whole).reason is EndReason.FINISHED
    assert 0 < len(first) < FRAMES
    uninterrupted = results(control_plane.frames(whole))
    assert len({detections for _, detections in uninterrupted}) > 20
    assert results(first) + results(control_plane.frames(killed, epoch=2)) == uninterrupted
