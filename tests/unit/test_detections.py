"""The canonical form of detections: clipping, rounding, order and refused values."""

from __future__ import annotations

import math

import msgspec
import pytest

from vidflow.domain.detections import (
    MAX_KEYPOINTS,
    Detection,
    InferenceError,
    area,
    build_detection,
    clip,
    select_detections,
)


def test_a_box_is_clipped_to_the_frame_and_rounded() -> None:
    assert build_detection("person", 0.876543, (-3.0, 1.23456, 700.0, 99.999), 640, 480) == Detection(
        "person", 0.8765, (0.0, 1.23, 640.0, 100.0)
    )


@pytest.mark.parametrize("box", [(700.0, 0.0, 800.0, 10.0), (5.0, 5.0, 5.001, 50.0), (9.0, 9.0, 3.0, 20.0)])
def test_a_box_without_area_within_the_frame_is_dropped(box: tuple[float, float, float, float]) -> None:
    assert build_detection("person", 0.9, box, 640, 480) is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", range(5))
def test_a_number_that_is_not_finite_is_refused(wrong: float, index: int) -> None:
    values = [0.5, 1.0, 1.0, 5.0, 5.0]
    values[index] = wrong
    with pytest.raises(InferenceError, match="finite"):
        build_detection("person", values[0], values[1:], 640, 480)


def test_a_score_slightly_above_one_is_capped_and_a_larger_one_is_refused() -> None:
    detection = build_detection("person", 1.0000001, (0, 0, 5, 5), 10, 10)
    assert detection is not None
    assert detection.score == 1.0
    with pytest.raises(InferenceError, match="outside 0 to 1"):
        build_detection("person", 17.0, (0, 0, 5, 5), 10, 10)


def test_selection_filters_by_label_and_score_and_sorts() -> None:
    a = Detection("cat", 0.5, (0.0, 0.0, 5.0, 5.0))
    b = Detection("person", 0.9, (1.0, 0.0, 5.0, 5.0))
    c = Detection("person", 0.9, (0.0, 0.0, 5.0, 5.0))
    d = Detection("dog", 0.95, (0.0, 0.0, 5.0, 5.0))
    weak = Detection("person", 0.49, (0.0, 0.0, 5.0, 5.0))
    assert select_detections([a, b, weak, c, d], 0.5, {"person", "cat"}) == (c, b, a)
    assert select_detections([d, weak, c, a, b]) == select_detections([b, a, c, weak, d]) == (d, c, b, a, weak)


def test_selection_keeps_the_best_up_to_its_limit() -> None:
    many = [Detection("person", score / 10, (0.0, 0.0, 1.0, 1.0)) for score in range(10)]
    assert [detection.score for detection in select_detections(many, limit=2)] == [0.9, 0.8]


@pytest.mark.parametrize("score", ["1.5", "-0.1", "1e999", "null", "NaN"])
def test_a_decoded_detection_with_an_impossible_score_is_refused(score: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(f'{{"label": "a", "score": {score}, "box": [0, 0, 1, 1]}}', type=Detection)


def test_area_and_clipping_of_boxes() -> None:
    assert area((0, 0, 4, 5)) == 20
    assert area((4, 0, 0, 5)) == 0
    assert clip((-1, -1, 50, 5), 10, 10) == (0, 0, 10, 5)


def test_a_plain_detection_has_no_other_fields() -> None:
    assert msgspec.json.encode(Detection("cat", 0.5, (0.0, 0.0, 5.0, 5.0))) == (
        b'{"label":"cat","score":0.5,"box":[0.0,0.0,5.0,5.0]}'
    )


def test_keypoints_are_clipped_and_rounded_and_keep_their_order() -> None:
    points = [(-1.0, 4.126, 0.87654), (700.0, 1000.0, 1.0000001), (3.0, 2.0, -0.0001)]
    found = build_detection("person", 0.9, (0, 0, 5, 5), 640, 480, points)
    assert found is not None
    assert found.keypoints == ((0.0, 4.13, 0.8765), (640.0, 480.0, 1.0), (3.0, 2.0, 0.0))
    assert msgspec.json.encode(found).endswith(b'"keypoints":[[0.0,4.13,0.8765],[640.0,480.0,1.0],[3.0,2.0,0.0]]}')


def test_detections_that_differ_only_in_keypoints_have_an_order() -> None:
    one, other = (Detection("person", 0.9, (0.0, 0.0, 5.0, 5.0), ((x, 1.0, 0.5),)) for x in (1.0, 2.0))
    assert select_detections([other, one]) == select_detections([one, other]) == (one, other)


@pytest.mark.parametrize("points", ["[[1, 2]]", "[[1, 2, 3]]", "[[-1, 2, 0.5]]", "[[1e999, 2, 0.5]]", "null"])
def test_a_decoded_detection_with_impossible_keypoints_is_refused(points: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(f'{{"label": "a", "score": 1, "box": [0, 0, 1, 1], "keypoints": {points}}}', type=Detection)


def test_a_detection_with_too_many_keypoints_is_refused() -> None:
    points = msgspec.json.encode([(1.0, 2.0, 0.5)] * (MAX_KEYPOINTS + 1)).decode()
    with pytest.raises(msgspec.DecodeError, match="length <= 1000"):
        msgspec.json.decode(f'{{"label": "a", "score": 1, "box": [0, 0, 1, 1], "keypoints": {points}}}', type=Detection)


def test_corners_are_rounded_and_not_clipped() -> None:
    found = build_detection("ship", 0.9, (-5, -5, 5, 5), 640, 480, corners=((-0.001, -5), (5, 0.126), (0, 5), (-5, 0)))
    assert found is not None
    assert found.box == (0.0, 0.0, 5.0, 5.0)
    assert msgspec.json.encode(found).endswith(b'"corners":[[0.0,-5.0],[5.0,0.13],[0.0,5.0],[-5.0,0.0]]}')


@pytest.mark.parametrize("corner", [(-65536.0, 0.0), (0.0, -65536.0), (66176.0, 0.0), (0.0, 66016.0)])
def test_a_corner_too_far_beside_the_frame_is_refused(corner: tuple[float, float]) -> None:
    with pytest.raises(InferenceError, match="far beside the frame"):
        build_detection("ship", 0.9, (0, 0, 5, 5), 640, 480, corners=[corner] * 4)


@pytest.mark.parametrize("corners", ["[]", "[[1, 2], [1, 2], [1, 2]]", "[[1, 2], [1, 2], [1, 2], [1, 1e6]]"])
def test_a_decoded_detection_with_impossible_corners_is_refused(corners: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(f'{{"label": "a", "score": 1, "box": [0, 0, 1, 1], "corners": {corners}}}', type=Detection)
