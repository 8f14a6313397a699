"""A worker's end of a shared inference process: the model as a Network whose tensors are run there.

If the process dies, what it has not answered is sent to the next one. A request is blamed only if it was running in three deaths
in a row, in the last of them alone; other requests, and the scenarios that they belong to, notice a delay.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vidflow.domain.batching import ALONE_AFTER_CRASHES
from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import ModelError, Unavailable
from vidflow.infra.inference import messages, regions, sockets
from vidflow.infra.inference.messages import Failed, Hello, Infer, Outputs, Ready, Refused, ServerMessage
from vidflow.infra.inference.regions import HEADER_BYTES, Region, RegionError
from vidflow.infra.models.detector import Network
from vidflow.infra.models.tensors import Tensor

RUNNING: Final = 1
"""The mark of a request's region while the model runs it. The server sets and clears it; it outlives the server."""
MAX_DEATHS_AT_LOADING: Final = 3
"""How often in a row the process may die before it is ready."""
STOP_CHECK_S: Final = 0.25
MESSAGE_TIMEOUT_S: Final = 10.0
"""The longest pause within a message, which the other process writes at once."""


class RequestStopped(Exception):
    """The worker was asked to stop while it waited for the inference process."""


class StopRequest(Protocol):
    """A request to stop waiting, such as a threading.Event."""

    def is_set(self) -> bool:
        """Return whether to stop."""
        ...


class SharedModel:
    """A model in an inference process, for several threads. There are as many connections as requests have ever been under way.

    `socket_name`: where the runner starts the process. `on_restart`: called by the thread that waits when the process has
    died and a wait for the next one begins.
    """

    def __init__(
        self, socket_name: str, scenario_uuid: str, stop_request: StopRequest, on_restart: Callable[[], None]
    ) -> None:
        """Connect, and wait until the model is loaded.

        Raises the error with which it cannot be loaded, Unavailable if the process dies or does not answer sense, or RequestStopped.
        """
        self._connect = partial(_Connection, socket_name, scenario_uuid, stop_request, on_restart)
        first = self._connect()
        self._idle = [first]
        ready = first.ready
        self.network = Network(
            self._run, ready.form, ready.fixed_batch, ready.output_names, ready.device, runs_in_threads=True,
            sizes=ready.sizes, labels=ready.labels,
        )  # fmt: skip
        """The model as its decoder sees it."""

    def close(self) -> None:
        """Close the connections, which no thread uses any more."""
        for connection in self._idle:
            connection.close()

    def _run(self, tensor: Tensor) -> Sequence[NDArray[Any]]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            outputs = connection.run(tensor)
        except InferenceError:  # an answer like others
            self._idle.append(connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return outputs


class _Connection:
    """A connection to the process, for one request at a time. It is opened again when the process has died."""

    def __init__(
        self, socket_name: str, scenario_uuid: str, stop_request: StopRequest, on_restart: Callable[[], None]
    ) -> None:
        """Errors are those of SharedModel."""
        self._socket_name, self._hello = socket_name, Hello(scenario_uuid)
        self._stop_request, self._on_restart = stop_request, on_restart
        self._socket: socket.socket | None = None
        self._inputs: Region | None = None
        self._outputs: Region | None = None
        try:
            self.ready = self._connect()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect."""
        for part in (self._socket, self._inputs, self._outputs):
            if part is not None:
                part.close()
        self._socket = self._inputs = self._outputs = None

    def _connect(self) -> Ready:
        for _ in range(MAX_DEATHS_AT_LOADING):
            self.close()
            try:
                self._socket = sockets.connect(self._socket_name, MESSAGE_TIMEOUT_S)
                messages.send(self._socket, self._hello)
                answer, _ = self._receive()
            except (EOFError, OSError):
                continue
            match answer:
                case Ready():
                    return answer
                case Refused(error=error, fatal=True):
                    raise ModelError(error.message, code=error.code)
                case Refused(error=error):
                    raise Unavailable(error.message, code=error.code)
                case _:
                    raise _build_nonsense_error("an answer without a question")
        raise Unavailable(
            f"The inference process died {MAX_DEATHS_AT_LOADING} times while it loaded the model. Its last output is in the runner's log.",
            code="inference_process_died",
        )

    def run(self, tensor: Tensor) -> Sequence[NDArray[Any]]:
        """Return the outputs of the model. Raises InferenceError, Unavailable or RequestStopped."""
        crashes = 0
        while True:
            try:
                return self._request(tensor, crashes)
            except (EOFError, OSError):
                crashes += self._inputs is not None and self._inputs.mark == RUNNING
            self.close()
            if crashes > ALONE_AFTER_CRASHES:
                raise InferenceError(
                    f"The inference process died {crashes} times while it ran this frame, the last time alone. Its last output is in "
                    "the runner's log.",
                    code="inference_process_died",
                )
            self._on_restart()
            ready = self._connect()
            if ready != self.ready:
                raise Unavailable("The model in the inference process has changed.", code="model_changed")

    def _request(self, tensor: Tensor, crashes: int) -> Sequence[NDArray[Any]]:
        """Raises EOFError or OSError if the process is gone, InferenceError if the model fails, Unavailable if its device does."""
        if self._socket is None:
            raise EOFError
        fd = None
        if self._inputs is None or self._inputs.size_bytes < HEADER_BYTES + tensor.nbytes:
            self._inputs, fd = regions.create_region(tensor.nbytes)
        self._inputs.array(HEADER_BYTES, tensor.shape, tensor.dtype)[...] = tensor
        form = self.ready.form
        frames = len(tensor) if form.has_batch_axis else 1
        height, width = tensor.shape[-2:] if form.layout == "nchw" else tensor.shape[-3:-1]
        messages.send(self._socket, Infer(frames, (height, width), crashes), fd)
        answer, output_fd = self._receive()
        try:
            if output_fd is not None:
                self._outputs = regions.open_region(output_fd)
            if isinstance(answer, Failed):
                kind = InferenceError if answer.blames_frames else Unavailable
                raise kind(answer.error.message, code=answer.error.code)
            if not isinstance(answer, Outputs) or self._outputs is None:
                raise _build_nonsense_error("no outputs")
            return [
                self._outputs.array(place.offset, place.shape, np.dtype(place.dtype)).copy() for place in answer.places
            ]
        except RegionError as error:
            raise _build_nonsense_error(str(error)) from error

    def _receive(self) -> tuple[ServerMessage, int | None]:
        """Return the next message, after waiting for it as long as it takes. Raises EOFError, OSError, Unavailable or RequestStopped."""
        if self._socket is None:
            raise EOFError
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not poll.poll(STOP_CHECK_S * 1000):
            if self._stop_request.is_set():
                raise RequestStopped
        try:
            return messages.receive_from_server(self._socket)
        except (ValueError, msgspec.DecodeError) as error:
            raise _build_nonsense_error(str(error)) from error


def _build_nonsense_error(problem: str) -> Unavailable:
    return Unavailable(
        f"The inference process sent something that is not valid ({problem}).", code="inference_process_failed"
    )
