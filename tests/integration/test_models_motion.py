"""The model `motion`: detects walkers, nothing in a still scene, and depends only on a frame and the few before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csgraph
from tests.boxes import iou
from tests.pictures import FramePicture, picture_of, pictures

from vidflow.domain.detections import Detection
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.infra.models.model import Model
from vidflow.infra.models.motion import regions, sum_of_middle


def motion(score: float | None = None) -> Model:
    return registry.load(registry.resolve("motion"), Parameters(score_threshold=score))


def street(shared: Path, step: int, end: int) -> list[FramePicture]:
    return list(pictures(shared / "videos/vtest.avi", range(0, end, step)))


def square(left: int, *, size: tuple[int, int] = (160, 120), ground: int = 60) -> FramePicture:
    """Return a grey picture of `size` (width, height) with a light square of 24 pixels at (`left`, 40)."""
    pixels = np.full((size[1], size[0], 3), ground, dtype=np.uint8)
    pixels[40:64, left : left + 24] = 220
    return picture_of(pixels)


@pytest.mark.long
def test_most_boxes_are_walkers_and_many_walkers_have_a_box(shared: Path) -> None:
    people = registry.load(
        registry.resolve("yolox_nano", shared / "models", keep_weights=True), Parameters(labels=("person",))
    )
    kept = street(shared, 5, 400)  # two frames per second
    moving = motion().infer(kept)[20::4]
    walking = people.infer(kept[20::4])
    assert _overlapping_share(moving, walking) > 0.6
    assert _overlapping_share(walking, moving) > 0.4
    assert 2 < sum(map(len, moving)) / len(moving) < 10


@pytest.mark.long
def test_boxes_in_a_street_have_the_size_of_people(shared: Path) -> None:
    boxes = [detection.box for frame in motion().infer(street(shared, 2, 200))[20:] for detection in frame]
    heights = sorted(y2 - y1 for _, y1, _, y2 in boxes)
    assert 50 < heights[len(heights) // 2] < 150
    assert max(x2 - x1 for x1, _, x2, _ in boxes) < 768 / 2


@pytest.mark.long
def test_a_resumed_run_with_a_warm_up_gives_the_same_detections(shared: Path) -> None:
    kept = street(shared, 5, 200)
    uninterrupted = motion().infer(kept)
    for start in (3, 20):
        resumed = motion()
        resumed.infer(kept[max(start - resumed.warmup_frames, 0) : start])
        assert resumed.infer(kept[start:]) == uninterrupted[start:]


@pytest.mark.parametrize("count", range(1, 9))
def test_the_background_is_the_median_of_the_earlier_pictures(count: int) -> None:
    earlier = np.random.default_rng(count).integers(0, 256, (count, 12, 16), dtype=np.uint8)
    assert (sum_of_middle(list(earlier)) == 2 * np.median(earlier, axis=0)).all()


@pytest.mark.parametrize("seed", range(8))
def test_regions_are_all_moved_pixels_that_are_near_each_other(seed: int) -> None:
    """The expectation links each pair of near pixels of the whole picture."""
    size, chance = (90, 120), np.random.default_rng(seed)
    background = np.full(size, 100, dtype=np.uint8)
    grey = background.copy()
    grey[chance.integers(0, size[0], 30), chance.integers(0, size[1], 30)] = 255
    moved = np.argwhere(ndimage.maximum_filter(grey, 3) == 255)  # a difference is that of all nine neighbours
    distances = np.abs(moved[:, None] - moved[None])
    count, regions_of = csgraph.connected_components((distances <= (7, 3)).all(axis=2))
    members = [moved[regions_of == number] for number in range(count)]
    expected = sorted(
        (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
        for y, x in (pixels.T for pixels in members if len(pixels) >= 0.0008 * grey.size)
    )
    assert 5 < len(expected) < 30
    assert sorted(box for _, box in regions(grey, [background] * 3)) == expected


@pytest.mark.parametrize("light", [0, 25])
@pytest.mark.parametrize(("deviation", "threshold"), [(4, 14 * 18), (24, 5 * 0.6745 * 24 * 2 * 3)])
def test_a_region_is_compared_with_the_noise_of_the_picture(light: int, deviation: float, threshold: float) -> None:
    """Half of a normal distribution is within 0.6745 of its deviation. That of a sum of nine is three times as wide."""
    grey = noise(100 + light, deviation)
    grey[40:64, 60:84] += 60
    [(score, box)] = regions(grey, [np.full(grey.shape, 100, dtype=np.uint8)] * 3)
    assert iou(box, (60, 40, 84, 64)) > 0.8
    assert score == pytest.approx(60 * 18 / (60 * 18 + threshold), abs=0.03)


def test_nothing_is_detected_if_half_of_the_picture_differs() -> None:
    grey = noise(100, 35)
    grey[40:64, 60:84] = 255
    assert regions(grey, [np.full(grey.shape, 100, dtype=np.uint8)] * 3) == []


def noise(mean: float, deviation: float) -> NDArray[np.uint8]:
    values = np.random.default_rng(5).normal(mean, deviation, (120, 160)).round().clip(0, 190)
    return np.asarray(values, dtype=np.uint8)


def test_a_moving_object_has_a_box_at_its_current_place() -> None:
    results = motion().infer([square(left) for left in range(0, 120, 12)])
    assert len(results[-1]) == 1
    assert iou(results[-1][0].box, (108, 40, 132, 64)) > 0.6
    assert results[-1][0].label == "motion"
    assert results[-1][0].score > 0.8


def test_nothing_is_detected_on_the_first_frames_or_in_a_still_scene() -> None:
    assert motion().infer([square(left) for left in (0, 40, 80)]) == [(), (), ()]
    assert motion().infer([square(40)] * 12) == [()] * 12


@pytest.mark.parametrize("light", [-40, 30])
def test_a_change_of_light_or_a_cut_is_not_motion(light: int) -> None:
    still = square(40)
    lit = picture_of((still.image().astype(np.int16) + light).astype(np.uint8))
    cut = picture_of(np.random.default_rng(3).integers(0, 255, (120, 160, 3), dtype=np.uint8))
    assert motion().infer([still] * 10 + [lit])[-1] == ()
    assert motion().infer([still] * 10 + [cut])[-1] == ()


def test_frames_of_another_size_start_a_new_background() -> None:
    model = motion()
    model.infer([square(left) for left in range(0, 120, 12)])
    wide = [square(left, size=(320, 180)) for left in range(0, 120, 12)]
    results = model.infer(wide)
    assert results == motion().infer(wide)
    assert results[:3] == [(), (), ()]
    assert len(results[-1]) == 1


def test_a_score_threshold_drops_regions_that_barely_differ() -> None:
    frames = [square(left, ground=185) for left in range(0, 120, 12)]
    assert len(motion().infer(frames)[-1]) == 1
    assert motion(0.8).infer(frames)[-1] == ()


def _overlapping_share(frames: list[tuple[Detection, ...]], other_frames: list[tuple[Detection, ...]]) -> float:
    """Return the share of detections in `frames` that overlap one in the same frame of `other_frames`."""
    overlaps = [
        any(iou(detection.box, other.box) > 0.3 for other in others)
        for detections, others in zip(frames, other_frames, strict=True)
        for detection in detections
    ]
    return sum(overlaps) / len(overlaps)
