"""An HLS presentation as a file: its segments one after the other, each fetched over a checked connection.

It consists of parts. Within a part, the segments are one container; a part begins where the times or the format change.
"""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from vidflow.domain.errors import SourceError, Unavailable, VidflowError
from vidflow.domain.messages import FileIdentity
from vidflow.domain.redaction import redact
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import http_file
from vidflow.infra.video.hls_playlist import (
    MAX_PLAYLIST_BYTES,
    MAX_SEGMENT_BYTES,
    MediaPlaylist,
    Resource,
    Segment,
    parse_playlist,
)
from vidflow.infra.video.http_file import HttpFile
from vidflow.infra.video.http_requests import find_origin
from vidflow.infra.video.http_stream import HttpStream
from vidflow.infra.video.source_connection import Interruption, ReadingStopped
from vidflow.infra.video.source_file import SourceFile

STALE_TARGETS: Final = 3
"""A playlist that gets no new segment for so many target durations, and STALE_S, is given up."""
STALE_S: Final = 10.0
EDGE_SEGMENTS: Final = 10
"""A playlist is loaded again for each segment if the next one is among its first so many. To parse a very long one takes a second."""
_READ_BYTES: Final = 64 * 1024
_FATAL_CODES: Final = frozenset({"source_refused", "source_tls"})
"""Why a segment of a live presentation is not just skipped."""


class HlsPosition:
    """Where a live presentation is read, across connections: `next_number` is the next segment's (None: not begun)."""

    def __init__(self) -> None:
        self.next_number: int | None = None
        self.reader: object = None
        """The connection that reads on. An earlier one, which was left to itself, ends."""


class HlsSource:
    """The playlists of a presentation. `playlist` is the media playlist as it was last loaded."""

    def __init__(self, file: HttpFile | HttpStream, url: str, access: SourceAccess, interruption: Interruption) -> None:
        """Read the playlist in `file`, the response to a request of `url`, and if it is a master playlist, that of its best variant.

        Raises SourceError, Unavailable or ReadingStopped.
        """
        self._login_url, self._access, self.interruption = url, access, interruption
        self.display_name = redact(url)
        self._url = file.url
        found = parse_playlist(self._read_text(file), self._url, access, self.display_name)
        if isinstance(found, str):
            found = self._load(found)
        self.playlist: MediaPlaylist = found
        self.loaded_s = time.monotonic()

    def reload(self) -> None:
        """Load the media playlist again. Raises like the constructor."""
        self.playlist = self._load(self._url, max_failures=1)
        self.loaded_s = time.monotonic()

    def open(self, resource: Resource, *, max_failures: int) -> HttpFile:
        """Request a resource of the presentation."""
        url = self._add_login(resource.url)
        return HttpFile(url, self._access, self.interruption, first=resource.first, max_failures=max_failures)

    def _load(self, url: str, max_failures: int = http_file.MAX_FAILURES) -> MediaPlaylist:
        file = self.open(Resource(url), max_failures=max_failures)
        self._url = file.url
        found = parse_playlist(self._read_text(file), file.url, self._access, self.display_name)
        if isinstance(found, str):
            raise SourceError(
                f"{self.display_name} is a playlist of playlists of playlists. Give the URL of one of these.",
                code="source_not_video",
            )
        return found

    def _read_text(self, file: HttpFile | HttpStream) -> str:
        content = bytearray()
        try:
            while data := file.read(_READ_BYTES):
                content += data
                if len(content) > MAX_PLAYLIST_BYTES:
                    raise SourceError(
                        f"The playlist {self.display_name} is larger than {MAX_PLAYLIST_BYTES} bytes. Give a shorter one.",
                        code="source_too_large",
                    )
            file.raise_failure()
        finally:
            file.close()
        return content.decode("utf-8", errors="replace")

    def _add_login(self, url: str) -> str:
        """Return the URL with the source's login if it is at the same server."""
        parts, source = urlsplit(url), urlsplit(self._login_url)
        if source.username is None or parts.username is not None or find_origin(url) != find_origin(self._login_url):
            return url
        login, _, _ = source.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}"))


