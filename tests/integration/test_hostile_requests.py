"""Hostile HTTP input, as tables: what each gets. Nothing of it is stored unless the table says so, and no log line can be forged by it."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from tests.integration.api_server import SOURCE_URL, ready_api
from tests.integration.raw_http import send_raw_request

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.infra.telemetry import logs
from vidflow.infra.video import open_video
from vidflow.settings import ApiOptions

JSON = {"Content-Type": "application/json"}
HOST = b"Host: localhost\r\n"
POST = b"POST /scenario/init HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
GOOD = b'{"source": "' + SOURCE_URL.encode() + b'", "model": "motion"}'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A media root with a file, links that lead out of it, and what is not a regular file. Beside it is a file to be stolen."""
    folder = tmp_path_factory.mktemp("server") / "media"
    (folder / "day").mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(b"video")
    (folder.parent / "secret.mp4").write_bytes(b"secret")
    (folder / "out.mp4").symlink_to("../secret.mp4")
    (folder / "passwd.mp4").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("..")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(folder / "fifo.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder.parent / "stolen.toml").write_text('kind = "onnx"\nfile = "x.onnx"')
    (folder / "link.toml").symlink_to("/etc/passwd")
    (folder / "broken.toml").write_text("= broken")
    return folder


@pytest.fixture(scope="module")
def client(database_url: str, root: Path, models: Path) -> Iterator[httpx.Client]:
    """An api whose log is read as an operator reads it: each line is an entry of its own, without characters that act."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logs._TextFormatter())
    logger = logging.getLogger("vidflow")
    logger.addHandler(handler)
    try:
        with ready_api(ApiOptions(database_url=database_url, media_root=root, models_dir=models)) as client:
            yield client
    finally:
        logger.removeHandler(handler)
    for line in text.getvalue().splitlines():
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3} (info|warning) [a-z]+ [a-z_]+", line), line
        assert line.isprintable()


@pytest.fixture(autouse=True)
def _empty_tables(database_url: str) -> Iterator[None]:
    yield
    with psycopg.connect(database_url) as connection:
        connection.execute("TRUNCATE scenarios, scenario_progress, scenario_history, outbox")


def outcome(response: httpx.Response) -> tuple[int, str]:
    """Return the status, and the code of the problem or `stored`."""
    if response.is_success:
        return response.status_code, "stored"
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def count_scenarios(client: httpx.Client) -> int:
    return len(client.get("/scenario").json()["items"])


# --- sources

SOURCES: list[tuple[str, int, str]] = [
    # out of the media root
    ("../secret.mp4", 422, "source_forbidden"), ("day/../../secret.mp4", 422, "source_forbidden"), ("..", 422, "source_forbidden"),
    ("./../secret.mp4", 422, "source_forbidden"), ("day//..//..//secret.mp4", 422, "source_forbidden"),
     ("/etc/passwd", 422, "source_forbidden"), ("//etc/passwd", 422, "source_forbidden"),
    ("/proc/self/environ", 422, "source_forbidden"), ("/dev/zero", 422, "source_forbidden"), ("/dev/video0", 422, "source_forbidden"),
    ("%2e%2e/secret.mp4", 422, "source_missing"), ("..%2fsecret.mp4", 422, "source_missing"),
    ("%252e%252e/secret.mp4", 422, "source_missing"),
    ("..\\secret.mp4", 422, "source_missing"), ("~/secret.mp4", 422, "source_missing"), ("$HOME/secret.mp4", 422, "source_missing"),
    ("\uff0e\uff0e/secret.mp4", 422, "source_missing"), ("..;/secret.mp4", 422, "source_missing"),
    ("C:\\secret.mp4", 422, "source_missing"),
    # by a link
    ("out.mp4", 422, "source_forbidden"), ("passwd.mp4", 422, "source_forbidden"), ("up/secret.mp4", 422, "source_forbidden"),
    ("loop.mp4", 422, "source_missing"), ("zero.mp4", 422, "source_forbidden"),
    # no regular file
    ("fifo.mp4", 422, "source_not_video"), (".", 422, "source_not_video"), ("day", 422, "source_not_video"),
    ("clip.mp4/x", 422, "source_missing"), ("x" * 4096, 422, "source_missing"), ("nothing.mp4", 422, "source_missing"),
    # characters that end or forge a name
    ("clip.mp4\x00.jpg", 422, "source_invalid"), ("\x00", 422, "source_invalid"), ("clip.mp4\n", 422, "source_invalid"),
    ("a\nb.mp4", 422, "source_invalid"), ("a\r\nHost: evil.example", 422, "source_invalid"), ("\x1b[2Jclip.mp4", 422, "source_invalid"),
    ("clip\x7f.mp4", 422, "source_invalid"), ("\u202e4pm.pilc", 422, "source_missing"), ("clip.mp4\u2028", 422, "source_missing"),
    ("clip.mp4\ufeff", 422, "source_missing"),
    # protocols of FFmpeg
    ("concat:clip.mp4|../secret.mp4", 422, "source_missing"), ("concat:/etc/passwd|/etc/group", 422, "source_missing"),
    ("subfile,,start,0,end,9,,:/etc/passwd", 422, "source_missing"), ("file:/etc/passwd", 422, "source_missing"),
    ("file:../secret.mp4", 422, "source_missing"), ("pipe:0", 422, "source_missing"),
    ("data:video/mp4;base64,AAAA", 422, "source_missing"),
    ("crypto:clip.mp4", 422, "source_missing"), ("tee:a|b", 422, "source_missing"), ("cache:clip.mp4", 422, "source_missing"),
    ("async:clip.mp4", 422, "source_missing"), ("fd:", 422, "source_missing"), ("md5:", 422, "source_missing"),
    ("file:///etc/passwd", 422, "source_forbidden"), ("FILE:///etc/passwd", 422, "source_forbidden"),
    ("ftp://h/x", 422, "source_forbidden"),
    ("gopher://h/x", 422, "source_forbidden"), ("sftp://h/x", 422, "source_forbidden"), ("smb://h/x", 422, "source_forbidden"),
    ("tcp://h:1", 422, "source_forbidden"), ("tls://h:1", 422, "source_forbidden"), ("unix:///run/x", 422, "source_forbidden"),
    ("srt://h:1", 422, "source_forbidden"), ("mmsh://h/x", 422, "source_forbidden"), ("ipfs://x", 422, "source_forbidden"),
    ("hls+http://h/x", 422, "source_forbidden"), ("crypto+http://h/x", 422, "source_forbidden"), ("concat://x", 422, "source_forbidden"),
    ("jar:http://h/x!/y", 422, "source_missing"), ("javascript://%0aalert(1)", 422, "source_forbidden"),
    ("lavfi://testsrc", 422, "source_forbidden"),
    ("v4l2:///dev/video0", 422, "source_forbidden"), ("x11grab://:0", 422, "source_forbidden"), ("sample:bikes", 422, "source_missing"),
    # malformed URLs
    ("http://", 422, "source_invalid"), ("http:///x", 422, "source_invalid"), ("http://host:99999/x", 422, "source_invalid"),
    ("http://host:-1/x", 422, "source_invalid"), ("http://[::1/x", 422, "source_invalid"), ("http://[x]/x", 422, "source_invalid"),
    ("http://host/a b", 422, "source_invalid"), ("http://host/\u00a0", 422, "source_invalid"), ("http://:80/x", 422, "source_invalid"),
    ("rtsp://me:hidden@:554", 422, "source_invalid"), ("http://me:hidden@", 422, "source_invalid"),
    ("udp://239.1.1.1", 422, "source_invalid"),
    ("rtmp://host", 422, "source_invalid"), ("http:\\\\host\\x", 422, "source_missing"), ("http:/host/x", 422, "source_missing"),
    (" http://host/x", 422, "source_missing"), ("://host", 422, "source_missing"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "status", "code"), SOURCES, ids=[ascii(source)[:60] for source, _, _ in SOURCES])
def test_a_hostile_source_is_refused(client: httpx.Client, source: str, status: int, code: str) -> None:
    response = client.post("/scenario/init", json={"source": source, "model": "motion"})
    assert outcome(response) == (status, code)
    assert [one["field"] for one in response.json()["errors"]] == ["source"]
    assert "hidden" not in response.text
    assert count_scenarios(client) == 0


@pytest.mark.parametrize(
    "source",
    ["./clip.mp4", "day/../clip.mp4", "../media/clip.mp4", "up/media/clip.mp4", "clip.mp4/", "day//..//clip.mp4"],
)
def test_an_odd_name_of_a_file_in_the_media_root_is_stored_in_its_plain_form(client: httpx.Client, source: str) -> None:
    response = client.post("/scenario/init", json={"source": source, "model": "motion"})
    assert (outcome(response), response.json()["source"]) == ((201, "stored"), "clip.mp4")


# --- addresses of sources

REFUSED = ("source_refused",)
UNRESOLVED = ("source_unreachable", "source_refused")
"""An odd form of an address: some resolvers read it as the address, others as a name."""
ADDRESSES: list[tuple[str, tuple[str, ...]]] = [
    ("http://127.0.0.1/x", REFUSED), ("https://127.0.0.1/x", REFUSED), ("rtsp://127.0.0.1/x", REFUSED), ("rtmp://127.0.0.1/a/b", REFUSED),
    ("http://localhost/x", REFUSED), ("http://localhost./x", UNRESOLVED), ("http://LOCALHOST/x", REFUSED), ("http://127.1/x", REFUSED),
    ("http://2130706433/x", REFUSED), ("http://0x7f000001/x", REFUSED), ("http://0x7f.0.0.1/x", REFUSED),
    ("http://017700000001/x", REFUSED),
    ("http://0177.0.0.1/x", REFUSED), ("http://127.0.0.1./x", UNRESOLVED), ("http://0.0.0.0/x", REFUSED), ("http://0/x", REFUSED),
    ("http://[::1]/x", REFUSED), ("http://[::]/x", REFUSED), ("http://[0:0:0:0:0:0:0:1]/x", REFUSED),
    ("http://[::ffff:127.0.0.1]/x", REFUSED),
    ("http://[::ffff:7f00:1]/x", REFUSED), ("http://[::127.0.0.1]/x", REFUSED), ("http://[64:ff9b::7f00:1]/x", REFUSED),
    ("http://[2002:7f00:1::]/x", REFUSED), ("http://169.254.169.254/latest/meta-data/", REFUSED), ("http://0xa9fea9fe/x", REFUSED),
    ("http://2852039166/x", REFUSED), ("http://[::ffff:169.254.169.254]/x", REFUSED), ("http://[fd00:ec2::254]/x", REFUSED),
    ("http://[fe80::1]/x", REFUSED), ("http://10.0.0.1/x", REFUSED), ("http://172.16.0.1/x", REFUSED), ("http://192.168.0.1/x", REFUSED),
    ("http://100.100.100.200/x", REFUSED), ("udp://127.0.0.1:5000", REFUSED), ("udp://239.1.1.1:5000", REFUSED),
    # the host is after the last @
    ("http://public.example@127.0.0.1/x", REFUSED), ("http://public.example:80@127.0.0.1/x", REFUSED),
    ("http://a@b@127.0.0.1/x", REFUSED),
    ("http://127.0.0.1#@public.example/x", REFUSED), ("http://127.0.0.1?@public.example/x", REFUSED),
    ("http://\uff11\uff12\uff17.0.0.1/x", UNRESOLVED), ("http://\u2460\u2461\u2466.0.0.1/x", UNRESOLVED),
    ("http://127\u30020.0.1/x", UNRESOLVED),
    ("HTTP://127.0.0.1/x", REFUSED), ("http://127.0.0.1:0/x", REFUSED),
]  # fmt: skip
"""Sources that the api stores, since only the runner resolves names, and what the runner's worker gets when it opens them."""


@pytest.mark.parametrize(("source", "codes"), ADDRESSES, ids=[ascii(source) for source, _ in ADDRESSES])
def test_a_source_at_an_address_that_is_not_public_is_not_connected_to(
    client: httpx.Client, source: str, codes: tuple[str, ...]
) -> None:
    response = client.post("/scenario/init", json={"source": source, "model": "motion"})
    assert outcome(response) == (201, "stored")
    with pytest.raises((SourceError, Unavailable)) as raised:
        open_video(source)
    assert raised.value.code in codes


# --- models

MODELS: list[tuple[str, str]] = [
    ("../stolen.toml", "model_unknown"), ("/etc/passwd", "model_unknown"), ("../../etc/passwd", "model_unknown"), ("..", "model_unknown"),
    ("%2e%2e/stolen.toml", "model_unknown"), ("link.toml", "model_spec_invalid"), ("link", "model_spec_invalid"),
    ("broken.toml", "model_spec_invalid"),
    ("motion\x00", "model_unknown"), ("a\x00.toml", "model_refused"), ("a\n.onnx", "model_refused"), ("\x1b[2J", "model_unknown"),
    ("'; DROP TABLE scenarios; --", "model_unknown"), ("x" * 4096, "model_unknown"), ("http://h/x.onnx", "model_unknown"),
    ("/proc/self/mem", "model_unknown"), ("/dev/zero.onnx", "model_unknown"), ("~/x.onnx", "model_unknown"),
    ("os.system", "model_unknown"),
    ("__import__('os')", "model_unknown"), ("nothing.pt", "model_unknown"), ("\u202emotion", "model_unknown"),
    ("MOTION", "model_unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "code"), MODELS, ids=[ascii(model)[:60] for model, _ in MODELS])
def test_a_hostile_model_is_refused(client: httpx.Client, model: str, code: str) -> None:
    response = client.post("/scenario/init", json={"source": SOURCE_URL, "model": model})
    assert outcome(response) == (422, code)
    assert len(response.json()["detail"]) < 3000
    assert "root:" not in response.text, "a line of /etc/passwd"
    assert count_scenarios(client) == 0


# --- bodies

MALFORMED, INVALID = (400, "body_malformed"), (422, "request_invalid")
BODIES: list[tuple[bytes, tuple[int, str]]] = [
    (b"", MALFORMED), (b" ", MALFORMED), (b"{", MALFORMED), (b"nothing", MALFORMED), (b"{}{}", MALFORMED), (b"{},", MALFORMED),
    (b"\x00", MALFORMED),
    (GOOD + b"x", MALFORMED), (GOOD[:-1] + b",}", MALFORMED), (b"// x\n" + GOOD, MALFORMED), (GOOD.replace(b'"', b"'"), MALFORMED),
    (b"\xef\xbb\xbf" + GOOD, MALFORMED), (GOOD.decode().encode("utf-16"), MALFORMED), (GOOD.decode().encode("utf-32"), MALFORMED),
    (b'{"source": "\xff"}', MALFORMED), (b'{"source": "\xc0\xaf"}', MALFORMED), (b'{"source": "\xed\xa0\x80"}', MALFORMED),
    (b'{"source": "\\ud800"}', MALFORMED), (b'{"\\udfff": 1}', MALFORMED), (b'"\\ud800"', MALFORMED), (b'{"source": "\x00"}', MALFORMED),
    (b'{"source": "a\nb"}', MALFORMED), (b'{"source": "\\x41"}', MALFORMED), (b"[" * 100_000, MALFORMED), (b'{"a":' * 20_000, MALFORMED),
    (b"[" * 100_000 + b"]" * 100_000, MALFORMED), (b'{"source":' + b"[" * 50_000 + b"]" * 50_000 + b"}", MALFORMED),
    (GOOD[:-1] + b', "fps": NaN}', MALFORMED), (GOOD[:-1] + b', "fps": Infinity}', MALFORMED),
    (GOOD[:-1] + b', "fps": -Infinity}', MALFORMED),
    (GOOD[:-1] + b', "fps": 0x10}', MALFORMED), (GOOD[:-1] + b', "fps": 01}', MALFORMED), (GOOD[:-1] + b', "fps": +1}', MALFORMED),
    (GOOD[:-1] + b', "fps": 1.}', MALFORMED), (b"[]", INVALID), (b"null", INVALID), (b"5", INVALID), (b'"x"', INVALID),
    (b"true", INVALID),
    (b"{}", INVALID), (GOOD[:-1] + b', "fps": 1e400}', INVALID), (GOOD[:-1] + b', "fps": -1e400}', INVALID),
    (GOOD[:-1] + b', "fps": 1e-400}', INVALID),
    (GOOD[:-1] + b', "fps": 0.0}', INVALID), (GOOD[:-1] + b', "fps": -0.0}', INVALID),
    (GOOD[:-1] + b', "fps": ' + b"9" * 400 + b"}", INVALID), (GOOD[:-1] + b', "fps": 0.' + b"0" * 1000 + b"1}", INVALID),
    (GOOD[:-1] + b', "priority": 9223372036854775808}', INVALID), (GOOD[:-1] + b', "priority": ' + b"9" * 5000 + b"}", INVALID),
    (GOOD[:-1] + b', "priority": 1e1}', INVALID), (GOOD[:-1] + b', "priority": true}', INVALID),
    (GOOD[:-1] + b', "__proto__": {}}', INVALID),
    (GOOD[:-1] + b', "constructor": {}}', INVALID), (GOOD[:-1] + b', "": 1}', INVALID), (GOOD[:-1] + b', "source\\u0000": 1}', INVALID),
    (GOOD[:-1] + b', "source": "x"}', INVALID), (GOOD[:-1] + b', "s\\u006furce": "x"}', INVALID),
    (GOOD[:-1] + b', "Source": "x"}', INVALID),
    (GOOD[:-1] + b', "parameters": {"end_at": "9999-12-31T23:59:59.999999999Z"}}', INVALID),
    (GOOD[:-1] + b', "parameters": {"end_at": "2099-02-30T00:00:00Z"}}', INVALID),
    (GOOD[:-1] + b', "parameters": {"labels": "person"}}', INVALID),
    (b" " * (256 * 1024 + 1), (413, "body_too_large")), (b'{"source": "' + b"x" * 1_000_000 + b'"}', (413, "body_too_large")),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BODIES, ids=[ascii(body[-50:])[2:-1] for body, _ in BODIES])
def test_a_hostile_body_is_refused(client: httpx.Client, body: bytes, expected: tuple[int, str]) -> None:
    assert outcome(client.post("/scenario/init", content=body, headers=JSON)) == expected
    assert count_scenarios(client) == 0


# --- requests below the level of a client library

REQUESTS: list[tuple[bytes, int, str]] = [
    # two readings of where a request ends
    (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, "request_malformed"),
    (POST + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}", 400, "request_malformed"),
    (POST + b"Content-Length: 2, 2\r\n\r\n{}", 400, "request_malformed"),
    (POST + b"Content-Length: +2\r\n\r\n{}", 400, "request_malformed"),
    (POST + b"Content-Length: 0x2\r\n\r\n{}", 400, "request_malformed"),
    (POST + b"Content-Length: -2\r\n\r\n{}", 400, "request_malformed"),
    (POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}", 400, "request_malformed"),
    (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "request_malformed"),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400, "request_malformed"),
    (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, "request_malformed"),
    (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "request_malformed"),
    (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "request_malformed"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400, "request_malformed"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400, "request_malformed"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n", 400, "request_malformed"),
    # headers
    (b"GET /scenario HTTP/1.1\r\n\r\n", 400, "host_invalid"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, "host_invalid"),
    (b"GET /scenario HTTP/1.1\r\nHost: localhost, evil.example\r\n\r\n", 400, "host_invalid"),
    (b"GET /scenario HTTP/1.1\r\nHost: localhost\x00.evil.example\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421, "host_not_allowed"),
    (b"GET /scenario HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n", 400, "host_invalid"),
    (b"GET /scenario HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n", 421, "host_not_allowed"),
    (b"GET /scenario HTTP/1.1\r\nHost: \xff\r\n\r\n", 400, "host_invalid"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b" X: a\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X\x00: a\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b": a\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X-\xc3\xbc: a\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 40_000 + b"\r\n\r\n", 431, "head_too_large"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 10_000 + b"\r\n", 431, "head_too_large"),
    # request lines
    (b"GET /scenario\r\n\r\n", 400, "request_malformed"), (b"GET /scenario HTTP/0.9\r\n\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1 x\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"get /scenario HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/2.0\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "request_malformed"),
    (b"GET scenario HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /sc\x00enario HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET ftp://localhost/scenario HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET http://evil.example/scenario HTTP/1.1\r\n" + HOST + b"\r\n", 421, "host_not_allowed"),
    (b"GET http://localhost@evil.example/scenario HTTP/1.1\r\n" + HOST + b"\r\n", 400, "host_invalid"),
    # paths
    (b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not_found"),
    (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not_found"),
    (b"GET /docs/assets/..%2f..%2fapp.py HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not_found"),
    (b"GET /docs/assets/%00 HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not_found"),
    (b"GET /.git/config HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not_found"),
    (b"GET /nothing%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not_found"),
    (b"GET /scenario/%00 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /scenario/' OR 1=1 -- HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /scenario/%27%20OR%201=1 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /scenario?state=%1b%5b2J HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /scenario?limit=5%0aX:%20y HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    # methods
    (b"TRACE /scenario HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed"),
    (b"DELETE /scenario HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed"),
    (b"PROPFIND /scenario HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed"),
    (b"PURGE /scenario HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed"),
    (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"BREW /pot HTTP/1.1\r\n" + HOST + b"\r\n", 400, "request_malformed"),
    (b"GET /scenario HTTP/1.1\r\n" + HOST + b"X-HTTP-Method-Override: DELETE\r\nX-Request-Id: \x1b[2J\r\n\r\n", 400, "request_malformed"),
    # another site's page
    (POST + b"Origin: https://evil.example\r\nContent-Length: 2\r\n\r\n{}", 403, "origin_not_allowed"),
    (POST + b"Origin: null\r\nContent-Length: 2\r\n\r\n{}", 403, "origin_not_allowed"),
    (POST + b"Sec-Fetch-Site: cross-site\r\nContent-Length: 2\r\n\r\n{}", 403, "origin_not_allowed"),
    (b"POST /scenario/init HTTP/1.1\r\n" + HOST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415, "not_json"),
    (POST.replace(b"json", b"json, text/plain") + b"Content-Length: 2\r\n\r\n{}", 415, "not_json"),
    (POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415, "not_json"),
    (POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", 400, "body_malformed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "status", "code"), REQUESTS, ids=[ascii(data[:40] + data[-50:])[2:-1] for data, _, _ in REQUESTS]
)
def test_a_hostile_request_is_refused(client: httpx.Client, data: bytes, status: int, code: str) -> None:
    response = send_raw_request(client, data)
    assert (response.status, response.code) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert b"\x1b" not in response.body
    assert count_scenarios(client) == 0
