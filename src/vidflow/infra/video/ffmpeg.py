"""Open a container with FFmpeg, within a limit of the frame size."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, Final

import av
from av.container import InputContainer

from vidflow.infra.video.source import MAX_PIXELS
from vidflow.infra.video.source_file import SourceFile

ALIGNMENT_FACTOR: Final = Fraction(5, 4)
"""Decoders check the aligned width, which is somewhat larger than the displayed one."""
CONTAINERS: Final = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,rm,wtv,dv,ivf,gif,yuv4mpegpipe,h264,hevc,vvc,av1,obu,m4v,"
    "mjpeg,h263,vc1,mp3,aac,wav,flac"
)
"""FFmpeg's names of the containers that may be opened. They refer to no other files. The audio formats at the end are there so
that the error can say that such a file has no video stream."""
_METADATA_ERRORS: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)
"""PyAV 18 raises for tags that are not UTF-8 unless it gets this option. PyAV 19 never raises and has no such option."""


def open_with_ffmpeg(
    source: str | SourceFile | io.BytesIO,
    options: dict[str, str],
    timeout: tuple[float, float] | None = None,
    format_name: str | None = None,
) -> InputContainer:
    """Open a path, a URL or a file for reading. Raises av's errors.

    `timeout`: seconds for opening and for each read. `format_name`: the container, if FFmpeg is not to find out.
    """
    container: InputContainer = av.open(
        source,
        "r",
        format=format_name,
        # Opening decodes frames for probing. These options reach the probing decoders; the container ignores them.
        options={"max_pixels": max_pixels_option()},
        container_options=options,
        **_METADATA_ERRORS,
        timeout=timeout,
    )
    return container


def max_pixels_option() -> str:
    """Return the value of the decoders' option max_pixels."""
    return str(int(MAX_PIXELS * ALIGNMENT_FACTOR))
