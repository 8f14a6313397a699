"""The pixels of a kept frame: as displayed, in the requested size and channel order, for every pixel format."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from tests import clips

from vidflow.infra.video import KeptFrame, open_video, read_kept_frames
from vidflow.infra.video.pixels import ResamplingFilter

FIXED_POINT_ONE = 65_536
TURNS: dict[str, tuple[int, int, int, int]] = {
    # a, b, c, d of x' = a x + c y, y' = b x + d y
    "upright": (FIXED_POINT_ONE, 0, 0, FIXED_POINT_ONE),
    "clockwise": (0, FIXED_POINT_ONE, -FIXED_POINT_ONE, 0),
    "upside down": (-FIXED_POINT_ONE, 0, 0, -FIXED_POINT_ONE),
    "counterclockwise": (0, -FIXED_POINT_ONE, FIXED_POINT_ONE, 0),
    "mirrored": (-FIXED_POINT_ONE, 0, 0, FIXED_POINT_ONE),
    "mirrored upside down": (FIXED_POINT_ONE, 0, 0, -FIXED_POINT_ONE),
    "transposed": (0, FIXED_POINT_ONE, FIXED_POINT_ONE, 0),
    "transposed the other way": (0, -FIXED_POINT_ONE, -FIXED_POINT_ONE, 0),
}
RED, GREEN, BLUE, WHITE = "red", "green", "blue", "white"
CORNERS: dict[str, list[str]] = {
    # upper left, upper right, lower left, lower right, as displayed
    "upright": [RED, GREEN, BLUE, WHITE],
    "clockwise": [BLUE, RED, WHITE, GREEN],
    "upside down": [WHITE, BLUE, GREEN, RED],
    "counterclockwise": [GREEN, WHITE, RED, BLUE],
    "mirrored": [GREEN, RED, WHITE, BLUE],
    "mirrored upside down": [BLUE, WHITE, RED, GREEN],
    "transposed": [RED, BLUE, GREEN, WHITE],
    "transposed the other way": [WHITE, GREEN, BLUE, RED],
}


def read_first(path: Path) -> KeptFrame:
    with open_video(str(path)) as video:
        frame = next(read_kept_frames(video))
    assert isinstance(frame, KeptFrame)
    return frame


def colour(pixel: NDArray[np.uint8]) -> str:
    r, g, b = (int(value) > 128 for value in pixel)
    return {(1, 0, 0): RED, (0, 1, 0): GREEN, (0, 0, 1): BLUE, (1, 1, 1): WHITE}.get((r, g, b), f"{pixel}")


def corners(picture: NDArray[np.uint8]) -> list[str]:
    height, width = picture.shape[:2]
    places = [
        (height // 4, width // 4),
        (height // 4, -width // 4),
        (-height // 4, width // 4),
        (-height // 4, -width // 4),
    ]
    return [colour(picture[place]) for place in places]


def write_rotated(path: Path, turn: str) -> Path:
    a, b, c, d = TURNS[turn]
    return clips.oriented(path, (a, b, 0, c, d, 0, 0, 0, 1 << 30))


@pytest.mark.parametrize("turn", TURNS)
def test_a_frame_is_oriented_by_its_display_matrix(tmp_path: Path, turn: str) -> None:
    frame = read_first(write_rotated(tmp_path / "turned.mp4", turn))
    sideways = turn in {"clockwise", "counterclockwise", "transposed", "transposed the other way"}
    assert (frame.width, frame.height) == ((64, 96) if sideways else (96, 64))
    assert frame.image().shape == (frame.height, frame.width, 3)
    assert corners(frame.image()) == CORNERS[turn]


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_frame_has_the_requested_size(tmp_path: Path, turn: str) -> None:
    picture = read_first(write_rotated(tmp_path / "turned.mp4", turn)).image(30, 20)
    assert picture.shape == (20, 30, 3)
    assert corners(picture) == CORNERS[turn]


def test_the_source_has_the_displayed_size_and_the_rotation(tmp_path: Path) -> None:
    with open_video(str(write_rotated(tmp_path / "turned.mp4", "clockwise"))) as video:
        assert (video.source.width, video.source.height, video.source.rotation) == (64, 96, 90)


def test_an_angle_that_is_not_a_multiple_of_90_degrees_is_ignored(tmp_path: Path) -> None:
    clip = clips.oriented(tmp_path / "odd.mp4", (46_341, 46_341, 0, -46_341, 46_341, 0, 0, 0, 1 << 30))
    assert corners(read_first(clip).image()) == CORNERS["upright"]


def test_bgr_is_rgb_reversed(tmp_path: Path) -> None:
    frame = read_first(write_rotated(tmp_path / "clip.mp4", "clockwise"))
    assert np.array_equal(frame.image(order="bgr"), frame.image(order="rgb")[:, :, ::-1])


@pytest.mark.parametrize("turn", ["upright", "clockwise", "mirrored"])
def test_a_picture_is_a_contiguous_and_writable_array_of_bytes(tmp_path: Path, turn: str) -> None:
    picture = read_first(write_rotated(tmp_path / "clip.mp4", turn)).image()
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert picture.flags.writeable


@pytest.mark.parametrize(("width", "height"), [(97, 65), (33, 49), (65, 16), (640, 17)])
def test_odd_sizes_keep_every_row_and_column(tmp_path: Path, width: int, height: int) -> None:
    clip = clips.write(tmp_path / "odd.mkv", [clips.plain(0, width, height)], [0], codec="ffv1", pixel_format="yuv420p")
    picture = read_first(clip).image()
    assert picture.shape == (height, width, 3)
    assert np.abs(picture.astype(int) - clips.grey(0)).max() <= 3
    assert read_first(clip).image(31, 17).shape == (17, 31, 3)


@pytest.mark.parametrize(
    "pixel_format", ["yuv420p10le", "yuv422p", "yuv444p12le", "gray", "gray16le", "bgr0", "rgb48le", "yuva420p"]
)
def test_every_pixel_format_is_converted_to_8_bit_rgb(tmp_path: Path, pixel_format: str) -> None:
    clip = clips.write(tmp_path / "clip.mkv", [clips.plain(3)], [0], codec="ffv1", pixel_format=pixel_format)
    picture = read_first(clip).image(48, 32)
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture.astype(int) - clips.grey(3)).max() <= 3


# --- brightness

BRIGHTNESS = {RED: 76, GREEN: 150, BLUE: 29, WHITE: 255}
"""By ITU-R BT.601: 0.299 of red, 0.587 of green, 0.114 of blue."""


@pytest.mark.parametrize("turn", TURNS)
def test_grey_is_the_brightness_of_the_displayed_picture(tmp_path: Path, turn: str) -> None:
    grey = read_first(write_rotated(tmp_path / "turned.mp4", turn)).image(30, 20, "grey")
    assert (grey.shape, grey.dtype) == ((20, 30), np.dtype(np.uint8))
    assert grey.flags.c_contiguous
    quarters = [grey[2:8, 3:12], grey[2:8, 18:27], grey[12:18, 3:12], grey[12:18, 18:27]]
    for quarter, name in zip(quarters, CORNERS[turn], strict=True):
        assert abs(float(quarter.mean()) - BRIGHTNESS[name]) < 5


@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuvj420p", "yuv420p10le", "yuv422p", "yuv444p12le", "gray", "gray16le", "bgr0", "rgb48le", "yuva420p"],
)
def test_grey_reaches_from_black_to_white_in_every_pixel_format(tmp_path: Path, pixel_format: str) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 48:] = 255
    codec = "mjpeg" if pixel_format == "yuvj420p" else "ffv1"
    clip = clips.write(tmp_path / "clip.mkv", [picture], [0], codec=codec, pixel_format=pixel_format)
    grey = read_first(clip).image(48, 32, "grey")
    assert grey[:, :20].max() <= 2
    assert grey[:, 28:].min() >= 253


# --- scaling


def linear_kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(distance))


def cubic_kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic of Mitchell and Netravali for B = 0, C = 0.6."""
    x = np.abs(distance)
    inner, outer = 1.4 * x**3 - 2.4 * x**2 + 1, -0.6 * x**3 + 3 * x**2 - 4.8 * x + 2.4
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def weigh(pixels: int, results: int, resample: ResamplingFilter) -> NDArray[np.float64]:
    """Return the weight of each pixel of a line in each pixel of its scaled result, by the definition of the filter."""
    ratio = pixels / results
    margin = 4 * max(1, round(ratio))
    lines = np.arange(-margin, pixels + margin)
    if resample == "area" and ratio > 1:  # the share of each pixel that lies below the result's
        ends = np.arange(1, results + 1)[:, None] * ratio
        weights = np.clip(np.minimum(ends, lines + 1) - np.maximum(ends - ratio, lines), 0, None)
    else:
        centres = (np.arange(results)[:, None] + 0.5) * ratio - 0.5
        kernel = cubic_kernel if resample == "bicubic" else linear_kernel
        weights = kernel((lines - centres) / max(ratio, 1.0))
    folded = np.zeros((results, pixels))
    for index, line in enumerate(np.clip(lines, 0, pixels - 1)):  # the picture's edge goes on beyond it
        folded[:, line] += weights[:, index]
    weights = folded / folded.sum(axis=1, keepdims=True)
    return np.asarray(weights, dtype=np.float64)


