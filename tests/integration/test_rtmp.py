"""Streams of RTMP servers: how they are asked for, where they may be, and which refusal has which code."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.http_server import LOOPBACK, listening, recording_first_lines
from tests.integration.certificates import CertificateAuthority
from tests.integration.test_source_tls import server_context
from tests.rtmp import refusing

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import camera_answer, open_video
from vidflow.infra.video.camera_answer import require_answer
from vidflow.infra.video.rtmp import HELLO, split_path


@pytest.mark.parametrize(
    ("path", "app", "name"),
    [
        ("/live/cam", "live", "cam"), ("/live/_definst_/cam", "live/_definst_", "cam"), ("/a/b/c/d", "a/b", "c/d"),
        ("/vod/mp4:folder/clip", "vod", "mp4:folder/clip"), ("/cam", "", "cam"), ("/", "", ""), ("", "", ""),
    ],
)  # fmt: skip
def test_a_path_names_an_application_and_a_stream(path: str, app: str, name: str) -> None:
    assert split_path(path) == (app, name)


def test_a_url_without_a_stream_is_refused() -> None:
    with pytest.raises(SourceError, match="names no stream") as refused:
        open_video("rtmp://127.0.0.1/", access=LOOPBACK)
    assert refused.value.code == "source_invalid"


@pytest.mark.parametrize("scheme", ["rtmp", "RTMP", "rtmps"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_server_at_a_local_address_is_not_connected_to(scheme: str, host: str) -> None:
    with recording_first_lines() as (port, lines), pytest.raises(SourceError) as raised:
        open_video(f"{scheme}://admin:secret@{host}:{port}/live/live_1234_AbCd5678")
    assert (raised.value.code, lines) == ("source_refused", [])
    assert "secret" not in raised.value.message
    assert "AbCd" not in raised.value.message


@pytest.mark.parametrize(
    ("answer", "code", "error_type"),
    [
        (refusing.error(refusing.LOGIN), "source_unauthorized", SourceError),
        (refusing.error("too many clients"), "source_unreachable", Unavailable),
        (refusing.status("NetStream.Play.StreamNotFound"), "source_not_found", SourceError),
    ],
)
def test_a_refusal_has_its_code(answer: bytes, code: str, error_type: type[Exception]) -> None:
    with refusing.answering(answer) as url, pytest.raises(error_type) as refused:
        open_video(url, access=LOOPBACK)
    assert getattr(refused.value, "code", None) == code


def test_a_server_learns_its_name_and_the_user_but_not_the_password() -> None:
    heard: list[bytes] = []
    answers = refusing.error(refusing.LOGIN), refusing.error(refusing.AGAIN)
    with refusing.answering(*answers, heard=heard) as url, pytest.raises(SourceError) as refused:
        open_video(url.replace("127.0.0.1", "user:secret@localhost"), access=LOOPBACK)
    assert refused.value.code == "source_unauthorized"
    assert url.replace("127.0.0.1", "localhost").removesuffix("/cam").encode() in heard[0]
    assert b"?authmod=adobe&user=user" in heard[1]
    assert len(heard) == 3  # the last one asked for the reason of the refusal
    assert b"secret" not in b"".join(heard)


def test_a_server_that_names_another_one_is_not_followed_there() -> None:
    with recording_first_lines() as (port, lines):
        answer = refusing.error("redirected", f"rtmp://127.0.0.1:{port}/live")
        with refusing.answering(answer) as url, pytest.raises(Unavailable) as refused:
            open_video(url, access=LOOPBACK)
    assert (refused.value.code, lines) == ("source_unreachable", [])


def test_a_server_that_accepts_and_says_nothing_is_noticed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_answer, "ANSWER_S", 0.3)
    began_s = time.monotonic()
    with listening() as port, pytest.raises(Unavailable) as silent:
        require_answer(f"rtmp://127.0.0.1:{port}/live/cam", LOOPBACK, threading.Event())
    assert silent.value.code == "source_timeout"
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    ("alt_name", "verify", "trusts", "accepted"),
    [
        ("IP:127.0.0.1", True, True, True), ("IP:127.0.0.1", True, False, False), ("DNS:other.example", True, True, False),
        ("DNS:other.example", False, False, True),
    ],
)  # fmt: skip
def test_a_certificate_is_verified(tmp_path: Path, alt_name: str, verify: bool, trusts: bool, accepted: bool) -> None:
    authority = CertificateAuthority(tmp_path)
    access = SourceAccess(str(authority.ca) if trusts else None, verify, LOOPBACK.networks)
    with (
        recording_first_lines(server_context(authority, alt_name)) as (port, lines),
        pytest.raises((SourceError, Unavailable)) as raised,
    ):
        open_video(f"rtmps://127.0.0.1:{port}/live/cam", access=access)
    assert (raised.value.code == "source_tls") is not accepted
    assert [len(line) for line in lines if line] == ([len(HELLO)] if accepted else [])
