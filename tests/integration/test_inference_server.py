"""The server of an inference process, with a real network, and clients that misbehave; and a client whose server does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import clips, slow_nets
from tests.integration.server_owner import wait_until

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ErrorInfo, ModelError, Unavailable
from vidflow.infra.inference import messages, regions, sockets
from vidflow.infra.inference.client import RequestStopped, SharedModel
from vidflow.infra.inference.messages import Failed, Hello, Infer, OutputPlace, Outputs, Ready, Refused
from vidflow.infra.models import registry
from vidflow.infra.models.tensors import TensorForm
from vidflow.infra.models.thread_budget import ThreadBudget
from vidflow.roles.inference import server as server_module
from vidflow.roles.inference.batches import BatchRunner
from vidflow.roles.inference.server import InferenceServer

SIZE = (clips.HEIGHT, clips.WIDTH)
UUID = "0190"
TIMEOUT_S = 20.0
MAX_FRAMES = 4
BACKLOG = 10


class Serving:
    """A server in a thread of this process."""

    def __init__(self, greeting: Ready | Refused, batches: BatchRunner | None, lanes: int = 1) -> None:
        self.listener, self.name = sockets.listen(BACKLOG)
        self.server = InferenceServer(self.listener, greeting, SIZE, batches, lanes, ThreadBudget(lanes))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._to_close: list[socket.socket | SharedModel] = [self.listener]

    def connect(self) -> socket.socket:
        """Return a connection on which nothing is sent yet."""
        connection = sockets.connect(self.name, TIMEOUT_S)
        self._to_close.append(connection)
        return connection

    def model(self) -> SharedModel:
        model = connect(self.name)
        self._to_close.append(model)
        return model

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the socket is shut down at last
            self.server.run()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(TIMEOUT_S)
        for opened in self._to_close:
            opened.close()


def connect(name: str, stop: threading.Event | None = None) -> SharedModel:
    return SharedModel(name, UUID, stop or threading.Event(), lambda: None)


def open_batches(folder: Path, iterations: int) -> tuple[Ready, BatchRunner]:
    name = slow_nets.write(folder, "net", iterations=iterations)
    network = registry.open_network(registry.resolve(name, folder, keep_weights=True))
    return Ready(network.form, network.fixed_batch, network.output_names), BatchRunner(network, MAX_FRAMES)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    started = Serving(*open_batches(tmp_path, 500))
    with contextlib.closing(started):
        yield started


def picture(brightness: int, frames: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full((frames, 3, *SIZE), brightness, np.float32)


def run(model: SharedModel, brightness: int, frames: int = 1) -> list[float]:
    """Return the widths of the boxes that the model gives."""
    (boxes,) = model.network.run(picture(brightness, frames))
    return [float(width) / slow_nets.BOX_SCALE for width in boxes[:, 0, 2]]


def assert_disconnected(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1000):
            pass


def greet(connection: socket.socket) -> None:
    messages.send(connection, Hello(UUID))
    answer, _ = messages.receive_from_server(connection)
    assert isinstance(answer, Ready)


@pytest.mark.parametrize("lanes", [1, 3])
def test_each_of_many_clients_gets_its_own_results(tmp_path: Path, lanes: int) -> None:
    serving = Serving(*open_batches(tmp_path, 500), lanes)
    wrong: list[object] = []

    def work(number: int) -> None:
        model = serving.model()
        for turn in range(30):
            frames = 1 + turn % 3
            widths = run(model, 10 * number + turn % 7, frames)
            if widths != pytest.approx([10 * number + turn % 7] * frames, abs=0.01):
                wrong.append((number, turn, widths))
        model.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    activity = serving.server.read_activity()
    serving.close()
    assert wrong == []
    assert activity.frames == 8 * sum(1 + turn % 3 for turn in range(30))
    assert activity.batches < 8 * 30  # some requests shared one


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff",
        b"\x02\x00\x00\x00{}",
        b"\x08\x00\x00\x00not JSON",
        b'\x2b\x00\x00\x00{"type":"infer","frames":1,"size":[96,160]}',
    ],
)
def test_a_client_whose_first_message_is_no_hello_is_disconnected_alone(serving: Serving, content: bytes) -> None:
    other = serving.model()
    connection = serving.connect()
    connection.sendall(content)
    assert_disconnected(connection)
    assert run(other, 50) == pytest.approx([50], abs=0.01)


def test_a_request_without_memory_ends_its_connection(serving: Serving) -> None:
    connection = serving.connect()
    greet(connection)
    messages.send(connection, Infer(1, SIZE))
    assert_disconnected(connection)


def test_a_request_whose_memory_is_too_small_ends_its_connection(serving: Serving) -> None:
    connection = serving.connect()
    greet(connection)
    _, fd = regions.create_region(picture(1).nbytes)
    messages.send(connection, Infer(64, SIZE), fd)
    assert_disconnected(connection)


def test_requests_that_do_not_wait_for_their_answers_end_their_connection(serving: Serving) -> None:
    connection, other = serving.connect(), serving.model()
    greet(connection)
    _, fd = regions.create_region(picture(1).nbytes)
    messages.send(connection, Infer(1, SIZE), fd)
    with contextlib.suppress(OSError):  # it may end meanwhile
        for _ in range(1000):
            messages.send(connection, Infer(1, SIZE))
    assert_disconnected(connection)
    assert run(other, 50) == pytest.approx([50], abs=0.01)


def test_clients_that_are_gone_before_their_answers_leave_nothing_behind(serving: Serving) -> None:
    other = serving.model()
    for _ in range(50):
        connection = serving.connect()
        greet(connection)
        _, fd = regions.create_region(picture(1).nbytes)
        messages.send(connection, Infer(1, SIZE), fd)
        connection.close()
    assert run(other, 50) == pytest.approx([50], abs=0.01)
    wait_until(
        lambda: sum("client " in thread.name for thread in threading.enumerate()) == 1, "their threads have ended"
    )


def test_the_server_ends_once_nobody_has_needed_it_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER_S", 0.5)
    with contextlib.closing(Serving(*open_batches(tmp_path, 0))) as serving:
        model = serving.model()
        time_limit_s = time.monotonic() + 1.0
        while time.monotonic() < time_limit_s:
            run(model, 50)
        assert serving.thread.is_alive()
        model.close()
        serving.thread.join(TIMEOUT_S)
        assert not serving.thread.is_alive()


@pytest.mark.parametrize(("fatal", "kind"), [(True, ModelError), (False, Unavailable)])
def test_clients_of_a_model_that_cannot_be_loaded_get_its_error(fatal: bool, kind: type[Exception]) -> None:
    refused = Refused(ErrorInfo("model_refused", "It is damaged."), fatal)
    serving = Serving(refused, None)
    with contextlib.closing(serving), pytest.raises(kind, match=r"It is damaged\."):
        serving.model()


class FakeServer:
    """Greets one client, and answers each request with the same message and file."""

    def __init__(self, answer: Outputs | Failed | Ready | None, region_bytes: int | None = None) -> None:
        self.listener, self.name = sockets.listen(BACKLOG)
        self._answer, self._region_bytes = answer, region_bytes
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._asked_to_close = threading.Event()

    def close(self) -> None:
        self._asked_to_close.set()
        self._thread.join(TIMEOUT_S)
        self.listener.close()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            self._answer_one(connection)
            self._asked_to_close.wait(TIMEOUT_S)

    def _answer_one(self, connection: socket.socket) -> None:
        messages.receive_from_client(connection)
        messages.send(connection, Ready(TensorForm(), None, ("boxes",)))
        messages.receive_from_client(connection)
        if self._answer is not None:
            fd = None if self._region_bytes is None else regions.create_region(self._region_bytes)[1]
            messages.send(connection, self._answer, fd)


@pytest.mark.parametrize(
    ("answer", "region_bytes"),
    [
        (Outputs((OutputPlace(64, (1, 1, 6), "float32"),)), None),  # without memory
        (Outputs((OutputPlace(64, (10_000,), "float32"),)), 100),
        (Outputs((OutputPlace(0, (1,), "float32"),)), 100),
        (Ready(TensorForm(), None, ()), None),
    ],
)
def test_a_server_that_answers_nonsense_is_an_error_and_no_crash(
    answer: Outputs | Ready, region_bytes: int | None
) -> None:
    server = FakeServer(answer, region_bytes)
    with contextlib.closing(server):
        model = connect(server.name)
        with contextlib.closing(model), pytest.raises(Unavailable, match="not valid"):
            model.network.run(picture(1))


def test_the_error_of_a_frame_is_the_models() -> None:
    server = FakeServer(Failed(ErrorInfo("inference_failed", "onnxruntime failed on a frame.")))
    with contextlib.closing(server):
        model = connect(server.name)
        with contextlib.closing(model), pytest.raises(InferenceError, match="onnxruntime failed"):
            model.network.run(picture(1))


def test_a_client_that_is_asked_to_stop_does_not_wait_for_its_answer() -> None:
    server = FakeServer(None)
    stop = threading.Event()
    with contextlib.closing(server), contextlib.closing(connect(server.name, stop)) as model:
        stop.set()
        with pytest.raises(RequestStopped):
            model.network.run(picture(1))
