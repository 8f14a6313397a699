"""Sources over HTTP: the body's end is proven, broken connections are continued, and each refusal has its own code."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from tests import clips
from tests.http_server import LOOPBACK, Habits, Pauses, listening, serving

from vidflow.domain.errors import SetupError, SourceError, Unavailable
from vidflow.domain.messages import ResumePoint
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import (
    KeptFrame,
    ReadingStopped,
    http_connection,
    http_file,
    http_requests,
    open_video,
    read_kept_frames,
)
from vidflow.infra.video.http_file import HttpFile

BODY = bytes(range(256)) * 4_000


def read_all(url: str, pauses: Pauses | None = None, after: Callable[[], object] | None = None) -> bytes:
    """Read the whole body. `after` is called after the first part."""
    file = HttpFile(url, LOOPBACK, pauses or Pauses())
    parts = []
    while data := file.read(32_768):
        parts.append(data)
        if after is not None and len(parts) == 1:
            after()
    file.raise_failure()
    file.close()
    return b"".join(parts)


def failure_code(url: str, **options: object) -> str:
    with pytest.raises((SourceError, Unavailable)) as raised:
        read_all(url, **options)  # type: ignore[arg-type]
    assert raised.value.message.count(". ") >= 1, "the message must say what to do"
    return raised.value.code


@pytest.mark.parametrize(
    "habits",
    [
        Habits(BODY), Habits(BODY, ranges=False), Habits(BODY, ranges=False, length=False),
        Habits(BODY, ranges=False, chunked=True), Habits(BODY, chunked=True), Habits(BODY, part_bytes=300_000),
        Habits(BODY, part_bytes=300_000, content_range=None, chunked=True), Habits(BODY, headers={}),
    ],
)  # fmt: skip
def test_a_body_that_ends_properly_is_read_whole(habits: Habits) -> None:
    with serving(habits) as url:
        assert read_all(url) == BODY
    assert habits.requests[0]["accept-encoding"] == "identity"


def test_the_scheme_of_a_url_may_have_any_case(tmp_path: Path) -> None:
    clip = clips.constant_rate(tmp_path / "clip.mp4", frames=3)
    with serving(Habits(clip.read_bytes())) as url, open_video(url.replace("http", "HtTP"), access=LOOPBACK) as video:
        kept = [step for step in read_kept_frames(video, None, ResumePoint()) if isinstance(step, KeptFrame)]
    assert len(kept) == 3


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_that_breaks_every_connection_is_continued_at_the_byte_where_it_broke(
    resets: bool, chunked: bool
) -> None:
    habits = Habits(BODY, break_after=200_000, chunked=chunked)
    with serving(habits) as url:
        assert read_all(url) == BODY
    if not resets:
        assert habits.ranges_requested[:3] == ["bytes=0-", "bytes=200000-", "bytes=400000-"]
    assert habits.requests[1]["if-range"] == '"1"'


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_breaks_off_without_ranges_is_an_error_and_not_an_end(chunked: bool) -> None:
    with serving(Habits(BODY, ranges=False, chunked=chunked, break_after=600_000)) as url:
        assert failure_code(url) == "source_unreadable"


def test_a_server_that_always_breaks_at_once_is_given_up_after_pauses() -> None:
    pauses, habits = Pauses(), Habits(BODY, break_after=10)
    with serving(habits) as url:
        assert failure_code(url, pauses=pauses) == "source_unreadable"
    assert len(habits.requests) == http_file.MAX_FAILURES
    assert pauses.seconds == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4])


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 599])
def test_a_temporary_refusal_is_retried_after_the_time_that_the_server_asks_for(status: int) -> None:
    in_five_s = format_datetime(datetime.now(UTC) + timedelta(seconds=5), usegmt=True)
    answers: list[tuple[int, dict[str, str]] | bytes] = [
        (status, {"Retry-After": "1"}), (status, {"Retry-After": in_five_s}), (status, {}), (status, {"Retry-After": "x"}),
    ]  # fmt: skip
    pauses = Pauses()
    with serving(Habits(BODY, answers=answers)) as url:
        assert read_all(url, pauses) == BODY
    assert pauses.seconds[0] == 1.0
    assert 2 < pauses.seconds[1] <= 5
    assert pauses.seconds[2:] == [4.0, 8.0]


def test_a_server_that_asks_for_a_very_long_pause_is_left_to_a_later_attempt() -> None:
    pauses = Pauses()
    with serving(Habits(BODY, answers=[(429, {"Retry-After": "9999999999999"})])) as url:
        assert failure_code(url, pauses=pauses) == "source_unreachable"
    assert pauses.seconds == []


def test_a_pause_and_a_silent_server_are_stopped_at_once() -> None:
    for answers in ([(503, {"Retry-After": "60"})], []):
        stop = threading.Event()
        with listening() as port, serving(Habits(BODY, answers=list(answers))) as url:
            threading.Timer(0.2, stop.set).start()
            began_s = time.monotonic()
            with pytest.raises(ReadingStopped):
                HttpFile(url if answers else f"http://127.0.0.1:{port}/x.mp4", LOOPBACK, stop)
            assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    ("status", "code", "later"),
    [
        (401, "source_unauthorized", "source_expired"), (403, "source_denied", "source_expired"),
        (404, "source_not_found", "source_not_found"), (410, "source_gone", "source_expired"),
        (400, "source_denied", "source_denied"), (204, "source_denied", "source_denied"),
    ],
)  # fmt: skip
def test_a_permanent_refusal_has_its_own_code(status: int, code: str, later: str) -> None:
    habits = Habits(BODY, break_after=200_000)
    with serving(habits) as url:
        habits.answers = [(status, {})]
        assert failure_code(url) == code
        assert failure_code(url, after=lambda: habits.answers.append((status, {}))) == later
        habits.answers = [(status, {})]
        with pytest.raises(SourceError) as raised:
            HttpFile(url, LOOPBACK, was_read=True)
        assert raised.value.code == later


@pytest.mark.parametrize(
    "change", [{"ETag": '"2"'}, {"ETag": '"1"', "Last-Modified": "Fri, 27 Nov 2026 00:00:00 GMT"}, None]
)
def test_a_body_that_is_replaced_while_it_is_read_is_not_mixed(change: dict[str, str] | None) -> None:
    habits = Habits(BODY, break_after=200_000)
    habits.headers["Last-Modified"] = "Thu, 26 Nov 2026 00:00:00 GMT"

    def replace() -> None:
        if change is None:
            habits.body += b"more"
        else:
            habits.headers = change

    with serving(habits) as url:
        assert failure_code(url, after=replace) == "source_changed"


def test_a_server_that_no_longer_answers_ranges_is_a_temporary_error() -> None:
    habits = Habits(BODY, break_after=200_000)
    with serving(habits) as url:
        assert failure_code(url, after=lambda: setattr(habits, "ranges", False)) == "source_unreadable"


@pytest.mark.parametrize(
    "content_range",
    ["bytes 5-10/20", "bytes 10-5/20", "bytes 0-20/20", "bytes 0-/20", "words", "bytes 0-9999999999999999/*", " "],
)
def test_a_wrong_content_range_is_refused(content_range: str) -> None:
    with serving(Habits(BODY, content_range=content_range)) as url:
        assert failure_code(url) == "source_unreadable"


@pytest.mark.parametrize("length", [str(2**53), "1" + "0" * 30, "1" + "0" * 5000], ids=["2**53", "1e30", "1e5000"])
def test_an_impossible_length_is_refused(length: str) -> None:
    with serving(Habits(BODY, ranges=False, headers={"Content-Length": length})) as url:
        assert failure_code(url) == "source_denied"


def test_a_length_beyond_the_end_is_an_error() -> None:
    with serving(Habits(BODY, ranges=False, headers={"Content-Length": str(2**50)})) as url:
        assert failure_code(url) == "source_unreadable"


@pytest.mark.parametrize(
    "answer",
    [
        b"ICY 200 OK\r\n\r\n", b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=["icy", "nothing", "ssh", "many headers", "a long header"],
)  # fmt: skip
def test_what_is_not_http_is_unreachable(answer: bytes) -> None:
    with serving(Habits(BODY, answers=[answer] * 10)) as url:
        assert failure_code(url) == "source_unreachable"


def test_endless_headers_end_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "READ_TIMEOUT_S", 0.5)
    with listening(backlog=[b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000) as port:
        assert failure_code(f"http://127.0.0.1:{port}/v.mp4") == "source_unreachable"


def test_a_compressed_body_is_refused() -> None:
    with serving(Habits(BODY, headers={"Content-Encoding": "gzip"})) as url:
        assert failure_code(url) == "source_denied"


def test_a_server_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_file, "SLOW_S", 0.5)
    with serving(Habits(BODY, ranges=False, drip_s=0.05)) as url:
        assert failure_code(url) == "source_unreadable"


def test_a_server_that_falls_silent_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_file, "READ_TIMEOUT_S", 0.5, raising=False)
    monkeypatch.setattr(http_connection, "READ_TIMEOUT_S", 0.5)
    habits = Habits(BODY, drip_s=30.0)
    with serving(habits) as url:
        assert read_all(url, after=lambda: setattr(habits, "drip_s", None)) == BODY


def test_redirects_are_followed_and_endless_ones_refused() -> None:
    habits = Habits(
        BODY, answers=[(status, {"Location": f"/{status}.mp4?x=1"}) for status in (301, 302, 303, 307, 308)]
    )
    with serving(habits) as url:
        assert read_all(url) == BODY
        assert habits.paths[-1] == "/308.mp4?x=1"
        habits.answers = [(302, {"Location": url})] * 50
        assert failure_code(url) == "source_denied"
    assert len(habits.answers) == 50 - http_requests.MAX_REDIRECTS


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1/", "data:,x"])
def test_a_redirect_to_anything_else_is_refused(location: str) -> None:
    with serving(Habits(BODY, answers=[(302, {"Location": location})])) as url:
        assert failure_code(url) == "source_denied"


def test_after_a_redirect_reading_goes_on_at_the_same_place_and_returns_to_the_source_if_it_expires() -> None:
    habits = Habits(BODY, answers=[(302, {"Location": "/signed.mp4"})], break_after=200_000)
    expired: list[tuple[int, dict[str, str]] | bytes] = [(403, {}), (302, {"Location": "/signed-again.mp4"})]
    with serving(habits) as url:
        assert read_all(url, after=lambda: habits.answers.extend(expired)) == BODY
    assert habits.paths[:5] == ["/video.mp4", "/signed.mp4", "/signed.mp4", "/video.mp4", "/signed-again.mp4"]


@pytest.mark.parametrize(
    ("challenge", "accepts"),
    [
        ('Basic realm="x"', "Basic YWRtaW46cEBzcw=="),
        ('Digest realm="x", nonce="n", qop="auth"', 'Digest username="admin"'),
        ('Digest realm="x", nonce="n", algorithm=MD5', 'Digest username="admin"'),
    ],
)
def test_a_login_in_the_url_answers_the_servers_challenge(challenge: str, accepts: str) -> None:
    habits = Habits(BODY, accepts=accepts, challenge=challenge, break_after=600_000)
    with serving(habits) as url:
        assert read_all(url.replace("//", "//admin:p%40ss@")) == BODY
        assert "authorization" not in habits.requests[0]
        assert len(habits.requests) == 3
        assert failure_code(url) == "source_unauthorized"
        habits.accepts = "never"
        assert failure_code(url.replace("//", "//admin:wrong@")) == "source_unauthorized"


def test_a_login_is_not_sent_to_another_host() -> None:
    other = Habits(BODY, accepts="Basic", headers={})
    with serving(other) as other_url, serving(Habits(BODY, answers=[(302, {"Location": other_url})])) as url:
        assert failure_code(url.replace("//", "//admin:secret@")) == "source_unauthorized"
    assert all("authorization" not in request for request in other.requests)


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2:1/x", "http://169.254.169.254/latest", "http://[::ffff:127.0.0.2]/", "http://0.0.0.0/"],
)
def test_a_redirect_to_an_address_that_is_not_allowed_is_refused(location: str) -> None:
    habits = Habits(BODY, answers=[(302, {"Location": location})])
    with serving(habits) as url, pytest.raises(SourceError, match="--allow-source-network") as raised:
        HttpFile(url, SourceAccess(networks=("127.0.0.1",)))
    assert raised.value.code == "source_refused"


def test_a_source_is_not_even_connected_to_at_an_address_that_is_not_allowed() -> None:
    habits = Habits(BODY)
    with serving(habits) as url:
        for address in ("127.0.0.1", "localhost", "127.1", "2130706433", "[::ffff:7f00:1]"):
            with pytest.raises(SourceError) as raised:
                open_video(url.replace("127.0.0.1", address))
            assert raised.value.code == "source_refused"
    assert habits.requests == []


def test_a_refusal_names_the_host_and_only_the_runners_log_names_its_address(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise a client could find out the addresses of the runner's network."""
    with pytest.raises(SourceError, match="leads to the host localhost,") as raised:
        open_video("http://localhost:1/video.mp4?token=secret")
    assert not any(address in raised.value.message for address in ("127.0.0.1", "::1"))
    refused = next(record for record in caplog.records if record.getMessage() == "source_address_refused")
    assert refused.vidflow_fields["address"] in {"127.0.0.1", "::1"}  # type: ignore[attr-defined]
    assert "secret" not in str(refused.__dict__)


