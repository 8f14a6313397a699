"""Opens a source: a local file, or a camera or server by its URL; tells what it is. Not which of its frames are kept.

A source is hostile. A "video" may be a playlist that names other files or hosts, so only containers that hold their data
themselves are opened, by the protocols of the source's own kind; no playlist, list of pictures, or device. Frames have a
largest size. What is wrong with a source is told in words of ours and FFmpeg's, without the secrets that a URL may carry.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.messages import FileIdentity
from vidflow.domain.redaction import redact
from vidflow.infra.video.packets import LostPacket, decode_packets
from vidflow.infra.video.source import describe_source

MAX_PIXELS: Final = 8192 * 8192
"""The largest frame that is decoded: some 100 MB as yuv420p, twice that as RGB."""
MAX_SIDE: Final = 65535
"""The widest and the highest frame: what the messages and tables hold."""
ALIGNMENT_FACTOR: Final = Fraction(5, 4)
"""Decoders measure a frame by its aligned width, somewhat more than what is displayed."""
OPEN_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 10.0
"""How long a server or camera may be silent. Local files have no such limit."""
MAX_PACKETS_BEFORE_FIRST_FRAME: Final = 10_000
"""A recording may begin in the middle of a GOP, so its first packets cannot be decoded; this is minutes of them."""

CONTAINERS: Final = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,rm,wtv,dv,ivf,gif,yuv4mpegpipe,h264,hevc,vvc,av1,obu,m4v,"
    "mjpeg,h263,vc1,mp3,aac,wav,flac"
)
"""FFmpeg's names of what may be opened: containers that name no other file. (The last ones, to say that they hold no video.)"""

_PROTOCOLS: Final = {
    "file": "file",
    "http": "http,https,tcp,tls,httpproxy",
    "https": "http,https,tcp,tls,httpproxy",
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,udp,tcp,tls",
}
_METADATA_ERRORS: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)
"""PyAV 18 raises for tags that are not UTF-8 unless it gets this option. PyAV 19 never raises and has no such option."""
_FRAME_THREADED: Final = frozenset({"h264", "hevc"})
"""Codecs whose packets make one frame each."""


