"""Test support: a relay before a camera that changes the camera's clocks on the way."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import IO, Self
from urllib.parse import urlsplit

from tests.rtsp.camera import Camera

_RTCP_SENDER_REPORT = 200


class Relay:
    """A camera at `url`, whose reports are `offset_s` ahead of the time of day. It is a context manager.

    `jump` moves its timestamps. `sent_after_jump` is set once a second of video was sent after it.
    """

    def __init__(self, camera: Camera, offset_s: int = 0) -> None:
        self._address = ("127.0.0.1", urlsplit(camera.url).port)
        self._offset_s = offset_s
        self._jumped_ticks = 0
        self._first_after_jump: int | None = None
        self.sent_after_jump = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/cam"
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for each in (self._server, *self._sockets):
            _shut_down(each)
            each.close()

    def jump(self, seconds: int) -> None:
        """Move all later timestamps by so many seconds."""
        self._jumped_ticks = seconds * 90_000

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._sockets.append(client)
                try:
                    camera = socket.create_connection(self._address)
                except ConnectionRefusedError:
                    _shut_down(client)
                    continue
                self._sockets.append(camera)
                threading.Thread(target=self._forward, args=(client, camera), name="to camera", daemon=True).start()
                threading.Thread(target=self._change, args=(camera, client), name="from camera", daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        _shut_down(target)

    def _change(self, camera: socket.socket, client: socket.socket) -> None:
        with camera.makefile("rb") as reader, suppress(OSError, struct.error):  # a killed camera cuts a packet off
            while start := reader.read(1):
                client.sendall(start + (self._read_packet(reader) if start == b"$" else _read_response(reader)))
        _shut_down(client)

    def _read_packet(self, reader: IO[bytes]) -> bytes:
        header = reader.read(3)
        channel, length = struct.unpack(">BH", header)
        packet = bytearray(reader.read(length))
        if channel % 2 == 0:
            self._change_timestamp(packet, 4)
            self._note_sent(struct.unpack_from(">I", packet, 4)[0])
        elif packet[1] == _RTCP_SENDER_REPORT:
            (seconds,) = struct.unpack_from(">I", packet, 8)
            struct.pack_into(">I", packet, 8, seconds + self._offset_s)
            self._change_timestamp(packet, 16)
        return header + packet

    def _change_timestamp(self, packet: bytearray, place: int) -> None:
        (ticks,) = struct.unpack_from(">I", packet, place)
        struct.pack_into(">I", packet, place, (ticks + self._jumped_ticks) % 2**32)

    def _note_sent(self, ticks: int) -> None:
        if self._jumped_ticks and self._first_after_jump is None:
            self._first_after_jump = ticks
        if self._first_after_jump is not None and (ticks - self._first_after_jump) % 2**32 > 90_000:
            self.sent_after_jump.set()


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _read_response(reader: IO[bytes]) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n") and (line := reader.readline()):
        head += line
    length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:")), 0)
    return head + reader.read(length)
