"""Parsing of Host headers, and which hosts requests may name."""
# ruff: noqa: S104, E501 - addresses to refuse, and tables of cases

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.errors import SetupError
from vidflow.roles.api.hosts import AllowedHosts, parse_allowed_hosts, parse_host, parse_origin_host
from vidflow.settings import ApiOptions


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("localhost", "localhost"), ("LocalHost:8000", "localhost"), ("localhost.", "localhost"), ("localhost.:80", "localhost"),
        ("localhost:", "localhost"), ("127.0.0.1:65535", "127.0.0.1"), ("[::1]", "::1"), ("[::1]:8000", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"), ("[::ffff:127.0.0.1]", "127.0.0.1"), ("my_api", "my_api"), ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)  # fmt: skip
def test_a_host_is_normalized(authority: str, host: str) -> None:
    assert parse_host(authority) == host


@pytest.mark.parametrize(
    "authority",
    [
        "", ".", ":8000", "..", "a..b", ".a", "localhost..", "localhost:65536", "localhost:-1", "localhost:80:80", "localhost: 80",
        "localhost:\u0665", "l\u00f6calhost", "::1", "[::1", "::1]", "[localhost]", "[::1]x", "[fe80::1%25eth0]", "[]",
        "user@localhost", "user:pass@localhost", "localhost/", "localhost\\", "localhost#", "localhost?", "localhost,evil.example",
        "localhost evil.example", "localhost\t", "localhost\n", "http://localhost", "*",
    ],
)  # fmt: skip
def test_an_invalid_host_is_rejected(authority: str) -> None:
    assert parse_host(authority) is None


@pytest.mark.parametrize(
    "host", ["localhost", "api.localhost", "127.0.0.1", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_loopback_is_always_allowed(host: str) -> None:
    parsed = parse_host(host)
    assert parsed is not None
    assert AllowedHosts().allows(parsed)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost", "0.0.0.0", "[::]", "10.0.0.1", "169.254.169.254",
        "127.1", "2130706433", "0x7f.1", "[::2]", "[::ffff:10.0.0.1]", "localhost.localdomain", "127.0.0.1.nip.io",
    ],
)  # fmt: skip
def test_other_hosts_are_not_allowed_by_default(host: str) -> None:
    parsed = parse_host(host)
    assert parsed is not None
    assert not AllowedHosts().allows(parsed)


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("api.example.org", ["api.example.org", "API.Example.ORG."], ["example.org", "x.api.example.org", "apiexample.org"]),
        ("API.example.org.", ["api.example.org"], []),
        ("*.example.org", ["a.example.org", "a.b.example.org"], ["example.org", "badexample.org", "example.org.evil.example"]),
        ("b\u00fccher.example", ["xn--bcher-kva.example"], ["bucher.example"]),
        ("10.0.0.7", ["10.0.0.7"], ["10.0.0.8"]), ("10.0.0.0/8", ["10.255.0.1"], ["11.0.0.1"]), ("[fd00::7]", ["[fd00::7]:80"], ["[fd00::8]"]),
        ("fd00::/8", ["[fd12::1]"], ["[fe80::1]", "10.0.0.1"]), ("*", ["evil.example", "10.0.0.1", "[::]"], []), ("api", ["api:8000"], ["api2"]),
    ],
)  # fmt: skip
def test_an_entry_allows_only_the_hosts_that_it_names(entry: str, allowed: list[str], refused: list[str]) -> None:
    hosts = AllowedHosts([f" {entry} "])
    assert [host for host in allowed if not hosts.allows(parse_host(host) or "")] == []
    assert [host for host in refused if hosts.allows(parse_host(host) or "")] == []
    assert hosts.allows("localhost")


@pytest.mark.parametrize(
    "entry", ["", "api.example.org:8000", "http://api.example.org", "a b", "*.*.org", "a*.org", "*.", "10.0.0.0/99"]
)
def test_an_invalid_entry_is_refused_with_the_option_to_change(entry: str) -> None:
    with pytest.raises(SetupError, match="--allowed-hosts"):
        AllowedHosts([entry])


@pytest.mark.parametrize(
    ("listen_address", "host", "allowed"),
    [
        ("10.0.0.7", "10.0.0.7", True), ("10.0.0.7", "10.0.0.8", False), ("0.0.0.0", "10.0.0.7", False), ("0.0.0.0", "0.0.0.0", False),
        ("::", "::", False), ("", "10.0.0.7", False), ("fe80::1%eth0", "fe80::1", True), ("vidflow.example", "vidflow.example", True), ("127.0.0.1", "vidflow.example", False),
    ],
)  # fmt: skip
def test_the_address_that_the_server_listens_on_is_allowed(listen_address: str, host: str, *, allowed: bool) -> None:
    assert parse_allowed_hosts(ApiOptions(host=listen_address)).allows(host) is allowed


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:3000", "localhost"), ("https://a.example", "a.example"), ("HTTP://LOCALHOST", "localhost"), ("http://[::1]:1", "::1"),
        ("null", None), ("", None), ("file://", None), ("chrome-extension://localhost", None), ("http://localhost/", None),
        ("http://localhost@evil.example", None), ("http://localhost http://localhost", None), ("http://", None), ("localhost", None),
    ],
)  # fmt: skip
def test_the_host_of_an_origin(origin: str, host: str | None) -> None:
    assert parse_origin_host(origin) == host


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    host = parse_host(text)
    assert host is None or parse_host(f"[{host}]" if ":" in host else host) == host
