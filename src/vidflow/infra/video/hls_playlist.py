"""Parse HLS playlists (RFC 8216). A playlist is untrusted: its size, and what it may refer to, is limited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import m3u8.parser

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import MAX_SAFE_INTEGER
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import http_answers

MAX_PLAYLIST_BYTES: Final = 8 * 1024 * 1024
MAX_LINE_CHARACTERS: Final = 16 * 1024
MAX_SEGMENTS: Final = 50_000
"""More than a day in segments of 2 s."""
MAX_VARIANTS: Final = 1000
MAX_SEGMENT_BYTES: Final = 1024 * 1024 * 1024
MIN_TARGET_S: Final = 0.5
MAX_TARGET_S: Final = 60.0
EDGE_TARGETS: Final = 3
"""A live playlist is read from a segment on that begins at least so many target durations before its end (RFC 8216, section 6.3.3)."""
_USED_TAGS: Final = (
    "#EXTM3U", "#EXTINF", "#EXT-X-MEDIA-SEQUENCE", "#EXT-X-PROGRAM-DATE-TIME", "#EXT-X-BYTERANGE",
    "#EXT-X-MAP", "#EXT-X-ENDLIST", "#EXT-X-STREAM-INF", "#EXT-X-GAP",
)  # fmt: skip
_TARGET: Final = "#EXT-X-TARGETDURATION:"
_DATE: Final = "#EXT-X-PROGRAM-DATE-TIME:"
_DISCONTINUITY: Final = "#EXT-X-DISCONTINUITY"
_CONTENT_TYPES: Final = frozenset(
    {"application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl"}
)


@dataclass(frozen=True, slots=True)
class Resource:
    """A whole file, or `size` bytes of it from `first` on."""

    url: str
    first: int = 0
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a presentation. `number`: its media sequence number. `header`: what a decoder must read before it (EXT-X-MAP).

    `is_discontinuous`: its times, or its format, have nothing in common with those before. `is_missing`: the server does not have it
    (EXT-X-GAP). `captured_at`: EXT-X-PROGRAM-DATE-TIME.
    """

    number: int
    content: Resource
    header: Resource | None
    duration_s: float
    is_discontinuous: bool
    is_missing: bool
    captured_at: datetime | None


@dataclass(frozen=True, slots=True)
class MediaPlaylist:
    """A list of segments. `is_ended`: no more will be added."""

    segments: tuple[Segment, ...]
    target_s: float
    is_ended: bool

    def find_edge(self) -> int:
        """Return the number of the segment at which a live presentation is read from now on."""
        remaining_s = 0.0
        for segment in reversed(self.segments):
            remaining_s += segment.duration_s
            if remaining_s >= EDGE_TARGETS * self.target_s:
                return segment.number
        return self.segments[0].number if self.segments else 0

    def find(self, number: int) -> Segment | None:
        """Return the segment with this number."""
        index = number - self.segments[0].number if self.segments else -1
        return self.segments[index] if 0 <= index < len(self.segments) else None

    def compute_digest(self) -> str:
        """Return what identifies the presentation, without URLs, which may contain a signature of their own each time."""
        text = "".join(
            f"{one.number} {one.duration_s} {one.content.first} {one.content.size}\n" for one in self.segments
        )
        return hashlib.sha256(text.encode()).hexdigest()


def is_playlist(content_type: str, url: str) -> bool:
    """Return whether a response is an HLS playlist, by its type or the name in its URL."""
    return content_type in _CONTENT_TYPES or urlsplit(url).path.lower().endswith((".m3u8", ".m3u"))


