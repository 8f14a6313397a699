"""Open a source (a local file or device, or a camera or server by URL), describe it, and decode its frames.

The frame size is limited. Error messages contain FFmpeg's reason, but not the secrets in a URL.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from av.container import InputContainer
from av.video.frame import VideoFrame

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import FileIdentity
from vidflow.domain.redaction import redact
from vidflow.domain.sampling import USUAL_RATE
from vidflow.domain.source_access import SourceAccess
from vidflow.domain.source_schemes import SCHEMES, is_always_live, lower_scheme
from vidflow.infra.video.capture_times import CaptureTimes
from vidflow.infra.video.hls_events import PartJoiner, pace, state_capture_times
from vidflow.infra.video.hls_file import HlsFile, HlsPosition
from vidflow.infra.video.packets import Event, decode_packets
from vidflow.infra.video.skipping import PacketSkipper
from vidflow.infra.video.source import MAX_PIXELS, describe_source, lacks_pts, read_average_rate, read_time_base
from vidflow.infra.video.source_connection import Interruption
from vidflow.infra.video.source_container import Source, SourceContainer
from vidflow.infra.video.video_stream import choose_video_stream, count_pixels, open_decoder

MAX_PACKETS_BEFORE_FIRST_FRAME: Final = 10_000
"""A recording may begin in the middle of a GOP, and its first packets then cannot be decoded. This many last for minutes."""


class Video:
    """An open source, for use by one thread. It is a context manager. `source` describes it."""

    def __init__(self, source: Source, threads: int) -> None:
        self._source, self._threads, self._decodes_all = source, threads, source.live
        self._opened = SourceContainer(source)
        self._container: InputContainer | None = None
        self._capture_times: CaptureTimes | None = None
        try:
            self._set_container(self._opened.open())
            self._events, first = self._first_frame()
            self.source = describe_source(
                self._container_or_raise, self._stream, first,
                live=source.live, identity=self._opened.identity, seekable=self._opened.can_seek,
                is_growing=source.follow_s is not None,
            )  # fmt: skip
        except BaseException:
            self.close()
            raise

    @property
    def display_name(self) -> str:
        """The source's path, or its URL without secrets."""
        return self._source.display_name

    def events(self) -> Iterator[Event]:
        """Return all frames from the first, and the lost packets between them. Iterate once; call `restart` to read again."""
        return self._events

    def seek(self, pts: int) -> Iterator[Event]:
        """Return the events from the container's last keyframe before `pts`. Raises av's errors if seeking fails."""
        self._container_or_raise.seek(pts, stream=self._stream, backward=True)
        self._skipper = self._build_skipper()
        self._events = self._decode()
        return self._events

    def skip_frames(self, unwanted: range) -> None:
        """Decode no frames at these pts from now on, where the other frames stay the same. They appear as SkippedFrame."""
        if not self._decodes_all:
            self._skipper.skip(unwanted)

    def decode_all(self) -> None:
        """Decode every frame from now on, as those of a live source."""
        self._skipper.skip(range(0))
        self._decodes_all = True

    def restart(self) -> None:
        """Reopen the source, so that `events` starts with its first frame again."""
        self._close_container()
        self._opened.disconnect()
        self._set_container(self._opened.open())
        self._events = self._decode()

    def close(self) -> None:
        """Close the file or connection."""
        self._close_container()
        self._opened.close()

    def _close_container(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(self) -> Iterator[Event]:
        file = self._opened.file
        if not isinstance(file, HlsFile):
            return self._decode_container()
        events = self._decode_parts(file)
        return pace(events, read_time_base(self._stream), self._source.interruption) if self._source.live else events

    def _decode_container(self) -> Iterator[Event]:
        container, times = self._container_or_raise, self._capture_times
        events = decode_packets(
            container, self._stream, self._skipper, lacks_pts=lacks_pts(container, self._stream),
            check=self._opened.check, check_end=self._check_end if self._opened.is_local else None,
            note_packet=None if times is None else times.note_packet, demux=self._opened.demux,
        )  # fmt: skip
        return events if times is None else times.complete(events)

    def _decode_parts(self, file: HlsFile) -> Iterator[Event]:
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
            self._set_container(self._opened.open_part(file))

    def _check_end(self) -> None:
        self._opened.check_end(self._container_or_raise, self._stream)

    @property
    def _container_or_raise(self) -> InputContainer:
        if self._container is None:
            raise ValueError(f"the video {self.display_name} is closed")
        return self._container

    def _set_container(self, container: InputContainer) -> None:
        self._container = container
        self._stream = choose_video_stream(container, self.display_name, self._source.stream)
        if self._source.live:
            self._capture_times = CaptureTimes(container.format.name, self._stream, read_time_base(self._stream))
        open_decoder(container, self._stream, self._threads, self.display_name)
        self._skipper = self._build_skipper()

    def _build_skipper(self) -> PacketSkipper:
        # The parts of an HLS presentation have other pts than its frames.
        return PacketSkipper(self._stream, is_enabled=not (self._decodes_all or isinstance(self._opened.file, HlsFile)))

    def _first_frame(self) -> tuple[Iterator[Event], VideoFrame]:
        """Decode up to the first frame. Return all events, including those already read, and that frame."""
        read: list[Event] = []
        events = self._decode()
        for event in events:
            read.append(event)
            if isinstance(event, VideoFrame):
                return chain(_pop_all(read), events), event
            if len(read) > MAX_PACKETS_BEFORE_FIRST_FRAME:
                break
        lost = f" ({len(read)} packets could not be decoded)" if read else ""
        hint = "" if self._opened.file is None else self._opened.file.hint
        limit = (
            f" Its frames may be larger than the limit of {MAX_PIXELS} pixels."
            if not count_pixels(self._stream)
            else ""
        )
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
    access, interruption = access or SourceAccess(), interruption or threading.Event()
    if access.names_device(source):
        display_name = source
    elif scheme == "file":
        source = display_name = str(Path(unquote(urlsplit(source).path) if "://" in source else source).absolute())
    else:
        source = lower_scheme(source)
        display_name = redact(source)
    opened = Source(
        source,
        display_name,
        expected_identity,
        was_read,
        follow_s,
        stream,
        live or is_always_live(source) or access.names_device(source),
        hls_position or HlsPosition(),
        access,
        interruption,
    )
    return Video(opened, threads)


def _pop_all(events: list[Event]) -> Iterator[Event]:
    """Yield the events in order, keeping no reference to those already yielded."""
    events.reverse()
    while events:
        yield events.pop()
