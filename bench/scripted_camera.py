"""A camera for benchmarks: an RTSP server in a process of its own that sends H.264 over TCP and ends its connections in chosen ways.

It encodes one GOP when it starts and repeats it, so it costs almost no CPU. Each client is sent the GOP from its beginning.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import multiprocessing
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from multiprocessing.connection import Connection

import av
import numpy as np

CLOCK_HZ = 90_000
PAYLOAD_BYTES = 1400
NTP_EPOCH_S = 2_208_988_800
REPORT_S = 5
LIVE_FRAMES = 3
"""The last of a limited number of frames come at the camera's rate. Those before come at once, as if they had been stored."""
SILENCE_S = 30.0
SPS, PPS, FRAGMENT = 7, 8, 28


class Ending(StrEnum):
    """What becomes of a connection after its frames."""

    CLOSE = "close"
    RESET = "reset"
    CUT = "cut"  # before any frame, in the handshake
    SILENCE = "silence"


class _Gop:
    """An encoded GOP: the NAL units of each frame, without start codes."""

    def __init__(self, width: int, height: int, fps: int) -> None:
        self.fps = fps
        codec = av.CodecContext.create("libx264", "w")
        codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
        codec.framerate, codec.gop_size = fps, fps
        codec.options = {"tune": "zerolatency", "preset": "ultrafast", "x264-params": "repeat-headers=1"}
        y, x = np.mgrid[0:height, 0:width]
        packets = []
        for number in range(fps):
            left = (width // 2) * number // fps
            inside = (x >= left) & (x < left + width // 4) & (y >= height // 4) & (y < height // 2)
            gray = np.where(inside, 255, (x + y) % 200).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.stack([gray] * 3, -1), format="rgb24")
            packets += codec.encode(frame)
        packets += codec.encode(None)
        self.frames = [_split(bytes(packet)) for packet in packets]
        kinds = {unit[0] & 31: unit for unit in self.frames[0]}
        self.parameter_sets = ",".join(base64.b64encode(kinds[kind]).decode() for kind in (SPS, PPS))


def _split(annex_b: bytes) -> list[bytes]:
    return [unit for unit in re.split(rb"\x00\x00\x00?\x01", annex_b) if unit]


def _payloads(unit: bytes) -> Iterator[bytes]:
    """Yield the RTP payloads of a NAL unit: itself, or fragments (FU-A) if it is large."""
    if len(unit) <= PAYLOAD_BYTES:
        yield unit
        return
    indicator, kind, body = (unit[0] & 0xE0) | FRAGMENT, unit[0] & 31, unit[1:]
    for start in range(0, len(body), PAYLOAD_BYTES):
        is_first, is_last = start == 0, start + PAYLOAD_BYTES >= len(body)
        header = bytes([indicator, kind | (0x80 if is_first else 0) | (0x40 if is_last else 0)])
        yield header + body[start : start + PAYLOAD_BYTES]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        server = self.server
        ending = next(server.endings)
        with contextlib.suppress(OSError):
            while (request := self._read_request()) is not None:
                method, sequence = request
                if ending is Ending.CUT and method == "SETUP":
                    return
                self._answer(method, sequence)
                if method == "PLAY":
                    self._send_frames()
                    self._end(ending)
                    return

    def _read_request(self) -> tuple[str, str] | None:
        lines: list[str] = []
        while (line := self.rfile.readline().decode().strip()) or not lines:
            if not line:
                return None
            lines.append(line)
        fields = dict(field.lower().split(":", 1) for field in lines[1:])
        return lines[0].split()[0], fields["cseq"].strip()

    def _answer(self, method: str, sequence: str) -> None:
        headers, body = "", ""
        if method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
                f"a=framerate:{self.server.gop.fps}\r\na=control:video\r\n"
                f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={self.server.gop.parameter_sets}\r\n"
            )
            headers = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            headers = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        elif method == "OPTIONS":
            headers = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\nSession: 1\r\n{headers}\r\n{body}".encode())

    def _send_frames(self) -> None:
        gop, began_s, sequence = self.server.gop, time.monotonic(), 0
        count = self.server.frames
        stored = 0 if count is None else count - LIVE_FRAMES
        for number in itertools.count() if count is None else range(count):
            if number >= stored:
                time.sleep(max(0.0, began_s + (number - stored) / gop.fps - time.monotonic()))
            data = self._sender_report(number, sequence) if number % (gop.fps * REPORT_S) == stored else b""
            payloads = [payload for unit in gop.frames[number % len(gop.frames)] for payload in _payloads(unit)]
            for index, payload in enumerate(payloads):
                marker = 0x80 if index == len(payloads) - 1 else 0
                packet = struct.pack(">BBHII", 0x80, 96 | marker, sequence & 0xFFFF, self._stamp(number), 1) + payload
                data += struct.pack(">cBH", b"$", 0, len(packet)) + packet
                sequence += 1
            self.connection.sendall(data)

    def _sender_report(self, number: int, packets: int) -> bytes:
        """Return the interleaved RTCP report that this frame was captured now."""
        ntp = int((time.time() + NTP_EPOCH_S) * 2**32)
        report = struct.pack(">BBHIQIII", 0x80, 200, 6, 1, ntp, self._stamp(number), packets, 0)
        return struct.pack(">cBH", b"$", 1, len(report)) + report

    def _stamp(self, number: int) -> int:
        return number * CLOCK_HZ // self.server.gop.fps & 0xFFFFFFFF

    def _end(self, ending: Ending) -> None:
        if ending is Ending.RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif ending is Ending.SILENCE:
            self.connection.settimeout(SILENCE_S)
            while self.connection.recv(4096):  # until the client gives up
                pass


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads, request_queue_size = True, True, 64

    def __init__(self, gop: _Gop, frames: int | None, endings: list[Ending]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.gop, self.frames, self.endings = gop, frames, itertools.cycle(endings)


@contextmanager
def camera(
    *, fps: int = 25, size: tuple[int, int] = (160, 128), frames: int | None = None, endings: list[Ending] | None = None
) -> Iterator[str]:
    """Run a camera while the block runs, and yield its URL.

    It sends `fps` frames a second to each client without end, or only `frames`, and then ends the connection in the next of `endings`.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, fps, size, frames, endings or [Ending.CLOSE]), daemon=True)
    process.start()
    try:
        yield f"rtsp://127.0.0.1:{ours.recv()}/camera"
    finally:
        process.kill()
        process.join()


def _serve(port: Connection, fps: int, size: tuple[int, int], frames: int | None, endings: list[Ending]) -> None:
    with _Server(_Gop(*size, fps), frames, endings) as server:
        threading.Thread(target=server.serve_forever, name="camera", daemon=True).start()
        port.send(server.server_address[1])
        threading.Event().wait()