def parse_playlist(text: str, url: str, access: SourceAccess, display_name: str) -> MediaPlaylist | str:
    """Return a media playlist, or the URL of a master playlist's best variant: most pixels, then most bits a second.

    Raises SourceError for what is not a playlist, is too large, encrypted, or refers to something that is not allowed.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or not lines[0].startswith("#EXTM3U"):
        raise SourceError(
            f"{display_name} is not an HLS playlist. Check whether it plays elsewhere.", code="source_not_video"
        )
    _check_lines(lines, display_name)
    try:
        parsed = m3u8.parser.parse("\n".join(lines), custom_tags_parser=_skip_unused)
        if parsed["playlists"]:
            return http_answers.resolve_reference(url, _choose_variant(parsed["playlists"]), access, display_name)
        segments = tuple(_read_segments(parsed, url, access, display_name))
        longest_s = max((segment.duration_s for segment in segments), default=0.0)
        stated_s = next((float(line.removeprefix(_TARGET)) for line in lines if line.startswith(_TARGET)), longest_s)
    except (ArithmeticError, AttributeError, KeyError, LookupError, TypeError, ValueError) as error:
        raise SourceError(
            f"{display_name} is not a valid HLS playlist ({type(error).__name__}). Check whether it plays elsewhere.",
            code="source_not_video",
        ) from error
    return MediaPlaylist(segments, min(max(stated_s, MIN_TARGET_S), MAX_TARGET_S), bool(parsed.get("is_endlist")))


def _check_lines(lines: Sequence[str], display_name: str) -> None:
    if max(map(len, lines)) > MAX_LINE_CHARACTERS:
        raise SourceError(
            f"A line of {display_name} is longer than {MAX_LINE_CHARACTERS} characters. Give another playlist.",
            code="source_too_large",
        )
    for tag, limit in (("#EXTINF", MAX_SEGMENTS), ("#EXT-X-STREAM-INF", MAX_VARIANTS)):
        if sum(line.startswith(tag) for line in lines) > limit:
            raise SourceError(
                f"{display_name} lists more than {limit} entries. Give a shorter playlist.", code="source_too_large"
            )
    if any(line.startswith("#EXT-X-KEY") and "METHOD=NONE" not in line for line in lines):
        raise SourceError(
            f"The segments of {display_name} are encrypted, so their frames cannot be decoded. Give a playlist without encryption.",
            code="source_encrypted",
        )


def _skip_unused(line: str, _number: int, _data: object, state: dict[str, Any]) -> bool:
    """Return whether the parser is to leave out a line: tags that are not used here cannot be wrong either."""
    if line == _DISCONTINUITY:
        state["discontinuity"] = True
    if line.startswith(_DATE):
        try:
            datetime.fromisoformat(line.removeprefix(_DATE).strip())
        except ValueError:
            return True
    return not line.startswith(_USED_TAGS)


def _choose_variant(variants: Sequence[Any]) -> str:
    def rank(variant: Any) -> tuple[int, float]:  # noqa: ANN401 - the parser has no types
        width, _, height = str(variant["stream_info"].get("resolution", "0x0")).lower().partition("x")
        return int(width) * int(height or 0), float(variant["stream_info"].get("bandwidth", 0))

    return str(max(variants, key=rank)["uri"])


def _read_segments(parsed: Any, url: str, access: SourceAccess, display_name: str) -> Iterator[Segment]:  # noqa: ANN401
    number = int(parsed.get("media_sequence") or 0)
    before = Resource("")
    if not 0 <= number <= MAX_SAFE_INTEGER:
        raise ValueError("media sequence")
    for entry in parsed["segments"]:
        if "uri" not in entry:
            continue
        place = http_answers.resolve_reference(url, entry["uri"], access, display_name)
        before = content = _read_resource(place, entry.get("byterange"), before)
        header = entry.get("init_section")
        duration_s = float(entry["duration"])
        if not 0 <= duration_s < MAX_SAFE_INTEGER:
            raise ValueError("duration")
        yield Segment(
            number, content,
            header and _read_resource(
                http_answers.resolve_reference(url, header["uri"], access, display_name), header.get("byterange"), Resource("")
            ),
            duration_s, bool(entry.get("discontinuity")), bool(entry.get("gap_tag")), entry.get("current_program_date_time"),
        )  # fmt: skip
        number += 1


def _read_resource(url: str, byte_range: str | None, before: Resource) -> Resource:
    """Return the part of a file. Without a place, it follows the one before."""
    if byte_range is None:
        return Resource(url)
    size, _, first = byte_range.strip().partition("@")
    if not first and (before.url != url or before.size is None):
        raise ValueError("byte range")
    resource = Resource(url, int(first) if first else before.first + (before.size or 0), int(size))
    if resource.first < 0 or not 0 < int(size) <= MAX_SEGMENT_BYTES or resource.first > MAX_SAFE_INTEGER:
        raise ValueError("byte range")
    return resource
