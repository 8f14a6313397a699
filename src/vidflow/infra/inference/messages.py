"""The messages between a worker (the client) and an inference process (the server), over a Unix socket.

A message is its length in four bytes, then JSON. Tensors are not in it: they lie in shared memory, whose file may come with a
message. Both sides read hostile files, so each validates what the other one sends.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from vidflow.domain.device import CPU, Device
from vidflow.domain.errors import ErrorInfo
from vidflow.infra.models.tensors import PictureSizes, TensorForm

MAX_MESSAGE_BYTES: Final = 256 * 1024
"""Room for MAX_OUTPUTS outputs and their names."""
MAX_OUTPUTS: Final = 100
MAX_LABELS: Final = 1000
"""Of a model whose spec names none: torchvision's have 91."""
MAX_AXES: Final = 8
MAX_FRAMES: Final = 1024
"""The most frames of one request. A model's file may fix as many; [input] batch in a spec is at most 64."""
_LENGTH: Final = struct.Struct("<I")

Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Name = Annotated[str, msgspec.Meta(max_length=1000)]


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The client's first message. `scenario_uuid` is for the log."""

    scenario_uuid: Annotated[str, msgspec.Meta(max_length=100)]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The answer: the model is loaded. What it says of it is what a Network says."""

    form: TensorForm
    fixed_batch: Annotated[int, msgspec.Meta(ge=1, le=MAX_FRAMES)] | None
    output_names: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_OUTPUTS)]
    device: Device = CPU
    sizes: PictureSizes | None = None
    labels: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_LABELS)] = ()


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The answer if the model cannot be loaded. `fatal`: a retry fails too."""

    error: ErrorInfo
    fatal: bool


class Infer(msgspec.Struct, frozen=True, tag="infer"):
    """Run the tensor of so many frames at the start of the client's region. With a file: that of a new region.

    `size`: (height, width) of the pictures. `crashes`: how many crashes in a row the request was inside.
    """

    frames: Annotated[int, msgspec.Meta(ge=1, le=MAX_FRAMES)]
    size: tuple[Size, Size]
    crashes: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0


class OutputPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where an output lies in the server's region."""

    offset: Size
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_AXES)]
    dtype: Literal[
        "float32",
        "float16",
        "float64",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
    ]


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """The request's outputs, in the server's region for this client. With a file: that of a new region."""

    places: Annotated[tuple[OutputPlace, ...], msgspec.Meta(max_length=MAX_OUTPUTS)]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The model failed on the request. `blames_frames`: because of its pictures, not of the device."""

    error: ErrorInfo
    blames_frames: bool = True


MessageT = TypeVar("MessageT")
ClientMessage = Hello | Infer
ServerMessage = Ready | Refused | Outputs | Failed
_client_decoder: Final = msgspec.json.Decoder(Hello | Infer)
_server_decoder: Final = msgspec.json.Decoder(Ready | Refused | Outputs | Failed)


def send(connection: socket.socket, message: ClientMessage | ServerMessage, fd: int | None = None) -> None:
    """Send a message, with a file if given, which is closed. Raises OSError if the other process is gone."""
    content = msgspec.json.encode(message)
    data = _LENGTH.pack(len(content)) + content
    if fd is not None:
        try:
            sent = socket.send_fds(connection, [data], [fd])
        finally:
            os.close(fd)
        data = data[sent:]
    if data:
        connection.sendall(data)


def receive_from_client(connection: socket.socket) -> tuple[ClientMessage, int | None]:
    """Return a client's next message, and the file that came with it. Errors are those of `_receive`, or msgspec.DecodeError."""
    content, fd = _receive(connection)
    return _decode(_client_decoder, content, fd), fd


def receive_from_server(connection: socket.socket) -> tuple[ServerMessage, int | None]:
    """Return the server's next message, and the file that came with it. Errors are those of `_receive`, or msgspec.DecodeError."""
    content, fd = _receive(connection)
    return _decode(_server_decoder, content, fd), fd


def _decode(decoder: msgspec.json.Decoder[MessageT], content: bytes, fd: int | None) -> MessageT:
    try:
        return decoder.decode(content)
    except msgspec.DecodeError:
        if fd is not None:
            os.close(fd)
        raise


def _receive(connection: socket.socket) -> tuple[bytes, int | None]:
    """Raises EOFError if the other process is gone, OSError, or ValueError for a message that is too long."""
    first, fds, _, _ = socket.recv_fds(connection, 1, 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    fd = fds[0] if fds else None
    try:
        if not first:
            raise EOFError  # noqa: TRY301 - as _receive_exactly does
        (length,) = _LENGTH.unpack(first + _receive_exactly(connection, _LENGTH.size - 1))
        if length > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {length} bytes")  # noqa: TRY301
        return _receive_exactly(connection, length), fd
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Return the next `count` bytes. Raises EOFError."""
    chunks = []
    while count:
        chunk = connection.recv(count)
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)
