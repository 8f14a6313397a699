"""A client of an inference process: the connection to a worker, with the memory that both share."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

import msgspec

from vidflow.domain.errors import ErrorInfo
from vidflow.infra.inference import messages, regions
from vidflow.infra.inference.client import RUNNING
from vidflow.infra.inference.messages import Failed, Hello, Infer, OutputPlace, Ready, Refused
from vidflow.infra.inference.regions import HEADER_BYTES, Region, RegionError
from vidflow.infra.models.tensors import Tensor, TensorForm
from vidflow.roles.inference.batches import Outputs

HELLO_TIMEOUT_S: Final = 10.0


class InvalidRequest(Exception):
    """A client sent something that it must not send. Only its connection ends."""


class Client:
    """A connected worker. Its own thread reads from it; the model's thread answers, since a client has one request at a time."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        self._socket = connection
        self._inputs: Region | None = None
        self._outputs: Region | None = None

    def receive_hello(self) -> Hello:
        """Return the first message. Raises InvalidRequest, EOFError or OSError."""
        self._socket.settimeout(HELLO_TIMEOUT_S)
        message = self._receive()
        if not isinstance(message, Hello):
            raise InvalidRequest("its first message is no hello")
        self._socket.settimeout(None)
        return message

    def receive_request(self) -> Infer:
        """Return the next request. Raises InvalidRequest, EOFError or OSError."""
        message = self._receive()
        if not isinstance(message, Infer):
            raise InvalidRequest("it said hello twice")
        return message

    def tensor(self, frames: int, form: TensorForm, size: tuple[int, int]) -> Tensor:
        """Return the tensor of a request, in the client's memory. Raises InvalidRequest."""
        if self._inputs is None:
            raise InvalidRequest("it sent no shared memory")
        shape = (3, *size) if form.layout == "nchw" else (*size, 3)
        try:
            return self._inputs.array(HEADER_BYTES, (frames, *shape) if form.has_batch_axis else shape, form.dtype)
        except RegionError as error:
            raise InvalidRequest(str(error)) from error

    def set_running(self, *, running: bool) -> None:
        """Mark the client's request as running or not, where the client sees it even if this process dies."""
        if self._inputs is not None:
            self._inputs.mark = RUNNING if running else 0

    def greet(self, answer: Ready | Refused) -> None:
        """Answer its hello. Raises OSError if it is gone."""
        messages.send(self._socket, answer)

    def answer(self, outputs: Outputs) -> None:
        """Send the outputs of its request. Raises OSError if it is gone, or RegionError if there are too many or too large ones."""
        places, end = [], HEADER_BYTES
        for output in outputs:
            places.append((end, output))
            end = regions.align(end + output.nbytes)
        fd = None
        if self._outputs is None or self._outputs.size_bytes < end:
            if end > regions.MAX_REGION_BYTES or len(outputs) > messages.MAX_OUTPUTS:
                raise RegionError(f"{len(outputs)} outputs of {end} bytes are more than vidflow takes")
            self._outputs, fd = regions.create_region(end - HEADER_BYTES)
        for offset, output in places:
            self._outputs.array(offset, output.shape, output.dtype)[...] = output
        described = tuple(OutputPlace(offset, output.shape, output.dtype.name) for offset, output in places)  # type: ignore[arg-type]
        messages.send(self._socket, messages.Outputs(described), fd)

    def fail(self, error: ErrorInfo, *, blames_frames: bool = True) -> None:
        """Send the error of its request. Raises OSError if it is gone."""
        messages.send(self._socket, Failed(error, blames_frames))

    def disconnect(self) -> None:
        """End the connection. Its thread, which may be reading, notices."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection and the memory."""
        self._socket.close()
        for region in (self._inputs, self._outputs):
            if region is not None:
                region.close()

    def _receive(self) -> Hello | Infer:
        try:
            message, fd = messages.receive_from_client(self._socket)
        except (ValueError, msgspec.DecodeError) as error:
            raise InvalidRequest(str(error)) from error
        if fd is not None:
            try:
                self._inputs = regions.open_region(fd)
            except RegionError as error:
                raise InvalidRequest(str(error)) from error
        return message
