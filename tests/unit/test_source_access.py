"""Which addresses sources may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.errors import ParameterError
from vidflow.domain.source_access import LOCAL_NETWORKS, SourceAccess, allow_local_networks, parse_networks

PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"]
LOCAL = ["127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.3.4", "192.168.1.20", "100.64.0.1", "fd12:3456::1"]
SPECIAL = [
    "0.0.0.0", "0.1.2.3", "169.254.169.254", "fe80::1", "fe80::1%eth0", "100.100.100.200", "168.63.129.16", "192.0.0.192",  # noqa: S104
    "fd00:ec2::254", "224.0.0.1", "239.1.2.3", "ff02::1", "ff0e::1", "255.255.255.255", "240.0.0.1", "::", "192.0.2.1",
    "198.18.0.1", "192.88.99.1", "2001:db8::1", "fec0::1", "64:ff9b:1::1", "2001:0:7f00:1::", "100::1",
]  # fmt: skip


def embed(address: str) -> list[str]:
    """Return the IPv6 addresses that stand for an IPv4 address: mapped, compatible, NAT64 and 6to4."""
    a, b, c, d = map(int, address.split("."))
    low = f"{a * 256 + b:x}:{c * 256 + d:x}"
    return [f"::ffff:{address}", f"64:ff9b::{low}", f"2002:{low}::1", *([f"::{low}"] if a else [])]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert SourceAccess().allows(address)


@pytest.mark.parametrize("address", LOCAL + SPECIAL)
def test_any_other_address_is_refused(address: str) -> None:
    assert not SourceAccess().allows(address)
    if "." in address:
        assert not any(SourceAccess().allows(form) for form in embed(address))


@pytest.mark.parametrize("address", LOCAL)
def test_local_addresses_are_allowed_for_dev(address: str) -> None:
    access = allow_local_networks(SourceAccess(networks=("203.0.113.7/32",)))
    assert access.allows(address)
    assert access.allows("203.0.113.7")
    if "." in address:
        assert all(access.allows(form) for form in embed(address))


@pytest.mark.parametrize("address", SPECIAL)
def test_no_other_address_is_allowed_for_dev(address: str) -> None:
    assert not allow_local_networks(SourceAccess()).allows(address)


def test_metadata_services_are_allowed_only_by_a_network_of_their_own() -> None:
    for address in ("169.254.169.254", "fd00:ec2::254", "168.63.129.16", "100.100.100.200"):
        assert not SourceAccess(networks=("0.0.0.0/0", "::/0")).allows(address)
        assert SourceAccess(networks=parse_networks([address])).allows(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_ipv6_is_never_allowed_more_than_itself(address: object) -> None:
    for access in (SourceAccess(), allow_local_networks(SourceAccess())):
        if not access.allows(str(address)):
            assert not any(access.allows(form) for form in embed(str(address)))


def test_networks_are_checked() -> None:
    assert parse_networks(["10.0.0.0/8", " 192.168.1.20", "::1"]) == ("10.0.0.0/8", "192.168.1.20/32", "::1/128")
    assert parse_networks(LOCAL_NETWORKS) == LOCAL_NETWORKS
    for text in ("10.0.0.1/8", "localhost", "", "10.0.0.0/33"):
        with pytest.raises(ParameterError, match="Give one such as"):
            parse_networks([text])


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_named_only_by_a_network_of_the_operator(address: str) -> None:
    assert not SourceAccess().is_named(address)
    assert not allow_local_networks(SourceAccess()).is_named(address)
    assert SourceAccess(networks=("0.0.0.0/0", "::/0")).is_named(address)


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"])
def test_a_metadata_service_is_not_named_by_all_networks(address: str) -> None:
    assert not SourceAccess(networks=("0.0.0.0/0", "::/0")).is_named(address)