def scale_exactly(grey: NDArray[np.uint8], size: tuple[int, int], resample: ResamplingFilter) -> NDArray[np.float64]:
    width, height = size
    return np.asarray(
        weigh(grey.shape[0], height, resample) @ grey.astype(float) @ weigh(grey.shape[1], width, resample).T
    )


def write_noise(path: Path, width: int, height: int, **options: object) -> NDArray[np.uint8]:
    """Write a clip of one picture without loss. Return the picture, whose values leave room for overshoots."""
    noise = np.random.default_rng(7).integers(64, 192, (height, width), dtype=np.uint8)
    picture = np.repeat(noise[:, :, None], 3, axis=2)
    clips.write(path, [picture], [0], codec="png", pixel_format="gray", **options)  # type: ignore[arg-type]
    with av.open(str(path)) as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="gray"), dtype=np.uint8)


@pytest.mark.parametrize("resample", get_args(ResamplingFilter))
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(128, 96, (32, 24)), (128, 96, (50, 41)), (131, 97, (96, 72)), (48, 32, (144, 96)), (640, 480, (320, 320))],
)
def test_a_picture_is_scaled_with_the_requested_filter(
    tmp_path: Path, resample: ResamplingFilter, width: int, height: int, size: tuple[int, int]
) -> None:
    """The expectation is computed from the filter's definition. That of any other filter is far from the result."""
    grey = write_noise(tmp_path / "noise.mov", width, height)
    scaled = read_first(tmp_path / "noise.mov").image(*size, resample=resample)
    errors = {name: np.abs(scaled[..., 1] - scale_exactly(grey, size, name)) for name in get_args(ResamplingFilter)}
    assert errors[resample].max() < 4, "swscale leaves out tiny weights, and treats edges in its own way"
    assert errors[resample].mean() < 0.3, "rounding alone gives 0.25"
    is_like = {"bilinear", "area"} if size > (width, height) else {resample}  # `area` enlarges like `bilinear`
    others = [errors[name].mean() for name in errors if name != resample and not {name, resample} <= is_like]
    assert min(others) > 1.2


