"""Open a stream of an RTMP server (rtmp, rtmps) with FFmpeg, and find out why a server refuses to play one."""

from __future__ import annotations

import socket
import struct
import time
from typing import Final
from urllib.parse import SplitResult, urlsplit

import av
from av.container import InputContainer

from vidflow.domain.errors import SourceError
from vidflow.infra.video.ffmpeg import open_with_ffmpeg
from vidflow.infra.video.source_connection import Interruption, receive

PORTS: Final = {"rtmp": 1935, "rtmps": 443}
_HANDSHAKE_BYTES: Final = 1536
HELLO: Final = b"\x03" + bytes(_HANDSHAKE_BYTES)
"""What a client sends first: version 3, and a handshake without a digest."""
_ANSWER_LIMIT_S: Final = 5.0
_MAX_ANSWER_BYTES: Final = 64 * 1024
_OPTIONS: Final = {
    "protocol_whitelist": "rtmp,rtmps,tcp,tls",
    "format_whitelist": "flv",
    "fpsprobesize": "0",  # LiveReader measures the rate
    "rtmp_enhanced_codecs": "hvc1,av01,vp09",  # may be sent besides H.264
    "rtmp_live": "live",  # never a recording of the same name
    "rtmp_buffer": "100",  # milliseconds that the server may keep for us
}
_FROM_FIRST_PACKET: Final = {"probesize": "32"}
_FROM_FIRST_PICTURE: Final = {"analyzeduration": "20000000"}
"""For streams whose sound comes first: many servers hold the pictures back until a key frame. FFmpeg knows both then, and reads no
further. In microseconds, more than the usual time between key frames."""
_CHUNK_BYTES: Final = 128


def open_stream(url: str, checked_url: str, options: dict[str, str], timeout: tuple[float, float]) -> InputContainer:
    """Open the stream of `url` at `checked_url`, whose host was checked. Raises av's errors, or SourceError if `url` names no stream.

    FFmpeg follows no redirect of an RTMP server. `options`: those of TLS. `timeout`: seconds for opening and for each read.
    """
    options = _OPTIONS | _describe_stream(urlsplit(url)) | options
    container = open_with_ffmpeg(checked_url, options | _FROM_FIRST_PACKET, timeout, "flv")
    if container.streams.video:
        return container
    container.close()
    return open_with_ffmpeg(checked_url, options | _FROM_FIRST_PICTURE, timeout, "flv")


def split_path(path: str) -> tuple[str, str]:
    """Return the application and the stream's name, `live` and `cam` of /live/cam. Three and more parts are APP/INSTANCE/STREAM."""
    first, slash, name = path.strip("/").partition("/")
    instance, has_instance, rest = name.partition("/")
    if has_instance and ":" not in instance:  # not a kind of file before the stream's name, as in mp4:folder/name
        return f"{first}/{instance}", rest
    return (first, name) if slash else ("", first)


def is_missing_stream(error: av.error.FFmpegError) -> bool:
    """Return whether the server answered that it does not play this stream, which is FFmpeg's error -1."""
    return isinstance(error, av.error.PermissionError)


def is_refusal(error: av.error.FFmpegError) -> bool:
    """Return whether the server answered that it does not let this client connect."""
    return isinstance(error, av.error.UnknownError)


def asks_for_login(connection: socket.socket, url: str, interruption: Interruption) -> bool:
    """Return whether the server asks who connects. FFmpeg does not say why it was refused. Raises OSError or ReadingStopped."""
    deadline_s = time.monotonic() + _ANSWER_LIMIT_S
    received, reply = b"", b""
    connection.sendall(HELLO)
    while b"_error" not in reply and b"_result" not in reply and len(received) < _MAX_ANSWER_BYTES:
        data = receive(connection, deadline_s, interruption)
        if not data:
            break
        had_shaken_hands = len(received) > 2 * _HANDSHAKE_BYTES
        received += data
        if len(received) <= 2 * _HANDSHAKE_BYTES:
            continue
        if not had_shaken_hands:
            connection.sendall(received[1 : 1 + _HANDSHAKE_BYTES] + _build_connect(urlsplit(url)))
        reply = received[1 + 2 * _HANDSHAKE_BYTES :].translate(
            None, bytes(range(0xC0, 0x100))
        )  # the marks between chunks
    return b"authmod=" in reply


def _describe_stream(parts: SplitResult) -> dict[str, str]:
    """Return FFmpeg's options that name a stream. The server learns the host as the URL has it, not as an address."""
    app, name = split_path(parts.path)
    if not name:
        raise SourceError("The URL of the source names no stream. Write rtmp://HOST/APP/STREAM.", code="source_invalid")
    query = f"?{parts.query}" if parts.query else ""
    return {"rtmp_app": app, "rtmp_playpath": f"{name}{query}", "rtmp_tcurl": _build_server_url(parts)}


def _build_server_url(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{split_path(parts.path)[0]}"


def _build_connect(parts: SplitResult) -> bytes:
    """Return the message `connect` of RTMP, in chunks."""
    fields = {"app": split_path(parts.path)[0], "flashVer": "LNX 9,0,124,2", "tcUrl": _build_server_url(parts)}
    values = b"".join(_encode_text(name) + b"\x02" + _encode_text(value) for name, value in fields.items())
    body = b"\x02" + _encode_text("connect") + struct.pack(">Bd", 0, 1) + b"\x03" + values + b"\x00\x00\x09"
    header = b"\x03" + bytes(3) + len(body).to_bytes(3) + b"\x14" + bytes(4)
    return header + b"\xc3".join(body[at : at + _CHUNK_BYTES] for at in range(0, len(body), _CHUNK_BYTES))


def _encode_text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2) + data