def test_authorities_are_read_only_for_https() -> None:
    access = SourceAccess(ca_file="/no/such/authorities.pem", networks=LOOPBACK.networks)
    with serving(Habits(BODY)) as url:
        HttpFile(url, access).close()
        with pytest.raises(SetupError, match="--source-ca-file"):
            HttpFile(url.replace("http:", "https:"), access)


def test_of_a_hosts_addresses_only_those_that_are_allowed_are_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses are those of one look-up: a host whose next answer differs gains nothing."""
    answers = iter([[("127.0.0.2", 0), ("127.0.0.1", 0)], [("127.0.0.2", 0)]])

    def look_up(_host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address, _ in next(answers)]

    habits = Habits(BODY)
    with serving(habits) as url:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        file = HttpFile(url.replace("127.0.0.1", "host.example"), SourceAccess(networks=("127.0.0.1",)))
        assert file.read(10) == BODY[:10]
        file.close()
    assert habits.requests[0]["host"].startswith("host.example:")


# --- videos


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.long_gop_with_b_frames(tmp_path_factory.mktemp("http") / "clip.mp4")


def read_frames(url: str, resume: ResumePoint | None = None, interruption: Pauses | None = None) -> list[KeptFrame]:
    with open_video(url, access=LOOPBACK, interruption=interruption or Pauses()) as video:
        steps = list(read_kept_frames(video, None, resume))
    assert all(isinstance(step, KeptFrame) for step in steps), "there is a gap"
    return [step for step in steps if isinstance(step, KeptFrame)]


@pytest.mark.parametrize(
    ("suffix", "habits"),
    [
        ("mp4", Habits(b"")), ("mp4", Habits(b"", part_bytes=100_000)), ("mkv", Habits(b"", ranges=False, length=False)),
        ("mkv", Habits(b"", ranges=False, chunked=True)), ("ts", Habits(b"", ranges=False, length=False)),
        ("ts", Habits(b"", break_after=70_000)), ("avi", Habits(b"", headers={})), ("flv", Habits(b"", ranges=False)),
    ],
)  # fmt: skip
def test_every_frame_of_a_video_is_read(tmp_path: Path, suffix: str, habits: Habits) -> None:
    pictures = [clips.plain(i, 320, 240) for i in range(60)]
    path = clips.write(tmp_path / f"clip.{suffix}", pictures, range(0, 2400, 40))
    habits.body = path.read_bytes()
    with serving(habits, name=path.name) as url:
        assert len(read_frames(url)) == 60


def test_a_video_is_resumed_by_a_seek(clip: Path) -> None:
    habits = Habits(clip.read_bytes(), headers={"ETag": '"1"', "Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT"})
    with serving(habits) as url:
        frames = read_frames(url)
        with open_video(url, access=LOOPBACK) as video:
            identity, time_base = video.source.identity, f"{frames[0].time_base}"
            assert video.source.seekable
        last = frames[80]
        resume = ResumePoint(81, last.origin_pts, time_base, last.pts, last.time_s, identity)
        resumed = read_frames(url, resume)
        assert [(frame.frame_number, frame.pts) for frame in resumed] == [
            (frame.frame_number, frame.pts) for frame in frames[81:]
        ]
        habits.headers["ETag"] = '"2"'
        with pytest.raises(SourceError) as raised:
            open_video(url, access=LOOPBACK, expected_identity=identity)
    assert raised.value.code == "source_changed"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_a_video_that_breaks_off_never_ends_normally(tmp_path: Path, suffix: str, chunked: bool) -> None:
    pictures = [clips.quarters(320, 240) for _ in range(100)]
    path = clips.write(tmp_path / f"clip.{suffix}", pictures, range(0, 4000, 40), options={"g": "10", "qp": "5"})
    body = path.read_bytes()
    habits = Habits(body, ranges=False, chunked=chunked, break_after=len(body) * 6 // 10)
    with serving(habits, name=path.name) as url, open_video(url, access=LOOPBACK) as video:
        steps = read_kept_frames(video)
        frames = [next(steps) for _ in range(30)]
        with pytest.raises(Unavailable) as raised:
            frames.extend(steps)
    assert raised.value.code == "source_unreadable"
    assert all(isinstance(frame, KeptFrame) for frame in frames), "no gap is reported for what a retry reads"


def test_a_stop_ends_reading_at_once(clip: Path) -> None:
    stop, habits = threading.Event(), Habits(clip.read_bytes())
    with serving(habits) as url, open_video(url, access=LOOPBACK, interruption=stop) as video:
        steps = read_kept_frames(video)
        next(steps)
        stop.set()
        with pytest.raises(ReadingStopped):
            video.restart()


def test_an_mp4_whose_index_cannot_be_reached_says_why(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    pictures = [noise.integers(0, 255, (240, 320, 3), np.uint8) for _ in range(10)]
    path = clips.write(tmp_path / "clip.mp4", pictures, range(0, 400, 40))
    with serving(Habits(path.read_bytes(), ranges=False)) as url, pytest.raises(SourceError, match="range requests"):
        open_video(url, access=LOOPBACK)
    with serving(Habits(path.read_bytes())) as url:
        assert len(read_frames(url)) == 10


@pytest.mark.parametrize("body", [b"", b"text " * 1000])
@pytest.mark.parametrize("ranges", [False, True])
def test_a_body_that_is_not_a_video_is_refused(body: bytes, ranges: bool) -> None:
    with serving(Habits(body, ranges=ranges)) as url, pytest.raises(SourceError) as raised:
        open_video(url, access=LOOPBACK)
    assert raised.value.code == "source_not_video"
