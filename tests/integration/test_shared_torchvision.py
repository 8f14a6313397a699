"""torchvision's detectors in an inference process: the same results as in a worker, for pictures of several sizes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.pictures import picture_of

from vidflow.domain.detections import Detection
from vidflow.domain.errors import ParameterError
from vidflow.domain.messages import Parameters
from vidflow.infra.inference import messages, regions, sockets
from vidflow.infra.inference.client import SharedModel
from vidflow.infra.inference.messages import Hello, Infer, Ready
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.detector import Network
from vidflow.infra.models.model import Picture
from vidflow.infra.models.spec import ModelSpec, Thresholds
from vidflow.infra.models.thread_budget import ThreadBudget
from vidflow.roles.inference.batches import BatchRunner
from vidflow.roles.inference.server import InferenceServer

pytest.importorskip("torch", reason="the extra torch is not installed")
pytest.importorskip("torchvision", reason="the extra torch is not installed")
from tests import torch_nets
from tests.integration.test_models_torch import small_rcnn

from vidflow.infra.models.torch_device import TorchDevice
from vidflow.infra.models.torchvision import build_network

TIMEOUT_S = 60.0


def name_of(architecture: str) -> str:
    return f"random_{architecture}"


SCORES = {torch_nets.SSDLITE: 0.3, torch_nets.FASTER_RCNN: 0.9}
"""Thresholds above which random weights find several objects, and not as many as possible."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for architecture, score in SCORES.items():
        torch_nets.write(folder, name_of(architecture), architecture, f"score = {score}\nmax_detections = 20")
    return folder


def pictures_of_several_sizes() -> list[Picture]:
    random = np.random.default_rng(4)
    sizes = [(96, 160), (96, 160), (160, 96), (120, 120), (120, 120)]
    return [picture_of(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


class Serving:
    """The server of a detector in a thread of this process."""

    def __init__(self, network: Network) -> None:
        self.listener, self.name = sockets.listen(10)
        ready = Ready(network.form, None, network.output_names, network.device, network.sizes, network.labels)
        server = InferenceServer(self.listener, ready, None, BatchRunner(network), 1, ThreadBudget(1))
        threading.Thread(target=server._keep_error, args=(server._accept,), daemon=True).start()
        threading.Thread(target=server._keep_error, args=(server._run_lane,), daemon=True).start()

    def close(self) -> None:
        self.listener.close()


@pytest.fixture(params=SCORES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serving(folder: Path, architecture: str) -> Iterator[Serving]:
    network = registry.open_network(registry.resolve(name_of(architecture), folder, keep_weights=True))
    with contextlib.closing(Serving(network)) as serving:
        yield serving


def in_worker(folder: Path, architecture: str, parameters: Parameters) -> list[tuple[Detection, ...]]:
    model = registry.load(registry.resolve(name_of(architecture), folder, keep_weights=True), parameters)
    return model.infer(pictures_of_several_sizes())


def shared(serving: Serving, folder: Path, architecture: str, parameters: Parameters) -> list[tuple[Detection, ...]]:
    with contextlib.closing(SharedModel(serving.name, "0190", threading.Event(), lambda: None)) as model:
        bundle = registry.resolve(name_of(architecture), folder)
        assert registry.can_be_shared(bundle.spec, parameters)
        return registry.detect_with(model.network, bundle, parameters).infer(pictures_of_several_sizes())


def assert_same(actual: Sequence[tuple[Detection, ...]], expected: Sequence[tuple[Detection, ...]]) -> None:
    assert [len(found) for found in actual] == [len(found) for found in expected]
    for one, other in zip(sum(actual, ()), sum(expected, ()), strict=True):
        assert one.label == other.label
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.box == pytest.approx(other.box, abs=1e-4)
        assert np.array(one.keypoints or ()) == pytest.approx(np.array(other.keypoints or ()), abs=1e-4)


def test_results_are_those_of_the_model_in_a_worker(folder: Path, serving: Serving, architecture: str) -> None:
    expected = in_worker(folder, architecture, Parameters())
    assert sum(map(len, expected)) >= 5
    assert_same(shared(serving, folder, architecture, Parameters()), expected)


def test_keypoints_are_those_of_the_model_in_a_worker() -> None:
    spec = ModelSpec("torchvision", task="keypoints", thresholds=Thresholds(score=0.3, max_detections=20))
    bundle = Bundle("small", spec, labels=("__background__", "thing"))
    network = build_network(small_rcnn("KeypointRCNN"), "keypoints", TorchDevice())
    expected = registry.detect_with(network, bundle, Parameters()).infer(pictures_of_several_sizes())
    assert any(found.keypoints for one in expected for found in one)
    with (
        contextlib.closing(Serving(network)) as serving,
        contextlib.closing(SharedModel(serving.name, "0190", threading.Event(), lambda: None)) as model,
    ):
        actual = registry.detect_with(model.network, bundle, Parameters()).infer(pictures_of_several_sizes())
    assert_same(actual, expected)


def test_scenarios_with_other_thresholds_and_labels_share_it(folder: Path, serving: Serving, architecture: str) -> None:
    scores = sorted(found.score for one in in_worker(folder, architecture, Parameters()) for found in one)
    parameters = Parameters(score_threshold=scores[len(scores) // 2], labels=("cat",))
    expected = in_worker(folder, architecture, parameters)
    assert_same(shared(serving, folder, architecture, parameters), expected)
    with pytest.raises(ParameterError, match="no label 'dog'"):
        shared(serving, folder, architecture, Parameters(labels=("dog",)))


def test_scenarios_with_a_lower_threshold_do_not_share_it(folder: Path, architecture: str) -> None:
    spec = registry.resolve(name_of(architecture), folder).spec
    assert registry.can_be_shared(spec, Parameters())
    assert not registry.can_be_shared(spec, Parameters(score_threshold=SCORES[architecture] - 0.01))


def test_masks_are_not_shared() -> None:
    assert not registry.can_be_shared(registry.resolve("maskrcnn_resnet50_fpn").spec, Parameters())
    assert registry.can_be_shared(registry.resolve("ssdlite320_mobilenet_v3_large").spec, Parameters())


@pytest.mark.parametrize("size", [(100_000, 1), (0, 100), (5000, 5000)])
def test_a_picture_of_a_size_that_no_worker_sends_ends_its_connection(serving: Serving, size: tuple[int, int]) -> None:
    with sockets.connect(serving.name, TIMEOUT_S) as connection:
        messages.send(connection, Hello("0190"))
        messages.receive_from_server(connection)
        _, fd = regions.create_region(3 * size[0] * size[1])
        messages.send(connection, Infer(1, size), fd)
        assert connection.recv(1) == b""
