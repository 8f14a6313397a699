"""Open a source (a local file, or a camera or server by URL) and describe it.

Sources are untrusted. A "video" may be a playlist that refers to other files or hosts, so only self-contained containers are
opened, using only the protocols of the source's own kind. Playlists, image lists and devices are refused. The frame size is
limited. Error messages contain FFmpeg's reason, but not the secrets in a URL. FFmpeg opens local files itself; cameras are opened by
cameras.py, files over HTTP read by http_file.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import FileIdentity
from vidflow.domain.redaction import redact
from vidflow.domain.sampling import USUAL_RATE
from vidflow.domain.source_access import SourceAccess
from vidflow.domain.source_schemes import SCHEMES, find_scheme, is_always_live
from vidflow.infra.video.cameras import PORTS, Camera, open_camera
from vidflow.infra.video.capture_times import CaptureTimes
from vidflow.infra.video.ffmpeg import CONTAINERS, max_pixels_option, open_with_ffmpeg
from vidflow.infra.video.hls_events import PartJoiner, pace, state_capture_times
from vidflow.infra.video.hls_file import HlsFile, HlsPosition, HlsSource
from vidflow.infra.video.hls_playlist import is_playlist
from vidflow.infra.video.http_file import HttpFile
from vidflow.infra.video.http_stream import HttpStream
from vidflow.infra.video.local_file import FollowedFile, LocalFile
from vidflow.infra.video.mjpeg import FORMAT, describe_pictures, is_multipart, stamp_arrivals
from vidflow.infra.video.packets import LostPacket, decode_packets
from vidflow.infra.video.source import (
    MAX_PIXELS,
    MAX_SIDE,
    can_be_appended_to,
    describe_source,
    lacks_pts,
    read_average_rate,
    read_time_base,
)
from vidflow.infra.video.source_connection import Interruption
from vidflow.infra.video.source_file import SourceFile
from vidflow.infra.video.udp_stream import UdpStream

MAX_PACKETS_BEFORE_FIRST_FRAME: Final = 10_000
"""A recording may begin in the middle of a GOP, and its first packets then cannot be decoded. This many last for minutes."""
_LIVE_OPTIONS: Final = {"analyzeduration": "500000", "fpsprobesize": "5"}
"""Half a second and five frames are enough to describe a stream. FFmpeg would read for up to five seconds first."""
_PICTURES_OPTIONS: Final = {"fpsprobesize": "0"}
"""Pictures that are read before they are decoded would seem to arrive at once."""
_FRAME_THREADED: Final = frozenset({"h264", "hevc"})
"""Codecs whose packets contain exactly one frame each."""


@dataclass(frozen=True, slots=True)
class _Source:
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


class Video:
    """An open source, for use by one thread. It is a context manager. `source` describes it."""

    def __init__(self, source: _Source, threads: int) -> None:
        self._source, self._threads = source, threads
        self._identity: FileIdentity | None = None
        self._local: LocalFile | None = None
        self._file: SourceFile | None = None
        self._container: InputContainer | None = None
        self._capture_times: CaptureTimes | None = None
        try:
            self._open()
            self._events, first = self._first_frame()
            self.source = describe_source(
                self._container_or_raise, self._stream, first,
                live=source.live, identity=self._identity, seekable=self._file is None or self._file.can_seek,
                is_growing=source.follow_s is not None,
            )  # fmt: skip
            if self._is_untimed:
                self.source = describe_pictures(self.source)
        except BaseException:
            self.close()
            raise

    @property
    def _is_untimed(self) -> bool:
        """Whether the frames have no times but those of their arrival."""
        return self._source.live and self._container_or_raise.format.name == FORMAT

    @property
    def display_name(self) -> str:
        """The source's path, or its URL without secrets."""
        return self._source.display_name

    def events(self) -> Iterator[VideoFrame | LostPacket]:
        """Return all frames from the first, and the lost packets between them. Iterate once; call `restart` to read again."""
        return self._events

    def seek(self, pts: int) -> Iterator[VideoFrame | LostPacket]:
        """Return the events from the container's last keyframe before `pts`. Raises av's errors if seeking fails."""
        self._container_or_raise.seek(pts, stream=self._stream, backward=True)
        self._events = self._decode()
        return self._events

    def restart(self) -> None:
        """Reopen the source, so that `events` starts with its first frame again."""
        self._close_container()
        self._open()
        self._events = self._decode()

    def close(self) -> None:
        """Close the file or connection."""
        self._close_container()
        if self._local is not None:
            self._local.close()
            self._local = None

    def _close_container(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(self) -> Iterator[VideoFrame | LostPacket]:
        if self._is_untimed:
            return stamp_arrivals(self._decode_container())
        if not isinstance(self._file, HlsFile):
            return self._decode_container()
        events = self._decode_parts(self._file)
        return pace(events, read_time_base(self._stream), self._source.interruption) if self._source.live else events

    def _decode_container(self) -> Iterator[VideoFrame | LostPacket]:
        container, times = self._container_or_raise, self._capture_times
        events = decode_packets(
            container, self._stream, lacks_pts=lacks_pts(container, self._stream),
            check=self._check, check_end=None if self._local is None else self._check_end,
            note_packet=None if times is None else times.note_packet,
        )  # fmt: skip
        return events if times is None else times.complete(events)

    def _decode_parts(self, file: HlsFile) -> Iterator[VideoFrame | LostPacket]:
        """Decode the container of each part."""
        joiner = PartJoiner(read_time_base(self._stream))
        while True:
            time_base = read_time_base(self._stream)
            rate = read_average_rate(self._container_or_raise, self._stream) or USUAL_RATE
            events = state_capture_times(self._decode_container(), file.part_captured_at, time_base)
            yield from joiner.join(events, time_base, 1 / rate)
            if not file.begin_part():
                return
            self._container_or_raise.close()
            self._set_container(
                _open_file(file, self.display_name, options=_LIVE_OPTIONS if self._source.live else None)
            )

    def _check(self) -> None:
        """Raise the error of the file, or that of its change."""
        if self._file is not None:
            self._file.raise_failure()
        if self._local is not None:
            self._local.require_not_rewritten()

    def _check_end(self) -> None:
        """Raise an error unless a local file is complete."""
        self._check()
        if self._local is not None and self._container is not None:
            is_open_ended = self._source.follow_s is None and can_be_appended_to(self._container, self._stream)
            self._local.require_complete(self._source.interruption, can_be_appended_to=is_open_ended)

    @property
    def _container_or_raise(self) -> InputContainer:
        if self._container is None:
            raise ValueError(f"the video {self.display_name} is closed")
        return self._container

    def _open(self) -> None:
        source = self._source
        scheme = find_scheme(source.url)
        if scheme == "udp":
            self._file = stream = UdpStream(source.url, source.display_name, source.access, source.interruption)
            self._set_container(_open_file(stream, source.display_name, "mpegts", _LIVE_OPTIONS))
        elif scheme in PORTS:
            camera = Camera(source.url, source.display_name, source.access, source.interruption)
            self._set_container(open_camera(camera))
        elif scheme is not None:
            self._set_container(self._open_http())
        else:
            self._set_container(self._open_local())

    def _set_container(self, container: InputContainer) -> None:
        self._container = container
        self._stream = _video_stream(self._container, self.display_name, self._source.stream)
        if self._source.live:
            self._capture_times = CaptureTimes(self._container.format.name, self._stream, read_time_base(self._stream))
        _prepare(self._container, self._stream, self._threads, self.display_name)

    def _open_http(self) -> InputContainer:
        source = self._source
        if source.live:
            self._file = stream = HttpStream(source.url, source.access, source.interruption)
            if is_playlist(stream.content_type, stream.url):
                return self._open_playlist(stream)
            if is_multipart(stream.content_type):
                return _open_file(stream, self.display_name, FORMAT, _PICTURES_OPTIONS)
            return _open_file(stream, self.display_name, options=_LIVE_OPTIONS)
        self._file = file = HttpFile(source.url, source.access, source.interruption, was_read=source.was_read)
        if is_playlist(file.content_type, file.url):
            return self._open_playlist(file)
        _require_unchanged(self.display_name, file.identity, self._identity or source.expected_identity)
        self._identity = file.identity
        return _open_file(file, self.display_name)

    def _open_playlist(self, playlist: HttpFile | HttpStream) -> InputContainer:
        source = self._source
        presentation = HlsSource(playlist, source.url, source.access, source.interruption)
        self._file = file = HlsFile(presentation, source.hls_position if source.live else None)
        _require_unchanged(self.display_name, file.identity, self._identity or source.expected_identity)
        self._identity = file.identity
        return _open_file(file, self.display_name, options=_LIVE_OPTIONS if source.live else None)

    def _open_local(self) -> InputContainer:
        source = self._source
        if self._local is None:
            self._local = LocalFile(Path(source.url), source.expected_identity)
            self._identity = self._local.identity
        if source.follow_s is None:
            container = _open_path(source)
            self._local.require_same_path()
            return container
        self._file = FollowedFile(self._local, source.follow_s, source.interruption)
        return _open_file(self._file, self.display_name)

    def _first_frame(self) -> tuple[Iterator[VideoFrame | LostPacket], VideoFrame]:
        """Decode up to the first frame. Return all events, including those already read, and that frame."""
        read: list[VideoFrame | LostPacket] = []
        events = self._decode()
        for event in events:
            read.append(event)
            if isinstance(event, VideoFrame):
                return chain(_pop_all(read), events), event
            if len(read) > MAX_PACKETS_BEFORE_FIRST_FRAME:
                break
        lost = f" ({len(read)} packets could not be decoded)" if read else ""
        hint = "" if self._file is None else self._file.hint
        limit = f" Its frames may be larger than the limit of {MAX_PIXELS} pixels." if not _pixels(self._stream) else ""
        raise SourceError(
            f"{self.display_name} has no frames that can be decoded{lost}.{limit}{hint} Check whether it plays elsewhere, then record,"
            " convert or copy it again.",
            code="no_frames",
        )


def open_video(
    source: str,
    *,
    threads: int = 1,
    expected_identity: FileIdentity | None = None,
    was_read: bool = False,
    follow_s: float | None = None,
    stream: int | None = None,
    live: bool = False,
    hls_position: HlsPosition | None = None,
    access: SourceAccess | None = None,
    interruption: Interruption | None = None,
) -> Video:
    """Open a path, a file:// URL, or a URL with one of SCHEMES, and decode its first frame.

    `threads`: decoding threads, 0 to let FFmpeg choose. One is best for workers that share cores. `expected_identity`: the
    identity that an earlier attempt recorded; a file with another one is refused. `was_read`: an earlier attempt could read the
    source. `follow_s`: read a growing local file until it has been still for so long. `stream`: which of its video streams to read,
    the first is 0 (None: the best). `live`: read an HTTP source from now on, not from its beginning; cameras always are.
    `hls_position`: where an earlier connection has read a live HLS presentation. `access`: what the operator allows. `interruption`:
    stops reading files at once.
    Raises SourceError with a code source_... or no_frames, Unavailable if a retry may succeed, and ReadingStopped.
    """
    scheme = urlsplit(source).scheme.lower() if "://" in source else "file"
    if scheme not in ("file", *SCHEMES):
        raise SourceError(
            f"Unsupported URL scheme {scheme!r}. Use a file path, or a URL that starts with one of {', '.join(SCHEMES)}.",
            code="source_forbidden",
        )
    if scheme == "file":
        source = display_name = str(Path(unquote(urlsplit(source).path) if "://" in source else source).absolute())
    else:
        display_name = redact(source)
    access, interruption = access or SourceAccess(), interruption or threading.Event()
    opened = _Source(
        source,
        display_name,
        expected_identity,
        was_read,
        follow_s,
        stream,
        live or is_always_live(source),
        hls_position or HlsPosition(),
        access,
        interruption,
    )
    return Video(opened, threads)


def _require_unchanged(display_name: str, identity: FileIdentity | None, expected: FileIdentity | None) -> None:
    if expected is not None and identity is not None and not expected.matches(identity):
        raise SourceError(
            f"{display_name} has changed since the scenario started (its size, modification time or ETag differs), so frame numbers would"
            " refer to other frames. Start a new scenario for the new file.",
            code="source_changed",
        )


def _open_path(source: _Source) -> InputContainer:
    """Open a local file."""
    try:
        return open_with_ffmpeg(source.url, {"protocol_whitelist": "file", "format_whitelist": CONTAINERS})
    except av.error.FFmpegError as error:
        raise _build_file_error(error, source.display_name) from error


def _open_file(
    file: SourceFile, display_name: str, format_name: str | None = None, options: Mapping[str, str] | None = None
) -> InputContainer:
    """Open a file whose bytes are not read by FFmpeg itself."""
    checked = {"protocol_whitelist": "none", "format_whitelist": format_name or CONTAINERS}
    try:
        container = open_with_ffmpeg(file, {**(options or {}), **checked}, format_name=format_name)
    except av.error.FFmpegError as error:
        file.raise_failure()
        raise _build_file_error(error, display_name, file.hint) from error
    try:
        file.raise_failure()
    except BaseException:
        container.close()
        raise
    return container


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


def _video_stream(container: InputContainer, display_name: str, index: int | None) -> VideoStream:
    """Return the video stream of this index, or the best: default streams first, then the largest. Cover pictures are ignored."""
    if not len(container.streams):
        raise SourceError(
            f"{display_name} contains no stream: nothing was ever recorded in it. Record it again.", code="no_frames"
        )
    excluded = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & excluded]
    if not streams:
        content = ", ".join(sorted({"a cover picture" if s.type == "video" else s.type for s in container.streams}))
        raise SourceError(
            f"{display_name} contains no video, only {content}. Give a file with a video stream.",
            code="source_no_video_stream",
        )
    if index is not None:
        streams = [_stream_at(streams, index, display_name)]
    decodable = [s for s in streams if _has_decoder(s)]
    if not decodable:
        raise SourceError(
            f"{display_name} has a video format without a decoder in this FFmpeg. Convert it first, for example to H.264.",
            code="source_not_video",
        )
    default = av.stream.Disposition.default
    return max(decodable, key=lambda s: (bool(s.disposition & default), _pixels(s), -s.index))


