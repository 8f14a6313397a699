"""Validation of sources, and how they are stored and shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidflow.domain.errors import SourceError
from vidflow.roles.api.sources import redact_source, validate_source
from vidflow.settings import ApiOptions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "day").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(b"video")
    (folder / "day" / "b.mp4").write_bytes(b"video")
    (folder / "empty.mp4").touch()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (folder / "in.mp4").symlink_to("day/b.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    return folder


def code_of(source: str, options: ApiOptions) -> str:
    with pytest.raises(SourceError) as caught:
        validate_source(source, options)
    return caught.value.code


def test_a_file_under_the_root_is_stored_relative_to_it(root: Path) -> None:
    options = ApiOptions(media_root=root)
    assert validate_source("a.mp4", options) == "a.mp4"
    assert validate_source(f"{root}/day/b.mp4", options) == "day/b.mp4"
    assert validate_source("day/../a.mp4", options) == "a.mp4"
    assert validate_source("in.mp4", options) == "day/b.mp4"


def test_a_root_that_is_a_symbolic_link_is_followed(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    assert validate_source("a.mp4", ApiOptions(media_root=link)) == "a.mp4"
    assert validate_source(f"{link}/a.mp4", ApiOptions(media_root=link)) == "a.mp4"
    assert validate_source(f"{root}/a.mp4", ApiOptions(media_root=link)) == "a.mp4"


def test_a_file_outside_the_root_is_accepted_with_any_file(root: Path, tmp_path: Path) -> None:
    secret = str(tmp_path / "secret.mp4")
    assert validate_source(secret, ApiOptions(any_file=True)) == secret
    assert validate_source(secret, ApiOptions(any_file=True, media_root=root)) == secret
    assert validate_source(str(root / "a.mp4"), ApiOptions(any_file=True, media_root=root)) == "a.mp4"
    assert code_of("../secret.mp4", ApiOptions(any_file=True, media_root=root)) == "source_forbidden"
    assert code_of("secret.mp4", ApiOptions(any_file=True)) == "source_forbidden"


def test_without_a_root_local_files_are_forbidden(root: Path) -> None:
    assert code_of(str(root / "a.mp4"), ApiOptions()) == "source_forbidden"
    assert code_of("concat:/etc/passwd|/etc/group", ApiOptions()) == "source_forbidden"


def test_a_missing_or_unusable_file_is_refused(root: Path) -> None:
    options = ApiOptions(media_root=root)
    os.mkfifo(root / "pipe.mp4")
    assert code_of("nothing.mp4", options) == "source_missing"
    assert code_of("loop.mp4", options) == "source_missing"
    assert code_of("x" * 300, options) == "source_missing"
    assert code_of("day", options) == "source_not_video"
    assert code_of("empty.mp4", options) == "source_not_video"
    assert code_of("pipe.mp4", options) == "source_not_video"
    assert code_of("concat:a.mp4|../secret.mp4", options) in {"source_missing", "source_forbidden"}


@pytest.mark.parametrize(
    "source",
    ["http://h/x.mp4", "https://h/x", "rtsp://u:p@h:554/s", "rtsps://[::1]/s", "rtmp://h/a/s", "http://h/x?a=1#b"],
)
def test_a_url_is_stored_unchanged(source: str) -> None:
    assert validate_source(source, ApiOptions()) == source


@pytest.mark.parametrize(
    "source", ["HTTP://H/X.mp4", "Https://h/x", "RTSP://U:P@h/s", "UDP://239.1.1.1:5000", "RtMp://h/a/s"]
)
def test_the_scheme_of_a_url_is_the_same_in_any_case(source: str) -> None:
    scheme, _, rest = source.partition("://")
    assert validate_source(source, ApiOptions()) == f"{scheme.lower()}://{rest}"


@pytest.mark.parametrize(
    "source", ["file:///etc/passwd", "ftp://h/x", "concat://x", "pipe://1", "data://x", "unix://x", "srt://h:1"]
)
def test_a_url_of_another_scheme_is_refused(source: str) -> None:
    assert code_of(source, ApiOptions(any_file=True)) == "source_forbidden"


@pytest.mark.parametrize(
    "source",
    [
        "http://",
        "http:///x",
        "http://h:port/x",
        "rtmp://h/",
        "http://h:70000/",
        "http://[::1",
        "http://h/a b",
        "http://h/\r\nX: y",
        "a\x00b",
    ],
)
def test_an_invalid_url_is_refused(source: str) -> None:
    assert code_of(source, ApiOptions(any_file=True)) == "source_invalid"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("rtsp://u:p@h:554/s", "rtsp://***@h:554/s"),
        ("rtmp://u:p@h/live/x7Kq-9s2L-bb4R", "rtmp://***@h/live/***"),
        ("http://token@h/s", "http://***@h/s"),
        ("http://u:p@ss@h/s", "http://***@h/s"),
        ("http://h/s?X-Amz-Signature=abc&n=1&api_key=k", "http://h/s?X-Amz-Signature=***&n=1&api_key=***"),
        ("http://h/user@name", "http://h/user@name"),
        ("day/a@b.mp4", "day/a@b.mp4"),
    ],
)
def test_a_source_is_shown_without_its_secrets(source: str, expected: str) -> None:
    assert redact_source(source) == expected


def test_a_sample_is_stored_as_the_path_of_its_file() -> None:
    source = validate_source("sample:carphone", ApiOptions(any_file=True))
    assert Path(source).is_absolute()
    assert Path(source).name == "carphone_pristine.mp4"
    assert validate_source(source, ApiOptions(any_file=True)) == source


def test_an_unknown_sample_is_refused_with_the_available_ones() -> None:
    with pytest.raises(SourceError, match="Available: sample:bikes, sample:bigbuckbunny, sample:carphone") as refusal:
        validate_source("sample:none", ApiOptions(any_file=True))
    assert refusal.value.code == "source_missing"


def test_a_sample_is_refused_by_a_server_that_accepts_no_files_outside_its_media_root(root: Path) -> None:
    assert code_of("sample:bikes", ApiOptions()) == "source_forbidden"
    assert code_of("sample:bikes", ApiOptions(media_root=root)) == "source_missing"
