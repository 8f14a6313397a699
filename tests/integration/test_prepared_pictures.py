"""Frames that are read ahead and prepared for the model are those that it would otherwise read itself."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tests import clips

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import ClockChanges, Deploy
from vidflow.infra.models import registry
from vidflow.infra.models.model import Model
from vidflow.infra.video import FrameGap, KeptFrame, Video, open_video, read_kept_frames
from vidflow.roles.worker import infer, read
from vidflow.roles.worker.prepared_pictures import PicturePreparation
from vidflow.roles.worker.read_ahead import ReadAhead

SAMPLES = {
    "bottle-detection.mp4": Fraction(1),
    "corrupted.mp4": None,
    "h265-10bit.mp4": None,
    "nasa-13013.mp4": Fraction(2),
    "one-by-one-person.mp4": Fraction(1),
    "rotated-90.mov": None,
    "tree.avi": None,
    "vtest.avi": Fraction(2),
}
"""Sample clips, and the rate of the frames to keep of each (None: all)."""
Result = tuple[object, ...]


def infer_steps(steps: Iterator[read.FrameBatch | FrameGap | ClockChanges], model: Model) -> list[Result]:
    deploy, results = Deploy("u", 1, "s", "m"), list[Result]()
    for step in steps:
        if isinstance(step, read.FrameBatch):
            for frame in infer.detect(model, step, deploy):
                results.append((frame.frame_number, frame.pts, frame.time_s, frame.corrupt, frame.detections))
        else:
            results.append((step,))
    return results


def batches(video: Video, rate: Fraction | None, size: int) -> Iterator[read.FrameBatch | FrameGap | ClockChanges]:
    frames = read.read_numbered_frames(video, rate, Deploy("u", 1, "s", "m"), 0)
    return read.group_into_batches(frames, size, singles=1)


def infer_directly(path: Path, rate: Fraction | None, model_name: str) -> list[Result]:
    model = registry.load(registry.resolve(model_name, None, keep_weights=True))
    with open_video(str(path)) as video:
        return infer_steps(batches(video, rate, model.batch), model)


def infer_ahead(path: Path, rate: Fraction | None, model_name: str) -> list[Result]:
    model = registry.load(registry.resolve(model_name, None, keep_weights=True))
    with open_video(str(path)) as video:
        steps = read.prepare_pictures(batches(video, rate, model.batch), PicturePreparation())
        with ReadAhead(steps, lambda: None) as ahead:
            return infer_steps((step for step, _ in ahead), model)


@pytest.mark.parametrize("name", SAMPLES)
def test_results_on_a_sample_are_the_same_when_it_is_read_ahead(shared: Path, name: str) -> None:
    path = shared / "videos" / name
    direct = infer_directly(path, SAMPLES[name], "motion")
    assert infer_ahead(path, SAMPLES[name], "motion") == direct
    assert direct


@pytest.mark.parametrize("name", ["corrupted.mp4", "rotated-90.mov"])
def test_detections_on_a_sample_are_the_same_when_it_is_read_ahead(shared: Path, name: str) -> None:
    path = shared / "videos" / name
    direct = infer_directly(path, Fraction(1), "yolox_nano")
    assert infer_ahead(path, Fraction(1), "yolox_nano") == direct


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[KeptFrame]:
    path = clips.long_gop_with_b_frames(tmp_path_factory.mktemp("prepared") / "clip.mp4", frames=10)
    with open_video(str(path)) as video:
        return [frame for frame in read_kept_frames(video) if isinstance(frame, KeptFrame)]


def test_a_picture_is_converted_as_the_one_before_it_was_asked_for(frames: list[KeptFrame]) -> None:
    preparation = PicturePreparation()
    first = preparation.prepare(frames[0])
    assert first.pixels is None
    assert np.array_equal(first.image(32, 16, "bgr", "area"), frames[0].image(32, 16, "bgr", "area"))
    second = preparation.prepare(frames[5])
    assert second.pixels is not None
    assert second.size_bytes == frames[5].size_bytes + 32 * 16 * 3
    assert np.array_equal(second.image(32, 16, "bgr", "area"), frames[5].image(32, 16, "bgr", "area"))


@pytest.mark.parametrize("request_", [(32, 16, "rgb", "area"), (16, 32, "bgr", "area"), (32, 16, "bgr", "bicubic")])
def test_a_model_that_asks_for_something_else_gets_it(
    frames: list[KeptFrame], request_: tuple[int, int, str, str]
) -> None:
    preparation = PicturePreparation()
    preparation.prepare(frames[0]).image(32, 16, "bgr", "area")
    picture = preparation.prepare(frames[5])
    assert np.array_equal(picture.image(*request_), frames[5].image(*request_))  # type: ignore[arg-type]
    assert preparation.last_request == request_


def test_a_model_that_writes_into_its_picture_gets_a_clean_one_when_it_asks_again(frames: list[KeptFrame]) -> None:
    preparation = PicturePreparation()
    preparation.prepare(frames[0]).image()
    picture = preparation.prepare(frames[5])
    picture.image()[:] = 0
    assert np.array_equal(picture.image(), frames[5].image())


def test_a_picture_that_cannot_be_converted_fails_when_the_model_asks_for_it(frames: list[KeptFrame]) -> None:
    preparation = PicturePreparation()
    with pytest.raises(SourceError, match="cannot be converted"):
        preparation.prepare(frames[0]).image(-5, 16)
    picture = preparation.prepare(frames[5])
    with pytest.raises(SourceError, match="cannot be converted"):
        picture.image(-5, 16)