class Video:
    """An open source. One thread reads it; it is a context manager. `source` tells what it is."""

    def __init__(self, url: str, shown: str, threads: int, identity: FileIdentity | None) -> None:
        self._url, self._display_name, self._threads = url, shown, threads
        self._container: InputContainer | None = None
        try:
            self._open()
            self._events, first = self._first_frame()
            self.source = describe_source(
                self._container_or_raise, self._stream, first, live=is_live(url), identity=identity
            )
        except BaseException:
            self.close()
            raise

    @property
    def display_name(self) -> str:
        """The source's name for people: without user, password and query."""
        return self._display_name

    def events(self) -> Iterator[VideoFrame | LostPacket]:
        """All frames from the first, and what was lost between them; once, unless `restart` comes between."""
        return self._events

    def seek(self, pts: int) -> Iterator[VideoFrame | LostPacket]:
        """The same from the keyframe before `pts`, as the container sees it. Raises av's errors where it cannot seek."""
        self._container_or_raise.seek(pts, stream=self._stream, backward=True)
        self._events = decode_packets(self._container_or_raise, self._stream)
        return self._events

    def restart(self) -> None:
        """Opens the source anew, so that `events` begin with its first frame."""
        self.close()
        self._open()
        self._events = decode_packets(self._container_or_raise, self._stream)

    def close(self) -> None:
        """Lets go of the file or connection."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _container_or_raise(self) -> InputContainer:
        if self._container is None:
            raise ValueError(f"the video {self._display_name} is closed")
        return self._container

    def _open(self) -> None:
        self._container = _container(self._url, self._display_name)
        self._stream = _video_stream(self._container, self._display_name)
        _prepare(self._container, self._stream, self._threads, self._display_name)

    def _first_frame(self) -> tuple[Iterator[VideoFrame | LostPacket], VideoFrame]:
        """All events again, and the first frame among them."""
        seen: list[VideoFrame | LostPacket] = []
        events = decode_packets(self._container_or_raise, self._stream)
        for event in events:
            seen.append(event)
            if isinstance(event, VideoFrame):
                return chain(_pop_all(seen), events), event
            if len(seen) > MAX_PACKETS_BEFORE_FIRST_FRAME:
                break
        told = f" ({len(seen)} packets could not be decoded)" if seen else ""
        if not _pixels(self._stream):
            told += f", or its frames are larger than {MAX_PIXELS} pixels, which vidflow does not decode"
        raise SourceError(
            f"{self._display_name} gives not one frame{told}: see whether it plays elsewhere, and record, convert or copy it again",
            code="no_frames",
        )


def open_video(source: str, *, threads: int = 1, expected_identity: FileIdentity | None = None) -> Video:
    """Opens a path, a file:// URL, or an http(s) or rtsp(s) URL, and decodes its first frame.

    `threads`: decoding threads, 0 for as many as FFmpeg likes; workers that share cores do best with one. `expected_identity`: what an
    earlier attempt saw; a file that differs from it is refused. Raises SourceError with the codes source_missing,
    source_forbidden, source_not_video, source_no_video_stream, source_too_large, source_changed or no_frames, and Unavailable
    where a retry may mend it.
    """
    scheme = urlsplit(source).scheme.lower() if "://" in source else "file"
    if scheme not in _PROTOCOLS:
        raise SourceError(
            f"{scheme}:// is no kind of source: give a file's path, or a URL that begins with http, https, rtsp or rtsps",
            code="source_forbidden",
        )
    if scheme != "file":
        return Video(source, redact(source), threads, None)
    path = Path(unquote(urlsplit(source).path) if "://" in source else source).absolute()
    identity = _identity(path)
    if expected_identity is not None and expected_identity != FileIdentity() and identity != expected_identity:
        raise SourceError(
            f"{path} is not the file that this scenario began with (its size or time has changed): its frame numbers would"
            " mean other frames; start a new scenario for the new file",
            code="source_changed",
        )
    return Video(str(path), str(path), threads, identity)


def is_live(url: str) -> bool:
    """Whether the source is a camera or stream that has no beginning to go back to."""
    return url.lower().startswith(("rtsp://", "rtsps://"))


def _identity(path: Path) -> FileIdentity:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            # Opened once here, so that permission is told apart from what FFmpeg says of the contents.
            with path.open("rb"):
                return FileIdentity(status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE}:
            raise Unavailable(f"{path} cannot be read just now ({error.strerror})", code="source_unreadable") from error
        told = error.strerror if isinstance(error, OSError) else "no path has such characters"
        raise SourceError(
            f"{path} cannot be read ({told}): see that it exists on the machine of the runner, readable by its user",
            code="source_missing",
        ) from error
    raise SourceError(f"{path} is no file but a directory or a device: name a video file", code="source_missing")


def _container(url: str, shown: str) -> InputContainer:
    remote = not url.startswith("/")
    scheme = urlsplit(url).scheme.lower() if remote else "file"
    options = {"protocol_whitelist": _PROTOCOLS[scheme], "format_whitelist": CONTAINERS}
    if is_live(url):
        options |= {"format_whitelist": "rtsp", "rtsp_transport": "tcp"}
    try:
        container: InputContainer = av.open(
            url,
            "r",
            # Probing decodes too: its decoders get the largest size, and the container ignores it.
            options={"max_pixels": _max_pixels_option()},
            container_options=options,
            **_METADATA_ERRORS,
            timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S) if remote else None,
        )
    except av.error.FFmpegError as error:
        raise _open_error(error, shown, remote=remote) from error
    return container


def _open_error(error: av.error.FFmpegError, shown: str, *, remote: bool) -> SourceError | Unavailable:
    """Why a source could not be opened, in our words."""
    if isinstance(error, av.error.ArgumentError):
        return SourceError(
            f"{shown} is no video that vidflow opens: playlists, pictures and lists of files are refused, and so is what FFmpeg"
            " does not know; give the video file itself",
            code="source_not_video",
        )
    if isinstance(error, av.error.HTTPClientError):
        return SourceError(
            f"the server refuses {shown} ({error.strerror}): see the URL and its rights", code="source_missing"
        )
    if remote and not isinstance(error, av.error.InvalidDataError):
        return Unavailable(
            f"{shown} does not answer ({error.strerror}): see that its server or camera is up and can be reached from the runner",
            code="source_unreachable",
        )
    return SourceError(
        f"{shown} is not a video ({error.strerror}): see whether it plays elsewhere; a file still being written must be closed first",
        code="source_not_video",
    )


def _video_stream(container: InputContainer, shown: str) -> VideoStream:
    """The best video stream: the default one before others, then the largest. Never a cover picture."""
    if not len(container.streams):
        raise SourceError(f"{shown} holds no stream and no frame: a recording that was never filled", code="no_frames")
    unfit = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & unfit]
    if not streams:
        held = ", ".join(sorted({"a cover picture" if s.type == "video" else s.type for s in container.streams}))
        raise SourceError(
            f"{shown} holds no video, only {held}: give a file with a video stream", code="source_no_video_stream"
        )
    known = [s for s in streams if _has_decoder(s)]
    if not known:
        raise SourceError(
            f"{shown} is in a video format that FFmpeg has no decoder for here: convert it first, for example to H.264",
            code="source_not_video",
        )
    default = av.stream.Disposition.default
    return max(known, key=lambda s: (bool(s.disposition & default), _pixels(s), -s.index))


def _has_decoder(stream: Any) -> bool:  # noqa: ANN401  (PyAV's types say that it always has one)
    return stream.codec_context is not None


def _pixels(stream: VideoStream) -> int:
    return int(stream.codec_context.width * stream.codec_context.height)


def _thread_type(codec: str, threads: int) -> str:
    """How the threads share the work: by frames only where each packet makes one frame, so that a loss can be noticed."""
    if threads == 1:
        return "NONE"
    return "AUTO" if codec in _FRAME_THREADED else "SLICE"


def _max_pixels_option() -> str:
    return str(int(MAX_PIXELS * ALIGNMENT_FACTOR))


def _prepare(container: InputContainer, stream: VideoStream, threads: int, shown: str) -> None:
    """Sets the decoder's threads and limits, opens it, and leaves the other streams' packets where they lie."""
    context = stream.codec_context
    if _pixels(stream) > MAX_PIXELS or max(context.width, context.height) > MAX_SIDE:
        raise SourceError(
            f"the frames of {shown} are {context.width}x{context.height} pixels, more than the {MAX_PIXELS} in all or {MAX_SIDE} a"
            " side that vidflow decodes: scale the video down first, for example with `ffmpeg -i VIDEO -vf scale=1920:-2 OUT.mp4`",
            code="source_too_large",
        )
    context.thread_count = threads
    context.thread_type = _thread_type(context.name, threads)
    context.options = {"max_pixels": _max_pixels_option()}
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    try:
        context.open(strict=False)
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(
            f"the {context.name} decoder refuses {shown} ({error}): convert the video first, for example to H.264",
            code="source_not_video",
        ) from error


def _pop_all(events: list[VideoFrame | LostPacket]) -> Iterator[VideoFrame | LostPacket]:
    """The events in order; each is let go as it is handed out."""
    events.reverse()
    while events:
        yield events.pop()
