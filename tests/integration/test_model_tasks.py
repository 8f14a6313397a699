"""Models of tasks beyond detection, as ONNX files with constant outputs whose results are computed by hand.

Nets take pictures of 64 x 128 (height, width). They are given one of 128 x 256, twice as large in both directions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.onnx_nets import constant_net, floats, image_input, load_net
from tests.pictures import FramePicture, picture_of

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.errors import ModelError
from vidflow.infra.models.model import Model

Outputs = dict[str, NDArray[Any]]
HEIGHT, WIDTH = 64, 128
FRAME = (0.0, 0.0, 2.0 * WIDTH, 2.0 * HEIGHT)


def picture(width: int = 2 * WIDTH, height: int = 2 * HEIGHT) -> FramePicture:
    return picture_of(np.zeros((height, width, 3), dtype=np.uint8))


def load(
    folder: Path,
    outputs: Outputs,
    task: str,
    output: str,
    more: str = "",
    labels: str = '["a", "b", "c"]',
    batch: Any = 1,
) -> Model:
    spec = f'task = "{task}"\nlabels = {labels}\n[input]\nsize = [{HEIGHT}, {WIDTH}]\n[output]\n{output}\n{more}'
    return load_net(folder, constant_net(outputs, image_input(batch, 3, HEIGHT, WIDTH)), spec)


def infer(model: Model, *pictures: FramePicture) -> tuple[Detection, ...]:
    return model.infer(pictures or [picture()])[0]


# --- classification

LOGITS = np.log(floats([[0.1, 0.7, 0.2]])) + 5
"""The logits of these probabilities, by softmax."""
INDEPENDENT = np.log(floats([[0.9, 0.1, 0.6]]) / floats([[0.1, 0.9, 0.4]]))
"""The logits of 0.9, 0.1 and 0.6, by sigmoid."""
LOW = "[thresholds]\nscore = 0.15"


@pytest.mark.parametrize(
    ("activation", "outputs", "expected"),
    [
        ("softmax", {"logits": LOGITS}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"logits": LOGITS[0]}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"logits": LOGITS[..., None, None]}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"features": floats([[0] * 512]), "logits": LOGITS}, [("b", 0.7), ("c", 0.2)]),
        ("softmax", {"logits": LOGITS.astype(np.float16)}, [("b", 0.7), ("c", 0.2)]),
        ("sigmoid", {"logits": INDEPENDENT}, [("a", 0.9), ("c", 0.6)]),
        ("none", {"output0": floats([[0.1, 0.7, 0.2]])}, [("b", 0.7), ("c", 0.2)]),
    ],
)
def test_a_classifier_gives_the_best_labels_of_the_whole_frame(
    tmp_path: Path, activation: str, outputs: Outputs, expected: list[tuple[str, float]]
) -> None:
    model = load(tmp_path, outputs, "classification", f'decoder = "classes"\nactivation = "{activation}"', LOW)
    found = infer(model)
    assert [one.label for one in found] == [label for label, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score in expected], abs=1e-3)
    assert {one.box for one in found} == {FRAME}


@pytest.mark.parametrize(("score", "limit", "labels"), [(0.0, 2, ["b", "c"]), (0.0, 9, ["b", "c", "a"]), (0.8, 9, [])])
def test_the_thresholds_bound_the_score_and_the_number_of_labels(
    tmp_path: Path, score: float, limit: int, labels: list[str]
) -> None:
    thresholds = f"[thresholds]\nscore = {score}\nmax_detections = {limit}"
    model = load(tmp_path, {"x": LOGITS}, "classification", 'decoder = "classes"\nactivation = "softmax"', thresholds)
    assert [one.label for one in infer(model)] == labels


@pytest.mark.parametrize("resize", ["crop", "letterbox", "stretch"])
def test_a_label_is_of_the_whole_frame_however_it_is_resized(tmp_path: Path, resize: str) -> None:
    net = constant_net({"x": LOGITS}, image_input(1, 3, HEIGHT, WIDTH))
    spec = (
        f'task = "classification"\nlabels = ["a", "b", "c"]\n[input]\nsize = [{HEIGHT}, {WIDTH}]\nresize = "{resize}"'
    )
    model = load_net(tmp_path, net, f'{spec}\n[output]\ndecoder = "classes"\nactivation = "softmax"')
    assert [one.box for one in infer(model, picture(100, 300))] == [(0.0, 0.0, 100.0, 300.0)]


def test_pictures_of_a_batch_are_classified_separately(tmp_path: Path) -> None:
    logits = np.concatenate([LOGITS, LOGITS[:, [1, 0, 2]]])
    model = load(tmp_path, {"x": logits}, "classification", 'decoder = "classes"\nactivation = "softmax"', batch=2)
    first, second = model.infer([picture(), picture()])
    assert ([one.label for one in first], [one.label for one in second]) == (["b"], ["a"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ["softmax", "none"])
def test_scores_of_classes_that_are_not_finite_are_refused(tmp_path: Path, wrong: float, activation: str) -> None:
    logits = floats([[0.1, wrong, 0.3]])
    model = load(tmp_path, {"x": logits}, "classification", f'decoder = "classes"\nactivation = "{activation}"')
    with pytest.raises(InferenceError, match="finite"):
        infer(model)


def test_logits_that_are_taken_for_probabilities_are_refused(tmp_path: Path) -> None:
    model = load(tmp_path, {"x": LOGITS}, "classification", 'decoder = "classes"\nactivation = "none"')
    with pytest.raises(InferenceError, match="Check the spec's decoder and activation"):
        infer(model)


def test_a_classifier_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    outputs: Outputs = {"x": floats([[1] * 1000])}
    model = load(tmp_path, outputs, "classification", 'decoder = "classes"\nactivation = "softmax"')
    with pytest.raises(ModelError, match=r"\(1, 1000\) float32; decoder 'classes' needs \(batch, 3\) for 3 labels"):
        infer(model)


def test_a_classifier_that_is_taken_for_a_detector_is_refused_with_its_task(tmp_path: Path) -> None:
    model = load(tmp_path, {"x": LOGITS}, "detection", 'decoder = "yolov8"')
    with pytest.raises(ModelError, match="These outputs fit 'classes' with task 'classification'"):
        infer(model)
