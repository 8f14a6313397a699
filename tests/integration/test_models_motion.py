"""Motion: finds who walks, nothing where nothing moves, and is a function of a frame and the few before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.pictures import FramePicture, picture_of, pictures

from vidflow.domain.detections import Detection, iou
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.infra.models.model import Model


def motion(score: float | None = None) -> Model:
    return registry.load(registry.resolve("motion"), Parameters(score_threshold=score))


def street(shared: Path, step: int, end: int) -> list[FramePicture]:
    return list(pictures(shared / "videos/vtest.avi", range(0, end, step)))


def square(left: int, *, size: tuple[int, int] = (160, 120), ground: int = 60) -> FramePicture:
    """A grey picture (width, height) with a light square of 24 pixels at `left`, 40."""
    pixels = np.full((size[1], size[0], 3), ground, dtype=np.uint8)
    pixels[40:64, left : left + 24] = 220
    return picture_of(pixels)


def test_most_boxes_on_the_street_are_walkers_and_most_walkers_have_one(shared: Path) -> None:
    people = registry.load(registry.resolve("yolox_nano", shared / "models"), Parameters(labels=("person",)))
    kept = street(shared, 5, 400)  # two frames a second
    moving = motion().infer(kept)[20::4]
    walking = people.infer(kept[20::4])
    assert _share_met(moving, walking) > 0.6
    assert _share_met(walking, moving) > 0.4
    assert 2 < sum(map(len, moving)) / len(moving) < 10


def test_boxes_on_the_street_are_of_the_size_of_people(shared: Path) -> None:
    boxes = [one.box for frame in motion().infer(street(shared, 2, 200))[20:] for one in frame]
    heights = sorted(y2 - y1 for _, y1, _, y2 in boxes)
    assert 50 < heights[len(heights) // 2] < 150
    assert max(x2 - x1 for x1, _, x2, _ in boxes) < 768 / 2


def test_a_run_that_resumes_after_its_warm_up_sees_what_an_undisturbed_one_saw(shared: Path) -> None:
    kept = street(shared, 5, 200)
    undisturbed = motion().infer(kept)
    for place in (3, 20):
        resumed = motion()
        resumed.infer(kept[max(place - resumed.warmup_frames, 0) : place])
        assert resumed.infer(kept[place:]) == undisturbed[place:]


def test_what_moves_gets_a_box_where_it_is_now() -> None:
    seen = motion().infer([square(left) for left in range(0, 120, 12)])
    assert len(seen[-1]) == 1
    assert iou(seen[-1][0].box, (108, 40, 132, 64)) > 0.6
    assert seen[-1][0].label == "motion"
    assert seen[-1][0].score > 0.8


def test_nothing_is_found_on_the_first_frames_nor_where_nothing_moves() -> None:
    assert motion().infer([square(left) for left in (0, 40, 80)]) == [(), (), ()]
    assert motion().infer([square(40)] * 12) == [()] * 12


@pytest.mark.parametrize("light", [-40, 30])
def test_a_light_switched_or_a_cut_is_no_motion(light: int) -> None:
    still = square(40)
    lit = picture_of((still.image().astype(np.int16) + light).astype(np.uint8))
    cut = picture_of(np.random.default_rng(3).integers(0, 255, (120, 160, 3), dtype=np.uint8))
    assert motion().infer([still] * 10 + [lit])[-1] == ()
    assert motion().infer([still] * 10 + [cut])[-1] == ()


def test_frames_of_another_size_begin_anew() -> None:
    model = motion()
    model.infer([square(left) for left in range(0, 120, 12)])
    wide = [square(left, size=(320, 180)) for left in range(0, 120, 12)]
    seen = model.infer(wide)
    assert seen == motion().infer(wide)
    assert seen[:3] == [(), (), ()]
    assert len(seen[-1]) == 1


def test_a_threshold_leaves_out_what_hardly_differs() -> None:
    frames = [square(left, ground=185) for left in range(0, 120, 12)]
    assert len(motion().infer(frames)[-1]) == 1
    assert motion(0.8).infer(frames)[-1] == ()


def _share_met(boxes: list[tuple[Detection, ...]], others: list[tuple[Detection, ...]]) -> float:
    """The share of `boxes` that one of `others` on the same frame overlaps."""
    met = [
        any(iou(one.box, other.box) > 0.3 for other in there)
        for here, there in zip(boxes, others, strict=True)
        for one in here
    ]
    return sum(met) / len(met)