class HlsFile(SourceFile):
    """The segments of a presentation.

    On demand, all are read from the first to the last, and each must be complete. With a position, it is live, and read from there or
    from shortly before its end; segments that the server no longer has are left out. `part_captured_at`: when the first frame of the
    part was captured, by the playlist.
    """

    def __init__(self, source: HlsSource, position: HlsPosition | None) -> None:
        super().__init__("segments", can_seek=False)
        self._source, self._place = source, position or HlsPosition()
        self._is_live = position is not None
        self._place.reader = self
        self.part_captured_at: datetime | None = None
        self._resources: deque[Resource] = deque()
        self._content: HttpFile | None = None
        self._remaining = 0
        self._is_bounded = False
        self._held: Segment | None = None
        self._last: Segment | None = None

    @property
    def identity(self) -> FileIdentity | None:
        """What identifies the presentation. None if it is live."""
        if self._is_live:
            return None
        playlist = self._source.playlist
        return FileIdentity(sample=playlist.compute_digest()) if playlist.is_ended else FileIdentity()

    def begin_part(self) -> bool:
        """Read on after the end of a part. Return whether there is another one."""
        if self._held is None:
            return False
        segment, self._held = self._held, None
        self._queue(segment, begins_part=True)
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._content is not None:
            self._content.close()
            self._content = None

    def _read(self, size: int) -> bytes:
        while self._content is not None or self._resources or self._begin_segment():
            try:
                data = self._read_resource(size)
            except VidflowError as error:
                if self._is_live and isinstance(error, SourceError) and error.code not in _FATAL_CODES:
                    raise Unavailable(f"A segment is missing. {error.message}", code="source_unreachable") from error
                raise
            if data:
                return data
        return b""

    def _read_resource(self, size: int) -> bytes:
        """Return the next bytes of the resource that is being read; empty at its end."""
        if self._content is None:
            self._begin_resource(self._resources.popleft())
        assert self._content is not None
        data = self._content.read(min(size, self._remaining) if self._is_bounded else size)
        self._content.raise_failure()
        self._remaining -= len(data)
        if not data and (self._remaining if self._is_bounded else self._remaining == MAX_SEGMENT_BYTES):
            raise Unavailable(
                f"{self._content.display_name} is empty, or shorter than the playlist says. Check the server.",
                code="source_unreadable",
            )
        if self._remaining < 0:
            raise SourceError(
                f"A segment of {self._source.display_name} is larger than {MAX_SEGMENT_BYTES} bytes. Give another playlist.",
                code="source_too_large",
            )
        if not data or not self._remaining:
            self.close()
        return data

    def _begin_resource(self, resource: Resource) -> None:
        self._is_bounded = resource.size is not None
        self._remaining = MAX_SEGMENT_BYTES if resource.size is None else resource.size
        self._content = self._source.open(resource, max_failures=1 if self._is_live else http_file.MAX_FAILURES)

    def _begin_segment(self) -> bool:
        """Find the next segment of this part, and queue what is to be read for it. Return False if there is none."""
        if self._held is not None:
            return False
        segment = self._find_next()
        if segment is None:
            return False
        before, self._last = self._last, segment
        is_joined = before is not None and before.number + 1 == segment.number and before.header == segment.header
        if before is not None and (segment.is_discontinuous or not is_joined):
            self._held = segment
            return False
        self._queue(segment, begins_part=before is None)
        return True

    def _queue(self, segment: Segment, *, begins_part: bool) -> None:
        if begins_part:
            self.part_captured_at = segment.captured_at
            self._resources.extend([] if segment.header is None else [segment.header])
        self._resources.append(segment.content)

    def _find_next(self) -> Segment | None:
        """Return the next segment, once the playlist has it; None if there will be none."""
        place, source = self._place, self._source
        stale_s = time.monotonic() + STALE_TARGETS * source.playlist.target_s + STALE_S
        while place.reader is self:
            if self._may_expire():
                source.reload()
                self._note_lost_place()
            if place.next_number is None:
                place.next_number = self._find_first()
            segment = None if place.next_number is None else source.playlist.find(place.next_number)
            if segment is not None and place.next_number is not None:
                place.next_number += 1
                if not segment.is_missing:
                    return segment
                if not self._is_live:
                    raise self._build_missing_error(segment.number)
                continue
            if source.playlist.is_ended and (not self._is_live or self._last is not None):
                return None
            self._wait_for_segment(stale_s)
            self._note_lost_place()
        return None

    def _may_expire(self) -> bool:
        """Return whether the server may soon remove the next segment of a live playlist, which is to be loaded again before."""
        playlist, number = self._source.playlist, self._place.next_number
        if not self._is_live or number is None or not playlist.segments:
            return False
        is_old = time.monotonic() - self._source.loaded_s > playlist.target_s
        return is_old and number - playlist.segments[0].number < EDGE_SEGMENTS

    def _find_first(self) -> int | None:
        playlist = self._source.playlist
        if not playlist.segments:
            return None
        return playlist.find_edge() if self._is_live else playlist.segments[0].number

    def _wait_for_segment(self, stale_s: float) -> None:
        if time.monotonic() > stale_s:
            raise Unavailable(f"{self._source.display_name} lists no new segment.", code="source_timeout")
        pause_s = self._source.loaded_s + self._source.playlist.target_s / 2 - time.monotonic()
        if self._source.interruption.wait(max(0.0, pause_s)):
            raise ReadingStopped
        self._source.reload()

    def _note_lost_place(self) -> None:
        """Begin at the edge again if the playlist has moved on, or its numbers have begun again."""
        playlist, number = self._source.playlist, self._place.next_number
        if number is None or not playlist.segments:
            return
        first, last = playlist.segments[0].number, playlist.segments[-1].number
        if first <= number <= last + 1 + len(playlist.segments):
            return
        if not self._is_live:
            raise self._build_missing_error(number)
        self._place.next_number = playlist.find_edge()

    def _build_missing_error(self, number: int) -> SourceError:
        return SourceError(
            f"Segment {number} of {self._source.display_name} is missing, so the video is not complete. Check the server.",
            code="source_not_found",
        )

    def _find_size(self) -> int | None:
        return None
