"""Read which part of the decoded pictures a container displays: PixelCrop elements of Matroska, `clap` boxes of mp4.

FFmpeg reads both but PyAV does not show them. FFmpeg also writes them, so the stream's header is copied to a Matroska file in memory
and read from there. The bytes that are parsed here are thus always FFmpeg's own, not those of an untrusted file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import av
from av.video.stream import VideoStream

from vidflow.infra.video.pixels import NO_CROP, Crop

_SEGMENT, _TRACKS, _TRACK_ENTRY, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
_PARENTS: Final = frozenset({_SEGMENT, _TRACKS, _TRACK_ENTRY, _VIDEO})
_BOTTOM, _TOP, _LEFT, _RIGHT = 0x54AA, 0x54BB, 0x54CC, 0x54DD


def read_crop(stream: VideoStream) -> Crop:
    """Return the margins that the container hides; none if it states none or if FFmpeg cannot copy the codec to Matroska."""
    copy = io.BytesIO()
    try:
        with av.open(copy, "w", format="matroska") as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return NO_CROP
    values = dict(_read_elements(copy.getvalue()))
    return Crop(*(int.from_bytes(values.get(margin, b"")) for margin in (_TOP, _BOTTOM, _LEFT, _RIGHT)))


def _read_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the id and the content of each EBML element, descending into _PARENTS."""
    position = 0
    while position < len(data):
        id_bytes = 9 - data[position].bit_length()
        element, position = int.from_bytes(data[position : position + id_bytes]), position + id_bytes
        size_bytes = 9 - data[position].bit_length()
        size = int.from_bytes(data[position : position + size_bytes]) & ((1 << 7 * size_bytes) - 1)
        position += size_bytes
        if element not in _PARENTS:
            yield element, data[position : position + size]
            position += size