def test_bilinear_is_the_default_filter(tmp_path: Path) -> None:
    write_noise(tmp_path / "noise.mov", 128, 96)
    frame = read_first(tmp_path / "noise.mov")
    assert np.array_equal(frame.image(50, 41), frame.image(50, 41, resample="bilinear"))


@pytest.mark.parametrize("resample", get_args(ResamplingFilter))
def test_a_turned_picture_is_scaled_with_the_requested_filter(tmp_path: Path, resample: ResamplingFilter) -> None:
    a, b, c, d = TURNS["clockwise"]
    grey = write_noise(tmp_path / "turned.mov", 128, 96, display_matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    scaled = read_first(tmp_path / "turned.mov").image(41, 50, resample=resample)
    assert np.abs(scaled[..., 1] - np.rot90(scale_exactly(grey, (50, 41), resample), -1)).mean() < 0.3


def test_a_picture_of_its_own_size_is_the_same_with_every_filter(tmp_path: Path) -> None:
    grey = write_noise(tmp_path / "noise.mov", 128, 96)
    frame = read_first(tmp_path / "noise.mov")
    for resample in get_args(ResamplingFilter):
        assert np.array_equal(frame.image(resample=resample)[..., 1], grey)


def test_the_same_frame_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    frame = read_first(clips.constant_rate(tmp_path / "clip.mp4", 1))
    assert frame.image(50, 40).tobytes() == frame.image(50, 40).tobytes()
