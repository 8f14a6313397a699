"""Open cameras (rtsp, rtsps) and streams of RTMP servers with FFmpeg, at addresses that were checked before."""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import av
from av.container import InputContainer

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.source_tls import build_certificate_error, build_tls_context, ca_bundle
from vidflow.infra.video import rtmp
from vidflow.infra.video.ffmpeg import open_with_ffmpeg
from vidflow.infra.video.source_connection import Interruption, connect, resolve, start_tls

OPEN_TIMEOUT_S: Final = 60.0
READ_TIMEOUT_S: Final = 60.0
"""How long a camera may be silent. Some send a frame in ten seconds. LiveReader is faster to give up a connection, which FFmpeg then ends
after this time at the latest.
"""
_OPTIONS: Final = {
    "protocol_whitelist": "rtsp,rtsps,rtp,udp,tcp,tls",
    "format_whitelist": "rtsp",
    # FFmpeg opens a camera once it has read a packet. By default it watches the frames for seconds, to find their size and rate. Decoding
    # the first frame shows the size, and LiveReader measures the rate.
    "probesize": "32",
    "fpsprobesize": "0",
    # The pictures' packets come as they arrive, for rtp_pictures.py. FFmpeg's parser would hold each picture until the next one begins.
    "fflags": "+noparse+nofillin",
}
_TCP: Final = {"rtsp_transport": "tcp"}
_TCP_OR_UDP: Final = {"rtsp_flags": "prefer_tcp+filter_src"}
"""TCP loses nothing. Cameras that refuse it send over UDP, from whose packets those of strangers are filtered. FFmpeg then sends datagrams
to whatever address the camera states, so only cameras in networks that the operator has named are asked for it."""
RTSP_PORTS: Final = {"rtsp": 554, "rtsps": 322}
PORTS: Final = {**RTSP_PORTS, **rtmp.PORTS}
SECURE: Final = ("rtsps", "rtmps")
"""Schemes with TLS."""
_NO_CONNECTION: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT})
"""Errors after which another address of the same host may answer."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera to open: its URL, and the same without secrets."""

    url: str
    display_name: str
    access: SourceAccess
    interruption: Interruption

    @property
    def scheme(self) -> str:
        """The scheme of the URL, in lower case."""
        return urlsplit(self.url).scheme


def open_camera(camera: Camera) -> InputContainer:
    """Open a camera at an address that the operator allows. Raises SourceError, Unavailable or ReadingStopped."""
    try:
        urls, may_use_udp = _check_addresses(camera)
    except (OSError, UnicodeError) as error:
        raise build_camera_error(getattr(error, "strerror", None) or str(error), camera.display_name) from error
    tls: dict[str, str] = {}
    timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
    with ExitStack() as stack:
        if camera.scheme in SECURE and camera.access.verify:
            tls = {"tls_verify": "1", "ca_file": stack.enter_context(ca_bundle(camera.access))}
        for url in urls:
            try:
                if camera.scheme in rtmp.PORTS:
                    return rtmp.open_stream(camera.url, url, tls, timeout)
                options = _OPTIONS | (_TCP_OR_UDP if may_use_udp else _TCP) | tls
                return open_with_ffmpeg(url, options, timeout=timeout)
            except av.error.FFmpegError as error:
                if error.errno in _NO_CONNECTION and url != urls[-1]:
                    continue
                if camera.scheme in SECURE:
                    _require_valid_certificate(camera)
                build = _build_rtmp_refusal if camera.scheme in rtmp.PORTS else _build_refusal
                raise build(error, camera) from error
    raise build_camera_error("its name has no address", camera.display_name)


def _connect(camera: Camera) -> socket.socket:
    """Connect as FFmpeg does, with a verified certificate. Raises OSError, UnicodeError, SourceError or ReadingStopped."""
    parts = urlsplit(camera.url)
    host, port = parts.hostname or "", parts.port or PORTS[camera.scheme]
    tls = build_tls_context(camera.access) if camera.scheme in SECURE else None
    connected = connect(host, port, camera.access, camera.interruption, camera.display_name)
    return connected if tls is None else start_tls(connected, tls, host, camera.interruption)


def _check_addresses(camera: Camera) -> tuple[list[str], bool]:
    """Return the URLs to give to FFmpeg, with addresses that were checked in place of the host, and whether all are in named networks.

    A URL with TLS keeps its host, which the certificate must name. FFmpeg then resolves it again. Raises like `resolve`.
    """
    parts = urlsplit(camera.url)
    port = parts.port or PORTS[camera.scheme]
    addresses = resolve(parts.hostname or "", port, camera.access, camera.interruption, camera.display_name)
    are_named = all(camera.access.is_named(address[0]) for address in addresses)
    if camera.scheme in SECURE:
        return [parts.geturl()], are_named
    user, at, _ = parts.netloc.rpartition("@")
    hosts = dict.fromkeys(f"[{address[0]}]" if ":" in address[0] else address[0] for address in addresses)
    return [urlunsplit(parts._replace(netloc=f"{user}{at}{host}:{port}")) for host in hosts], are_named


def _require_valid_certificate(camera: Camera) -> None:
    """Raise SourceError if the camera's certificate is the reason why FFmpeg could not open it, which it does not say."""
    try:
        _connect(camera).close()
    except ssl.SSLCertVerificationError as error:
        raise build_certificate_error(camera.display_name, error) from error
    except (OSError, UnicodeError):
        return


def build_camera_error(reason: str, display_name: str, code: str = "source_unreachable") -> Unavailable:
    """Return the error to raise for a camera that cannot be reached."""
    return Unavailable(
        f"{display_name} does not answer ({reason}). Check that its server or camera is running and that the runner can reach it.",
        code=code,
    )


def _build_refusal(error: av.error.FFmpegError, camera: Camera) -> SourceError | Unavailable:
    """Return the error to raise for a camera that FFmpeg could not open."""
    display_name = camera.display_name
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return SourceError(
            f"{display_name} wants another login (401 Unauthorized). Give the camera's user and password: rtsp://user:password@host/...",
            code="source_unauthorized",
        )
    if isinstance(error, av.error.HTTPForbiddenError):
        return SourceError(
            f"{display_name} refuses this login (403 Forbidden). Check its permissions.", code="source_denied"
        )
    if isinstance(error, av.error.HTTPNotFoundError):
        return SourceError(
            f"{display_name} does not exist on its server (404 Not Found). Check the path, or whether the camera is connected to it.",
            code="source_not_found",
        )
    return build_camera_error(error.strerror, display_name)


def _build_rtmp_refusal(error: av.error.FFmpegError, camera: Camera) -> SourceError | Unavailable:
    """Return the error to raise for a stream of an RTMP server that FFmpeg could not open. May ask the server for the reason."""
    display_name = camera.display_name
    if rtmp.is_missing_stream(error):
        return SourceError(
            f"{display_name} is not played by its server. Check the path, or whether anybody sends this stream.",
            code="source_not_found",
        )
    if rtmp.is_refusal(error):
        if _wants_login(camera):
            return SourceError(
                f"{display_name} wants another login. Give the server's user and password: rtmp://user:password@host/...",
                code="source_unauthorized",
            )
        return build_camera_error("its server refused the connection", display_name)
    reason = "its server ended the connection" if error.errno == errno.EIO else error.strerror
    return build_camera_error(reason, display_name)


def _wants_login(camera: Camera) -> bool:
    try:
        with _connect(camera) as connection:
            return rtmp.asks_for_login(connection, camera.url, camera.interruption)
    except (OSError, UnicodeError):
        return False
