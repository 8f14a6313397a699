"""Open the container of a source, by the source's kind, and keep what a later opening needs.

Sources are untrusted. A "video" may be a playlist that refers to other files or hosts, so only self-contained containers are
opened, using only the protocols of the source's own kind. Playlists, image lists and devices are refused, except the cameras that the
operator has named. FFmpeg opens local files itself; cameras are opened by cameras.py and webcam.py, files over HTTP read by http_file.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import FileIdentity
from vidflow.domain.source_access import SourceAccess
from vidflow.domain.source_schemes import find_scheme
from vidflow.infra.video.cameras import PORTS, RTSP_PORTS, Camera, open_camera
from vidflow.infra.video.ffmpeg import CONTAINERS, open_with_ffmpeg
from vidflow.infra.video.hls_file import HlsFile, HlsPosition, HlsSource
from vidflow.infra.video.hls_playlist import is_playlist
from vidflow.infra.video.http_file import HttpFile
from vidflow.infra.video.http_stream import HttpStream
from vidflow.infra.video.local_file import FollowedFile, LocalFile
from vidflow.infra.video.mjpeg import FORMAT, PictureStream, is_multipart
from vidflow.infra.video.packets import Demux
from vidflow.infra.video.rtp_pictures import RtpPictures
from vidflow.infra.video.source import can_be_appended_to
from vidflow.infra.video.source_connection import Interruption, require_running
from vidflow.infra.video.source_file import SourceFile
from vidflow.infra.video.udp_stream import UdpStream
from vidflow.infra.video.webcam import open_webcam, read_pictures

_LIVE_OPTIONS: Final = {"analyzeduration": "500000", "fpsprobesize": "5"}
"""Half a second and five frames are enough to describe a stream. FFmpeg would read for up to five seconds first."""
_PICTURES_OPTIONS: Final = {"fpsprobesize": "0"}
"""Pictures that are read before they are decoded would seem to arrive at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source to open. `url` is the path of a local file, which is followed while it grows if `follow_s` is set.

    `stream`: the index of the video stream to read, None for the best. `live`: it is read from now on, not from its beginning, or
    from `hls_position` on.
    """

    url: str
    display_name: str
    expected_identity: FileIdentity | None
    was_read: bool
    follow_s: float | None
    stream: int | None
    live: bool
    hls_position: HlsPosition
    access: SourceAccess
    interruption: Interruption


class SourceContainer:
    """The container of a source, for use by one thread. It can be opened again, and is then the same file.

    `file`: the bytes that FFmpeg does not read itself (None: it does). `identity`: that of a file (None: it has none).
    """

    def __init__(self, source: Source) -> None:
        self.file: SourceFile | None = None
        self.identity: FileIdentity | None = None
        self._source = source
        self._local: LocalFile | None = None

    @property
    def can_seek(self) -> bool:
        """Whether any byte of the source can be read at any time."""
        return self.file is None or self.file.can_seek

    @property
    def is_local(self) -> bool:
        """Whether the source is a local file that is open."""
        return self._local is not None

    def open(self) -> InputContainer:
        """Open the source. Raises SourceError, Unavailable or ReadingStopped."""
        source = self._source
        if source.access.names_device(source.url):
            return open_webcam(source.url, source.interruption)
        scheme = find_scheme(source.url)
        if scheme == "udp":
            self.file = stream = UdpStream(source.url, source.display_name, source.access, source.interruption)
            return self._open_file(stream, "mpegts", _LIVE_OPTIONS)
        if scheme in PORTS:
            return open_camera(Camera(source.url, source.display_name, source.access, source.interruption))
        return self._open_local() if scheme is None else self._open_http()

    @property
    def demux(self) -> Demux | None:
        """How to read the packets, None for PyAV's way."""
        source = self._source
        if find_scheme(source.url) in RTSP_PORTS:
            return partial(RtpPictures().read, display_name=source.display_name)
        if not source.access.names_device(source.url):
            return None
        return partial(read_pictures, display_name=source.display_name, interruption=source.interruption)

    def open_part(self, file: HlsFile) -> InputContainer:
        """Open the next part of an HLS presentation, which is a container of its own."""
        return self._open_file(file, options=_LIVE_OPTIONS if self._source.live else None)

    def check(self) -> None:
        """Raise the error that ended the reading, or that of a change, or ReadingStopped for a local file."""
        if self.file is not None:
            self.file.raise_failure()
        if self._local is not None:
            require_running(self._source.interruption)
            self._local.require_not_rewritten()

    def check_end(self, container: InputContainer, stream: VideoStream) -> None:
        """Raise an error unless a local file is complete."""
        self.check()
        if self._local is not None:
            is_open_ended = self._source.follow_s is None and can_be_appended_to(container, stream)
            self._local.require_complete(self._source.interruption, can_be_appended_to=is_open_ended)

    def disconnect(self) -> None:
        """End the connection. A local file stays the one that was opened."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def close(self) -> None:
        """Close the file or connection."""
        self.disconnect()
        if self._local is not None:
            self._local.close()
            self._local = None

    def _open_http(self) -> InputContainer:
        source = self._source
        if source.live:
            self.file = stream = HttpStream(source.url, source.access, source.interruption)
            if is_playlist(stream.content_type, stream.url):
                return self._open_playlist(stream)
            if is_multipart(stream.content_type):
                self.file = pictures = PictureStream(stream)
                return self._open_file(pictures, FORMAT, _PICTURES_OPTIONS)
            return self._open_file(stream, options=_LIVE_OPTIONS)
        self.file = file = HttpFile(source.url, source.access, source.interruption, was_read=source.was_read)
        if is_playlist(file.content_type, file.url):
            return self._open_playlist(file)
        self._require_unchanged(file.identity)
        return self._open_file(file)

    def _open_playlist(self, playlist: HttpFile | HttpStream) -> InputContainer:
        source = self._source
        presentation = HlsSource(playlist, source.url, source.access, source.interruption)
        self.file = file = HlsFile(presentation, source.hls_position if source.live else None)
        self._require_unchanged(file.identity)
        return self.open_part(file)

    def _require_unchanged(self, identity: FileIdentity | None) -> None:
        expected = self.identity or self._source.expected_identity
        if expected is not None and identity is not None and not expected.matches(identity):
            raise SourceError(
                f"{self._source.display_name} has changed since the scenario started (its size, modification time or ETag differs), so"
                " frame numbers would refer to other frames. Start a new scenario for the new file.",
                code="source_changed",
            )
        self.identity = identity

    def _open_local(self) -> InputContainer:
        source = self._source
        if self._local is None:
            self._local = LocalFile(Path(source.url), source.expected_identity)
            self.identity = self._local.identity
        if source.follow_s is None:
            container = _open_path(source)
            self._local.require_same_path()
            return container
        self.file = FollowedFile(self._local, source.follow_s, source.interruption)
        return self._open_file(self.file)

    def _open_file(
        self, file: SourceFile, format_name: str | None = None, options: Mapping[str, str] | None = None
    ) -> InputContainer:
        """Open a file whose bytes are not read by FFmpeg itself."""
        checked = {"protocol_whitelist": "none", "format_whitelist": format_name or CONTAINERS}
        try:
            container = open_with_ffmpeg(file, {**(options or {}), **checked}, format_name=format_name)
        except av.error.FFmpegError as error:
            file.raise_failure()
            raise _build_file_error(error, self._source.display_name, file.hint) from error
        try:
            file.raise_failure()
        except BaseException:
            container.close()
            raise
        return container


def _open_path(source: Source) -> InputContainer:
    """Open a local file."""
    try:
        return open_with_ffmpeg(source.url, {"protocol_whitelist": "file", "format_whitelist": CONTAINERS})
    except av.error.FFmpegError as error:
        raise _build_file_error(error, source.display_name) from error


def _build_file_error(error: av.error.FFmpegError, display_name: str, hint: str = "") -> SourceError:
    """Return the error to raise for a file that FFmpeg could not open. `hint` begins with a space."""
    if isinstance(error, av.error.ArgumentError):
        return SourceError(
            f"{display_name} is not in a supported video format. Playlists, pictures and file lists are refused; give the video"
            " file itself.",
            code="source_not_video",
        )
    return SourceError(
        f"{display_name} is not a video ({error.strerror}).{hint} Check whether it plays elsewhere. A file that is still being written"
        " must be closed first.",
        code="source_not_video",
    )
