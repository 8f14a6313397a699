"""Choose the video stream of a container, and open its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from vidflow.domain.errors import SourceError
from vidflow.infra.video.ffmpeg import max_pixels_option
from vidflow.infra.video.source import MAX_PIXELS, MAX_SIDE

_FRAME_THREADED: Final = frozenset({"h264", "hevc"})
"""Codecs whose packets contain exactly one frame each."""


def choose_video_stream(container: InputContainer, display_name: str, index: int | None) -> VideoStream:
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
    return max(decodable, key=lambda s: (bool(s.disposition & default), count_pixels(s), -s.index))


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
    return f"{context.name}, {context.width}x{context.height}" if count_pixels(stream) else context.name


def _has_decoder(stream: Any) -> bool:  # noqa: ANN401  (by PyAV's types every stream has one)
    return stream.codec_context is not None


def count_pixels(stream: VideoStream) -> int:
    """Return the size of the stream's frames according to its container, 0 if it says nothing."""
    return int(stream.codec_context.width * stream.codec_context.height)


def _thread_type(codec: str, threads: int) -> str:
    """Return PyAV's thread type. Threads work on whole frames only if each packet contains one, so that losses are noticed."""
    if threads == 1:
        return "NONE"
    return "AUTO" if codec in _FRAME_THREADED else "SLICE"


def open_decoder(container: InputContainer, stream: VideoStream, threads: int, display_name: str) -> None:
    """Set the decoder's threads and limits, open it, and discard the packets of other streams."""
    context = stream.codec_context
    if count_pixels(stream) > MAX_PIXELS or max(context.width, context.height) > MAX_SIDE:
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
