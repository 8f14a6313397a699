"""Redaction: secrets are masked in URLs and other text, whatever surrounds them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.errors import ErrorInfo
from vidflow.domain.redaction import find_secrets, redact, redact_error
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.telemetry.logs import safe_line

SECRET = "Hunter2x"  # noqa: S105 - a test value

URLS = [
    "rtsp://admin:{}@camera:554/live",
    "http://{}@host/v.mp4",
    "rtsp://admin:{}@10.0.0.1/user=admin",
    "rtsp://10.0.0.1:554/user=admin_password={}_channel=1_stream=0.sdp?real_stream",
    "rtsp://10.0.0.1:554/user=admin&password={}&channel=1&stream=0.sdp?",
    "http://10.0.0.1/videostream.cgi?loginuse=admin&loginpas={}",
    "http://10.0.0.1/cgi?usr=admin&pwd={}",
    "https://host/v.mp4?jwt={}",
    "https://host/v.mp4?md5={}&expires=1700000000",
    "https://host/v.mp4?key={}",
    "https://host/v.mp4?sig={}",
    "https://host/v.mp4?a_name_nobody_knows={}",
    "https://host/v.mp4?{}",
    "https://host/v.mp4#access_token={}",
    "https://host/v.mp4#{}",
    "https://host/v.mp4?next=http://user:{}@other/",
    "https://proxy/http://user:{}@other/v.mp4",
    "https://bucket.s3.amazonaws.com/v.mp4?X-Amz-Credential=A%2F2026&X-Amz-Security-Token={}&X-Amz-Expires=60",
    "https://bucket.s3.amazonaws.com/v.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={}",
    "https://storage.googleapis.com/b/v.mp4?GoogleAccessId=x&Signature={}",
    "https://storage.googleapis.com/b/v.mp4?X-Goog-Signature={}",
    "https://a.blob.core.windows.net/c/v.mp4?sv=2024-01-01&sr=b&sig={}",
    "https://cdn/v.m3u8?hdnts=exp=1~acl=/*~hmac={}",
    "https://cdn/v.mp4?Policy=x&Key-Pair-Id={}",
    "https://host/live;token={}/v.mp4",
    "https://host/token/{}/v.mp4",
    "https://host/user/admin/password/{}/live",
    "https://host/key/{}",
    "https://api.telegram.org/file/bot123:{}/videos/1.mp4",
    "http://iptv:8080/live/someone/{}/7.ts",
    "http://iptv:8080/movie/{}/somebody/7.mkv",
    "postgresql://vidflow:{}@db:5432/vidflow?sslmode=verify-full",
    "postgresql://db/vidflow?password={}",
]
OTHER = [
    "host=db password={} user=x",
    "host=db password = '{} and more' user=x",
    "sslpassword={}",
    "{{'password': '{}', 'user': 'x'}}",
    '{{"password": "{}"}}',
    '"{{\\"api_key\\": \\"{}\\"}}"',
    "sasl.password={}",
    "sasl.oauthbearer.client.secret={}",
    'sasl.jaas.config=org.apache.kafka.ScramLoginModule required username="u" password="{}";',
    "ssl.key.password={}",
    "ssl.key.pem={}",
    "sasl.oauthbearer.config=principal={}",
    "sasl.oauthbearer.assertion.private.key.passphrase={}",
    "basic.auth.user.info={}",
    "Authorization: Bearer {}",
    "Authorization: Basic {}",
    'Authorization: Digest username="u", nonce="n", response="{}"',
    "{{'Authorization': 'Bearer {}'}}",
    "Proxy-Authorization: Basic {}",
    "Cookie: theme=dark; session={}",
    "X-Api-Key: {}",
    "the server wants Bearer {} here",
    "GET /v.mp4?token={} HTTP/1.1",
    "admin:{}@camera.local does not answer",
    "//admin:{}@camera.local/live does not answer",
    "DefaultEndpointsProtocol=https;AccountName=x;AccountKey={};EndpointSuffix=y",
    "error=password={}",
    "AWS_SECRET_ACCESS_KEY={}",
    "VIDFLOW_TOKEN={}",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
]
KEPT = [
    "rtsp://camera:554/live?channel=1&subtype=0",
    "rtsp://10.0.0.1/h264Preview_01_main",
    "http://host/user@name",
    "http://host:8000/docs",
    "http://host/2026-11-27T12:00:00/clip_1080p.mp4",
    "https://host/assets/01890a5d-ac96-774b-bcce-b302099a8057/clip.mp4",
    "vidflow listens at http://127.0.0.1:8000: see http://127.0.0.1:8000/docs.",
    "write postgresql://host:port/database with user:password@ before the host",
    'FATAL:  password authentication failed for user "x"',
    'File "/srv/vidflow/x.py", line 3, in main',
    "12:00:01.123 info relay published rows=12 first_key=01a2 keys=3 key=01a2",
    "runner_events/3@17 is behind",
]

secrets = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/?#&;,_=@:\\\"'`<>()[]{}%.|*"),
    min_size=6,
    max_size=30,
).filter(lambda text: not text.isdecimal() and "***" not in text and text.lower() not in "authorization password")


@pytest.mark.parametrize("template", URLS + OTHER)
def test_a_secret_is_masked(template: str) -> None:
    text = redact(template.format(SECRET))
    assert SECRET not in text
    assert "***" in text


@pytest.mark.parametrize("template", URLS)
@pytest.mark.parametrize(
    "context", ["{}", "cannot open '{}': it is away", '{{"url": "{}"}}', "source={} attempt=2", "({})", "a\n{}\nb"]
)
def test_a_secret_in_a_url_is_masked_in_any_context(template: str, context: str) -> None:
    assert SECRET not in redact(context.format(template.format(SECRET)))


@pytest.mark.parametrize("text", KEPT)
def test_harmless_text_is_kept(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://host/live?stream={}", "http://host/v.mp4?v={}", "http://host/v.mp4?channel=1&t={}", "http://host/v.mp4#t={}",
        "http://host/v.mp4?camera={}&x=1#channel={}", "rtsp://host/channel={}_stream=1",
    ],
)  # fmt: skip
def test_a_value_is_masked_whatever_its_name_unless_it_is_a_number_or_a_known_word(url: str) -> None:
    for secret in (SECRET, "hunter", "pa55", "12345", "1234567890", "admin", "a.b"):
        assert secret not in redact(url.format(secret, secret))


@pytest.mark.parametrize("value", ["0", "25", "1920", "29.97", "640x480", "tcp", "true", "main", "h264"])
def test_a_value_that_selects_a_picture_is_shown(value: str) -> None:
    url = f"rtsp://host/live?channel=1&stream={value}"
    assert redact(url) == url


@pytest.mark.parametrize(
    "token", ["AKIAIOSFODNN7EXAMPLE", "sk_live_abc", "0123456789abcdef0123456789abcdef", "a1b2C3d4e5F6g7h8"]
)
def test_a_segment_of_a_path_that_looks_like_a_token_is_masked(token: str) -> None:
    assert redact(f"http://host/{token}/v.mp4") == "http://host/***/v.mp4"


@pytest.mark.parametrize("scheme", ["rtmp", "RTMPS", "source=rtmp"])
@pytest.mark.parametrize(
    "key",
    [
        SECRET, "live_123456789_AbCdEfGh1234", "abcd-efgh-ijkl-mnop", "7f3ac92b", "01890a5d-ac96-774b-bcce-b302099a8057",
        "name=cam", "qwertyuiopasdf", "FB-123456789-0-AbcDef",
    ],
)  # fmt: skip
def test_a_stream_of_an_rtmp_server_whose_name_may_be_a_key_is_masked(scheme: str, key: str) -> None:
    assert redact(f"{scheme}://host:1935/live/{key}: gone") == f"{scheme}://host:1935/live/***: gone"
    assert redact(f"'{scheme}://host/live/{key}', again") == f"'{scheme}://host/live/***', again"
    assert redact(f"no stream {key}", find_secrets(f"rtmp://host/live/{key}")) == "no stream ***"


@pytest.mark.parametrize(
    "name", ["cam", "cam01", "front_door", "LiveApp", "hall-2-main", "1080p", "h264.flv", "A/B/cam"]
)
def test_a_plain_name_of_a_stream_of_an_rtmp_server_is_shown(name: str) -> None:
    url = f"rtmp://host/live/{name}"
    assert redact(url) == url
    assert redact(f"cannot open {url}: gone") == f"cannot open {url}: gone"


def test_a_numeric_token_of_a_bot_is_masked() -> None:
    assert redact("https://host/file/bot123:98765432/v.mp4") == "https://host/file/bot123:***/v.mp4"


@given(secret=secrets, template=st.sampled_from(URLS + OTHER), before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_secret_is_masked_whatever_surrounds_it(secret: str, template: str, before: str, after: str) -> None:
    if secret in template or secret in before + after:
        return
    assert secret not in redact(f"{before} {template.format(secret)} {after}")


@given(st.text())
def test_redaction_is_idempotent(text: str) -> None:
    redacted = redact(text)
    assert redact(redacted) == redacted


@pytest.mark.parametrize("password", ["a@b", "a/b", "a?b", "a#b", "a:b", "p@ss/w?rd#1", "%40%2F"])
def test_a_password_may_contain_any_character(password: str) -> None:
    assert redact(f"rtsp://admin:{password}@camera/live") == "rtsp://***@camera/live"


@pytest.mark.parametrize("length", range(len("rtsp://admin:Hunter2xHunter2x@camera/live")))
def test_a_password_in_a_truncated_url_is_masked(length: int) -> None:
    assert "Hunt" not in redact("rtsp://admin:Hunter2xHunter2x@camera/live"[:length])


@pytest.mark.parametrize("template", URLS)
def test_the_secrets_of_a_url_are_masked_in_messages_of_a_library(template: str) -> None:
    known = find_secrets(template.format(SECRET))
    assert SECRET not in redact(f"option value {SECRET} is odd", known)


def test_a_known_secret_is_masked_with_and_without_percent_encoding() -> None:
    known = find_secrets("rtsp://admin:p%40ssword@camera/live")
    assert redact("p%40ssword and p@ssword", known) == "*** and ***"


def test_short_strings_are_not_known_secrets() -> None:
    assert find_secrets("http://a:b@host/v.mp4?x=1&hd=yes") == ()


SECRET_KAFKA_PROPERTIES = [
    "sasl.password",
    "sasl.jaas.config",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.assertion.private.key.pem",
    "ssl.key",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "basic.auth.userinfo",
]


@pytest.mark.parametrize("name", SECRET_KAFKA_PROPERTIES)
def test_the_value_of_a_secret_kafka_property_is_masked_in_an_error_of_the_library(name: str) -> None:
    known = KafkaSettings("kafka:9093", {name: SECRET}).secrets()
    error = f'sasl_ssl://kafka:9093/bootstrap: Invalid value "{SECRET}" (after 12ms in state CONNECT)'
    assert redact(error, known) == error.replace(SECRET, "***")


@pytest.mark.parametrize("name", ["sasl.username", "security.protocol", "ssl.ca.location", "ssl.key.location"])
def test_the_value_of_another_kafka_property_is_shown(name: str) -> None:
    known = KafkaSettings("kafka:9093", {name: "/etc/kafka/value"}).secrets()
    assert redact("/etc/kafka/value: no such file", known) == "/etc/kafka/value: no such file"


@pytest.mark.parametrize("template", URLS + OTHER)
def test_a_secret_in_a_stored_error_is_masked(template: str) -> None:
    error = redact_error(ErrorInfo("source_missing", f"Cannot open {template.format(SECRET)} here.", 3))
    assert SECRET not in error.message
    assert (error.code, error.frame_number) == ("source_missing", 3)


def test_a_known_secret_in_a_stored_error_is_masked() -> None:
    assert redact_error(ErrorInfo("x", f"odd {SECRET}"), [SECRET]).message == "odd ***"


@pytest.mark.parametrize("template", URLS + OTHER)
def test_a_secret_in_a_line_for_a_terminal_is_masked(template: str) -> None:
    line = safe_line(f"before\x1b[2J {template.format(SECRET)}\nafter")
    assert SECRET not in line
    assert line.isprintable()


HOSTILE = [
    "a", "a=", "://", "a:", "u:p@", "?", "?a=b", 'password="', "password='", '\\"', "_a=", "/", "eyJa.", "eyJaaaaaaaa.", "Bearer ",
    "Authorization: ", "-----BEGIN PRIVATE KEY-----", "-", "@", "live/1/", "http://", "password" + " " * 8, "token=", "a.", "\n", "=:",
    "x,u:", "=u:", "'u:", "/u:",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("start", ["", "http://h/?"])
def test_hostile_text_is_redacted_in_linear_time(piece: str, start: str) -> None:
    """A backtracking pattern takes minutes for this text, so that the test times out; a linear one takes milliseconds."""
    text = start + piece * (150_000 // len(piece))
    assert len(redact(text)) <= 2 * len(text)
