"""JPEG pictures are found in a stream whatever is between them, and however it is cut into pieces."""

from __future__ import annotations

import hashlib

import pytest

from vidflow.infra.video import mjpeg
from vidflow.infra.video.mjpeg import PictureFinder

START, END = b"\xff\xd8", b"\xff\xd9"


def segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(content) + 2).to_bytes(2) + content


def picture(number: int, *, scans: int = 1) -> bytes:
    """Return a picture with a thumbnail, a restart marker, escaped data and fill bytes."""
    thumbnail = START + segment(0xDB, bytes(9)) + END
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + b"data\xff\0" + bytes([number]) + b"\xff\xd3more\xff\0"
    return START + segment(0xE1, b"Exif\0\0" + thumbnail) + b"\xff" + segment(0xC0, bytes(8)) + scan * scans + END


@pytest.mark.parametrize(
    "between",
    [b"", b"\r\n--boundary\r\nContent-Type: image/jpg\r\n\r\n", b"--b\nContent-Length: 0\n\n", b"\xff\xff\x00\xff"],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pictures_are_found_whatever_is_between_them(between: bytes, size: int) -> None:
    pictures = [picture(0), picture(1, scans=3), picture(2)]
    stream = between + between.join(pictures) + between
    finder = PictureFinder()
    found = [one for at in range(0, len(stream), size) for one in finder.add(stream[at : at + size])]
    assert found == pictures


def test_a_picture_is_found_as_soon_as_its_last_byte_has_arrived() -> None:
    finder = PictureFinder()
    assert list(finder.add(picture(0)[:-1])) == []
    assert list(finder.add(picture(0)[-1:])) == [picture(0)]


@pytest.mark.parametrize("cut_at", [60, -3])
def test_a_picture_that_the_next_one_cuts_short_is_one_too(cut_at: int) -> None:
    cut = picture(0)[:cut_at]
    found = list(PictureFinder().add(cut + picture(1) + picture(2)))
    assert found[-1] == picture(2)
    assert found[0].startswith(cut[:60])
    assert len(found) >= 2


def test_noise_is_skipped_and_what_is_kept_of_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = hashlib.shake_128(b"noise").digest(100_000)
    finder = PictureFinder()
    list(finder.add(noise.replace(START, b"..")))
    assert list(finder.add(picture(0))) == [picture(0)]
    monkeypatch.setattr(mjpeg, "MAX_PICTURE_BYTES", 1000)
    with pytest.raises(ValueError, match="larger than 1000 bytes"):
        list(finder.add(picture(0)[:-2] + bytes(1000)))
