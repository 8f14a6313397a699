"""ONNX models on several threads at once: the results are those of one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from tests.integration.test_prepared_pictures import SAMPLES

from vidflow.domain.detections import Detection
from vidflow.infra.models import registry
from vidflow.infra.video import KeptFrame, open_video, read_kept_frames

FRAMES = 12
MODEL = "yolox_nano"


def detect(path: Path, threads: int) -> list[tuple[Detection, ...]]:
    """Return the detections of the first frames, inferred by so many threads. They also scale the pictures."""
    model = registry.load(registry.resolve(MODEL, keep_weights=True))
    assert model.runs_in_threads
    with open_video(str(path)) as video, ThreadPoolExecutor(threads) as pool:
        kept = (item for item in read_kept_frames(video, Fraction(1)) if isinstance(item, KeptFrame))
        frames = list(islice(kept, FRAMES))
        return [detections for (detections,) in pool.map(lambda frame: model.infer([frame]), frames)]


@pytest.mark.parametrize("name", SAMPLES)
def test_results_on_a_sample_do_not_depend_on_the_number_of_threads(shared: Path, name: str) -> None:
    path = shared / "videos" / name
    assert detect(path, 1) == detect(path, 3)
