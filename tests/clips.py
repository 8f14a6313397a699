"""Makes the clips that the tests read, each with one property that real videos have. Encoded here, so that no file is needed.

Each function writes one file and returns its path. Pictures tell their index: frame i is filled with `grey(i)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 64
MILLISECONDS = Fraction(1, 1000)


def grey(index: int) -> int:
    """The brightness of frame `index`, far enough from its neighbours' to survive a codec."""
    return 30 + (index * 37) % 190


def plain(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """One grey picture."""
    return np.full((height, width, 3), grey(index), np.uint8)


def moving_square(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """A white square of 16 pixels on black that goes 4 pixels to the right each frame, and begins anew at the left."""
    picture = np.zeros((height, width, 3), np.uint8)
    left = (4 * index) % (width - 16)
    picture[height // 2 - 8 : height // 2 + 8, left : left + 16] = 255
    return picture


def quarters(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Red, green in the upper half, blue, white in the lower: shows how a picture is turned."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    picture[height // 2 :, width // 2 :] = (255, 255, 255)
    return picture


def write(
    path: Path,
    pictures: Iterable[NDArray[np.uint8]],
    pts: Sequence[int],
    *,
    time_base: Fraction = MILLISECONDS,
    rate: Fraction = Fraction(25),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    display_matrix: Sequence[int] | None = None,
    muxer: dict[str, str] | None = None,
    format_name: str | None = None,
) -> Path:
    """Encodes `pictures` at `pts`. Without `options`, x264 makes a keyframe each 10 frames and no B-frames."""
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(path, "w", format=format_name, options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.codec_context.options = options or {
                "g": "10",
                "keyint_min": "10",
                "bf": "0",
                "preset": "ultrafast",
                "crf": "10",
            }
        if display_matrix is not None:
            stream.set_display_matrix(display_matrix)
        for index, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(first if index == 0 else next(pictures), format="rgb24")
            frame.pts, frame.time_base = at, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def constant_rate(path: Path, frames: int = 50, first_ms: int = 0, muxer: dict[str, str] | None = None) -> Path:
    """25 frames a second, from `first_ms`."""
    pts = [first_ms + 40 * i for i in range(frames)]
    return write(path, (plain(i) for i in range(frames)), pts, muxer=muxer)


def variable_rate(path: Path, frames: int = 60) -> Path:
    """Frames at uneven distances: bursts, and pauses of up to 0.9 s."""
    distances = [10, 40, 33, 900, 7, 120, 40, 40, 300, 51]
    pts = [sum(distances[k % 10] for k in range(i)) for i in range(frames)]
    return write(path, (plain(i) for i in range(frames)), pts)


def long_gop_with_b_frames(path: Path, frames: int = 120) -> Path:
    """One keyframe in 60 frames, open GOPs, and 3 B-frames between their references: decoded order is not displayed order."""
    options = {
        "g": "60",
        "bf": "3",
        "b_strategy": "0",
        "preset": "fast",
        "crf": "18",
        "x264-params": "open-gop=1:scenecut=0",
    }
    pictures = (moving_square(i) for i in range(frames))
    return write(path, pictures, [40 * i for i in range(frames)], options=options)


def intra_refresh(path: Path, frames: int = 120) -> Path:
    """A picture that is renewed stripe by stripe, with no real keyframe but the first: seeking shows no frame at once."""
    options = {"bf": "0", "preset": "fast", "x264-params": "keyint=40:intra-refresh=1:scenecut=0"}
    pictures = (moving_square(i) for i in range(frames))
    return write(path, pictures, [40 * i for i in range(frames)], options=options)


def raw_h264(path: Path, frames: int = 30, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """An elementary stream: no container, no pts."""
    pictures = (plain(i, width, height) for i in range(frames))
    return write(path, pictures, [40 * i for i in range(frames)], format_name="h264")


def no_packet(path: Path) -> Path:
    """An mp4 that was opened for writing and closed before the first frame."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    return path


def write_truncated(source: Path, path: Path, share: float = 0.5) -> Path:
    """The first part of another file, as a full disk or a broken copy leaves it."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def write_damaged(source: Path, path: Path, packets: Iterable[int]) -> Path:
    """Another mp4 whose video packets of these indexes are overwritten with what no decoder reads."""
    data = bytearray(source.read_bytes())
    with av.open(source) as container:
        for index, packet in enumerate(container.demux(video=0)):
            if index in set(packets) and packet.pos is not None:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    return path


def timestamps_restart(path: Path, frames_each: int = 30) -> Path:
    """Two recordings in one MPEG transport stream; the second one's clock begins anew."""
    parts = [
        write(
            path.with_suffix(f".{n}.ts"),
            (plain(i + n * frames_each) for i in range(frames_each)),
            [40 * i for i in range(frames_each)],
        )
        for n in (0, 1)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def changing_size(path: Path, width: int = 128, height: int = 48) -> Path:
    """An elementary stream whose frames are 96x64 at first, and of another size from the 11th on."""
    sizes = [(WIDTH, HEIGHT), (width, height)]
    parts = [raw_h264(path.with_suffix(f".{n}.h264"), 10, *size) for n, size in enumerate(sizes)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def oriented(path: Path, matrix: Sequence[int], width: int = WIDTH, height: int = HEIGHT) -> Path:
    """One picture of `quarters`, with a display matrix."""
    return write(path, [quarters(width, height)], [0], display_matrix=matrix)


def cover_picture(path: Path) -> Path:
    """A sound file with a picture on its cover: a video stream of one frame that is no video."""
    with av.open(path, "w") as container:
        sound = container.add_stream("mp3", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(plain(0), format="rgb24")
        frame.pts = 0
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
        silence.rate, silence.pts = 44100, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return path
