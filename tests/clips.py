"""Generates test clips, each with one property of real videos.

Each function writes a file and returns its path. The pictures of most clips identify their index: frame i is filled with
`grey(i)`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 64
MILLISECONDS = Fraction(1, 1000)
X264_OPTIONS = {"g": "10", "keyint_min": "10", "bf": "0", "preset": "ultrafast", "crf": "10"}


def grey(index: int) -> int:
    """Return the brightness of frame `index`, different enough from its neighbours to survive a codec."""
    return 30 + (index * 37) % 190


def plain(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return a uniformly grey picture."""
    return np.full((height, width, 3), grey(index), np.uint8)


def moving_square(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return a black picture with a white square of 16 pixels, which moves right by 4 pixels per frame and wraps around."""
    picture = np.zeros((height, width, 3), np.uint8)
    left = (4 * index) % (width - 16)
    picture[height // 2 - 8 : height // 2 + 8, left : left + 16] = 255
    return picture


def quarters(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return quarters in red and green (upper half), blue and white (lower half), which show how the picture is rotated."""
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
    pixel_aspect: Fraction | None = None,
    muxer: dict[str, str] | None = None,
    format_name: str | None = None,
) -> Path:
    """Encode `pictures` at `pts`. By default, x264 makes a keyframe every 10 frames and no B-frames."""
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(path, "w", format=format_name, options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if options is not None:
            stream.codec_context.options = options
        elif codec == "libx264":
            stream.codec_context.options = X264_OPTIONS
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if display_matrix is not None:
            stream.set_display_matrix(display_matrix)
        for index, frame_pts in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(first if index == 0 else next(pictures), format="rgb24")
            frame.pts, frame.time_base = frame_pts, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def constant_rate(path: Path, frames: int = 50, first_ms: int = 0, muxer: dict[str, str] | None = None) -> Path:
    """Write 25 frames per second, starting at `first_ms`."""
    pts = [first_ms + 40 * i for i in range(frames)]
    return write(path, (plain(i) for i in range(frames)), pts, muxer=muxer)


def variable_rate(path: Path, frames: int = 60) -> Path:
    """Write frames at uneven intervals: bursts, and pauses of up to 0.9 s."""
    distances = [10, 40, 33, 900, 7, 120, 40, 40, 300, 51]
    pts = [sum(distances[k % 10] for k in range(i)) for i in range(frames)]
    return write(path, (plain(i) for i in range(frames)), pts)


def long_gop_with_b_frames(path: Path, frames: int = 120) -> Path:
    """Write open GOPs of 60 frames with 3 B-frames between references, so that decoding order is not display order."""
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


def hevc(path: Path, frames: int = 60) -> Path:
    """Write HEVC with B-frames and open GOPs of 20 frames, so that frames before a keyframe refer to earlier ones."""
    options = {"x265-params": "log-level=none:open-gop=1:keyint=20:min-keyint=20"}
    pictures = (moving_square(i) for i in range(frames))
    return write(path, pictures, [40 * i for i in range(frames)], codec="libx265", options=options)


def intra_refresh(path: Path, frames: int = 120) -> Path:
    """Write frames that are refreshed stripe by stripe, without a keyframe but the first, so that a seek shows no frame at once."""
    options = {"bf": "0", "preset": "fast", "x264-params": "keyint=40:intra-refresh=1:scenecut=0"}
    pictures = (moving_square(i) for i in range(frames))
    return write(path, pictures, [40 * i for i in range(frames)], options=options)


def raw_h264(path: Path, frames: int = 30, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Write an elementary stream, which has no container and no pts."""
    pictures = (plain(i, width, height) for i in range(frames))
    return write(path, pictures, [40 * i for i in range(frames)], format_name="h264")


def no_packet(path: Path) -> Path:
    """Write an mp4 that is closed before the first frame."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    return path


def write_truncated(source: Path, path: Path, share: float = 0.5) -> Path:
    """Write the first part of another file, as a full disk or an aborted copy leaves it."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def write_damaged(source: Path, path: Path, packets: Iterable[int]) -> Path:
    """Copy an mp4 with the video packets of these indexes overwritten, so that they cannot be decoded."""
    data = bytearray(source.read_bytes())
    with av.open(source) as container:
        for index, packet in enumerate(container.demux(video=0)):
            if index in set(packets) and packet.pos is not None:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    return path


def noise(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return a picture of noise, whose packets are long enough to be damaged in part."""
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def with_concealed_damage(source: Path, path: Path, packets: Iterable[int]) -> Path:
    """Copy an mp4 of `noise` with the second half of these video packets zeroed. The decoder guesses the damaged parts."""
    data = bytearray(source.read_bytes())
    with av.open(source) as container:
        for index, packet in enumerate(container.demux(video=0)):
            if index in set(packets) and packet.pos is not None:
                half = packet.size // 2
                data[packet.pos + half : packet.pos + packet.size] = bytes(packet.size - half)
    path.write_bytes(data)
    return path


def without_transport_packets(source: Path, path: Path, first: int, stop: int, offset: int = 0) -> Path:
    """Copy a transport stream without the packets from the start of the video's frame `first`, in order of decoding, up to that of
    `stop`, both moved by `offset` packets.

    Their number is made no multiple of 16, which the counter of the packets could not show, by leaving out another one before.
    """
    data = source.read_bytes()
    packets = [data[position : position + 188] for position in range(0, len(data), 188)]
    video = [index for index, packet in enumerate(packets) if int.from_bytes(packet[1:3]) & 0x1FFF == 0x100]
    starts = [place for place, index in enumerate(video) if packets[index][1] & 0x40]
    left_out = video[starts[first] + offset : starts[stop] + offset]
    if len(left_out) % 16 == 0:
        left_out.append(video[starts[first] + offset - 1])
    path.write_bytes(b"".join(packet for index, packet in enumerate(packets) if index not in left_out))
    return path


def with_damaged_picture_headers(source: Path, path: Path, pictures: Iterable[int]) -> Path:
    """Copy a video of MPEG-2 with the start codes of these pictures, in order of decoding, made ones that mean nothing."""
    data = bytearray(source.read_bytes())
    starts, start = [], data.find(b"\0\0\1\0")
    while start >= 0:
        if (
            data[start + 5] & 7 == 7 and data[start + 6] == 0xFF and data[start + 7] >> 3 == 0x1F
        ):  # no delay, as FFmpeg writes it
            starts.append(start)
        start = data.find(b"\0\0\1\0", start + 1)
    for picture in pictures:
        data[starts[picture] + 3] = 0xB0
    path.write_bytes(data)
    return path


def mpeg2(path: Path, options: Mapping[str, str] | None = None, frames: int = 60) -> Path:
    """Write MPEG-2 with 2 B-frames between references."""
    pictures = (moving_square(i) for i in range(frames))
    return write(
        path, pictures, range(frames), time_base=Fraction(1, 25), codec="mpeg2video", options={"g": "12", "bf": "2", **(options or {})}
    )  # fmt: skip


def with_clean_aperture(source: Path, path: Path, size: tuple[int, int], offset: tuple[int, int] = (0, 0)) -> Path:
    """Copy an mp4, adding a `clap` box: players display `size` around the centre moved by `offset`."""
    data = bytearray(source.read_bytes())
    fractions = [value for number in (*size, *offset) for value in (number, 1)]
    box = struct.pack(">I4s4I4i", 40, b"clap", *fractions)
    position = box_bytes = 0
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", None):
        position = (
            position + 16 if name is None else data.index(name, position)
        )  # the last is the codec's, the first in stsd
        box_bytes = int.from_bytes(data[position - 4 : position])
        data[position - 4 : position] = (box_bytes + len(box)).to_bytes(4)
    data[position - 4 + box_bytes : position - 4 + box_bytes] = box
    path.write_bytes(data)
    return path


def remux(source: Path, path: Path) -> Path:
    """Copy the video packets and the stream's properties to another container."""
    with av.open(source) as original, av.open(path, "w") as copy:
        stream = copy.add_stream_from_template(original.streams.video[0], opaque=True)
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux_one(packet)
    return path


def with_display_size(source: Path, path: Path, size: tuple[int, int]) -> Path:
    """Copy a Matroska file of `write` with a codec that states no shape of the pixels, adding a display size below 256."""
    data = source.read_bytes()
    unknown_unit, colour = b"\x54\xb2\x81\x04", b"\x55\xb0\x88\x55\xb7\x81\x01\x55\xb8\x81\x02"
    assert data.count(unknown_unit + colour) == 1
    display = b"\x54\xb0\x81" + bytes([size[0]]) + b"\x54\xba\x81" + bytes([size[1]])
    filler = b"\xec" + bytes([0x80 + len(unknown_unit + colour) - len(display) - 2])
    path.write_bytes(data.replace(unknown_unit + colour, display + filler + bytes(filler[1] - 0x80)))
    return path


def with_wild_times(source: Path, path: Path, times: Mapping[int, int]) -> Path:
    """Copy a video without B-frames, giving the packets with these indexes a later pts."""
    with av.open(source) as original, av.open(path, "w") as copy:
        stream = copy.add_stream_from_template(original.streams.video[0])
        for index, packet in enumerate(original.demux(video=0)):
            if packet.dts is None:
                continue
            packet.stream = stream
            packet.pts = times.get(index, packet.pts)
            copy.mux_one(packet)
    return path


def timestamps_restart(path: Path, frames_each: int = 30) -> Path:
    """Write two recordings into one MPEG transport stream, so that its clock restarts."""
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
    """Write an elementary stream of ten 96x64 frames followed by ten of another size."""
    sizes = [(WIDTH, HEIGHT), (width, height)]
    parts = [raw_h264(path.with_suffix(f".{n}.h264"), 10, *size) for n, size in enumerate(sizes)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def oriented(path: Path, matrix: Sequence[int], width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Write a picture of `quarters` with a display matrix."""
    return write(path, [quarters(width, height)], [0], display_matrix=matrix)


def two_videos(path: Path) -> Path:
    """Write a file with a large and a small video stream, in that order."""
    with av.open(path, "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, divisor in zip(streams, (1, 2), strict=True):
            stream.width, stream.height, stream.pix_fmt = WIDTH // divisor, HEIGHT // divisor, "yuv420p"
        for number in range(10):
            for stream in streams:
                picture = plain(number, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def cover_picture(path: Path) -> Path:
    """Write a sound file with a cover picture, a video stream of one frame that is not a video."""
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
