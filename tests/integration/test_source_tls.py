"""TLS to servers and cameras is verified against the system's authorities and those that the operator adds."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec
import pytest
from tests import clips
from tests.http_server import LOOPBACK, Habits, recording_first_lines, serving
from tests.integration.certificates import CertificateAuthority

from vidflow.domain.errors import SetupError, SourceError, Unavailable
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.source_tls import build_tls_context, ca_bundle
from vidflow.infra.video import open_video, read_kept_frames
from vidflow.infra.video.http_file import HttpFile


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("tls"))


def trusting(authority: CertificateAuthority) -> SourceAccess:
    return msgspec.structs.replace(LOOPBACK, ca_file=str(authority.ca))


def server_context(authority: CertificateAuthority, alt_name: str, days: int = 2) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue(alt_name.replace(":", "-"), alt_name, days))
    return context


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clips.constant_rate(tmp_path_factory.mktemp("tls") / "clip.mp4", 10).read_bytes()


def test_a_file_is_read_over_https_with_an_authority_of_the_operator(
    authority: CertificateAuthority, clip: bytes
) -> None:
    trusted = trusting(authority)
    with serving(Habits(clip), server_context(authority, "IP:127.0.0.1")) as url:
        with open_video(url, access=trusted) as video:
            assert len(list(read_kept_frames(video))) == 10
        with pytest.raises(SourceError, match="--source-ca-file") as raised:
            open_video(url, access=LOOPBACK)
    assert raised.value.code == "source_tls"


@pytest.mark.parametrize(("alt_name", "days"), [("DNS:other.example", 2), ("IP:127.0.0.1", -1)])
def test_a_certificate_for_another_name_or_past_its_time_is_accepted_only_if_the_operator_says_so(
    authority: CertificateAuthority, clip: bytes, alt_name: str, days: int
) -> None:
    with serving(Habits(clip), server_context(authority, alt_name, days)) as url:
        with pytest.raises(SourceError) as raised:
            open_video(url, access=trusting(authority))
        assert raised.value.code == "source_tls"
        with open_video(url, access=msgspec.structs.replace(LOOPBACK, verify=False)) as video:
            assert len(list(read_kept_frames(video))) == 10


def test_a_redirect_from_https_to_http_is_refused_unless_the_operator_accepts_insecure_sources(
    authority: CertificateAuthority, clip: bytes
) -> None:
    habits = Habits(clip)
    with serving(Habits(clip)) as plain, serving(habits, server_context(authority, "IP:127.0.0.1")) as url:
        habits.answers = [(302, {"Location": plain})] * 2
        with pytest.raises(SourceError, match="from https to http") as raised:
            HttpFile(url, trusting(authority))
        assert raised.value.code == "source_denied"
        HttpFile(url, msgspec.structs.replace(LOOPBACK, verify=False)).close()


def test_a_body_without_length_that_ends_without_a_close_notification_is_cut_off(
    authority: CertificateAuthority, clip: bytes
) -> None:
    """TLS marks an orderly end. Otherwise anyone on the way could cut a body off."""
    with serving(Habits(clip, ranges=False, length=False), server_context(authority, "IP:127.0.0.1")) as url:
        file = HttpFile(url, trusting(authority))
        while file.read(1000):
            pass
        with pytest.raises(Unavailable, match="broke after"):
            file.raise_failure()


@pytest.mark.parametrize(
    ("alt_name", "verify", "trusts", "accepted"),
    [
        ("IP:127.0.0.1", True, True, True), ("IP:127.0.0.1", True, False, False), ("DNS:other.example", True, True, False),
        ("DNS:other.example", False, False, True),
    ],
)  # fmt: skip
def test_a_cameras_certificate_is_verified(
    authority: CertificateAuthority, alt_name: str, verify: bool, trusts: bool, accepted: bool
) -> None:
    access = SourceAccess(str(authority.ca) if trusts else None, verify, LOOPBACK.networks)
    with recording_first_lines(server_context(authority, alt_name)) as (port, lines):
        url = f"rtsps://127.0.0.1:{port}/live"
        with pytest.raises((SourceError, Unavailable)) as raised:
            open_video(url, access=access)
    assert (raised.value.code == "source_tls") is not accepted
    assert [line for line in lines if line] == ([f"OPTIONS {url} RTSP/1.0".encode()] if accepted else [])


def test_the_bundle_for_other_libraries_has_the_systems_authorities_and_the_operators(
    authority: CertificateAuthority,
) -> None:
    access = trusting(authority)
    with ca_bundle(access) as path:
        bundle = Path(path).read_text()
    assert authority.ca.read_text().splitlines()[1] in bundle
    assert bundle.count("BEGIN") == len(build_tls_context(SourceAccess()).get_ca_certs()) + 1
    assert not Path(path).exists()


@pytest.mark.parametrize("content", [None, "", "words"])
def test_an_unusable_file_of_authorities_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SetupError, match="--source-ca-file"):
        build_tls_context(SourceAccess(str(file)))