def _stream_at(streams: Sequence[VideoStream], index: int, display_name: str) -> VideoStream:
    if index < len(streams):
        return streams[index]
    known = ", ".join(f"{number} ({_describe_stream(stream)})" for number, stream in enumerate(streams))
    raise SourceError(
        f"{display_name} has no video stream {index}. It has: {known}. Correct parameters.stream.",
        code="source_no_video_stream",
    )


def _describe_stream(stream: VideoStream) -> str:
    if not _has_decoder(stream):
        return "unknown format"
    context = stream.codec_context
    return f"{context.name}, {context.width}x{context.height}" if _pixels(stream) else context.name


def _has_decoder(stream: Any) -> bool:  # noqa: ANN401  (by PyAV's types every stream has one)
    return stream.codec_context is not None


def _pixels(stream: VideoStream) -> int:
    return int(stream.codec_context.width * stream.codec_context.height)


def _thread_type(codec: str, threads: int) -> str:
    """Return PyAV's thread type. Threads work on whole frames only if each packet contains one, so that losses are noticed."""
    if threads == 1:
        return "NONE"
    return "AUTO" if codec in _FRAME_THREADED else "SLICE"


def _prepare(container: InputContainer, stream: VideoStream, threads: int, display_name: str) -> None:
    """Set the decoder's threads and limits, open it, and discard the packets of other streams."""
    context = stream.codec_context
    if _pixels(stream) > MAX_PIXELS or max(context.width, context.height) > MAX_SIDE:
        raise SourceError(
            f"The frames of {display_name} have {context.width}x{context.height} pixels; the limit is {MAX_PIXELS} in total and"
            f" {MAX_SIDE} per side. Scale the video down first, for example with `ffmpeg -i VIDEO -vf scale=1920:-2 OUT.mp4`.",
            code="source_too_large",
        )
    context.thread_count = threads
    context.thread_type = _thread_type(context.name, threads)
    context.options = {"max_pixels": max_pixels_option()}
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    try:
        context.open(strict=False)
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(
            f"The {context.name} decoder cannot decode {display_name} ({error}). Convert the video first, for example to H.264.",
            code="source_not_video",
        ) from error


def _pop_all(events: list[VideoFrame | LostPacket]) -> Iterator[VideoFrame | LostPacket]:
    """Yield the events in order, keeping no reference to those already yielded."""
    events.reverse()
    while events:
        yield events.pop()
