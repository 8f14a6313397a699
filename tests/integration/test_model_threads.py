"""ONNX models on more than one thread, and on a number of threads that changes: the results do not."""

from __future__ import annotations

import shutil
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from tests.integration.test_prepared_pictures import SAMPLES

from vidflow.domain.detections import Detection
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.label_files import BUILT_IN_FOLDER
from vidflow.infra.models.onnx import ResizableSession
from vidflow.infra.models.onnx_inputs import find_inputs
from vidflow.infra.models.thread_budget import ThreadBudget
from vidflow.infra.video import KeptFrame, open_video, read_kept_frames

FRAMES = 12
MODEL = "yolox_nano"


def detect(path: Path, budget: ThreadBudget, changes: tuple[int, ...] = ()) -> list[tuple[Detection, ...]]:
    """Return the detections of the first frames. `changes`: set the budget to these numbers, one after each frame, in turn."""
    model = registry.load(registry.resolve(MODEL, keep_weights=True), budget=budget)
    results: list[tuple[Detection, ...]] = []
    with open_video(str(path)) as video:
        frames = (item for item in read_kept_frames(video, Fraction(1)) if isinstance(item, KeptFrame))
        for index, frame in enumerate(islice(frames, FRAMES)):
            results += model.infer([frame])
            if changes:
                budget.threads = changes[index % len(changes)]
    return results


@pytest.mark.parametrize("name", SAMPLES)
def test_results_on_a_sample_do_not_depend_on_the_number_of_threads(shared: Path, name: str) -> None:
    path = shared / "videos" / name
    assert detect(path, ThreadBudget(1)) == detect(path, ThreadBudget(3))


def run_once(session: ResizableSession, bundle: Bundle) -> list[float]:
    spec, _ = bundle.spec.tensor_specs()
    inputs = find_inputs(session.session.get_inputs(), spec, bundle.origin)
    tensor = inputs.form.allocate(1, spec.size)
    tensor += 99
    output, *_ = session.run([session.session.get_outputs()[0].name], inputs.feed(tensor))
    result: list[float] = output.ravel().tolist()
    return result


def count_threads(session: ResizableSession) -> int:
    return int(session.session.get_session_options().intra_op_num_threads)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for file in BUILT_IN_FOLDER.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def test_a_session_follows_its_budget_and_gives_the_same_results(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidflow.infra.models.thread_budget.RESIZE_SHARE", 1e9)  # at once
    bundle, budget = registry.resolve(MODEL, models, keep_weights=True), ThreadBudget(1)
    session = ResizableSession(bundle, budget)
    results = [run_once(session, bundle)]
    threads = [count_threads(session)]
    for number in (3, 2, 1):
        budget.threads = number
        run_once(session, bundle)  # notices the change
        results.append(run_once(session, bundle))
        threads.append(count_threads(session))
    assert threads == [1, 3, 2, 1]
    assert results == [results[0]] * 4


def test_a_budget_that_does_not_last_changes_nothing(models: Path) -> None:
    bundle, budget = registry.resolve(MODEL, models, keep_weights=True), ThreadBudget(1)
    session = ResizableSession(bundle, budget)
    budget.threads = 3
    run_once(session, bundle)
    budget.threads = 1
    run_once(session, bundle)
    assert count_threads(session) == 1


@pytest.mark.parametrize("damage", ["replaced", "removed"])
def test_a_model_whose_file_has_changed_keeps_its_session(
    models: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("vidflow.infra.models.thread_budget.RESIZE_SHARE", 1e9)
    bundle, budget = registry.resolve(MODEL, models, keep_weights=True), ThreadBudget(1)
    session = ResizableSession(bundle, budget)
    expected = run_once(session, bundle)
    assert bundle.weights_path is not None
    if damage == "replaced":
        bundle.weights_path.write_bytes(b"another model")
    else:
        bundle.weights_path.unlink()
    budget.threads = 3
    assert [run_once(session, bundle) for _ in range(3)] == [expected] * 3
    assert count_threads(session) == 1
