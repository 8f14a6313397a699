"""What an operator allows sources: which addresses they may have, how servers prove their names, and which cameras may be opened.

Anyone who may name a source makes a runner connect to it. So only public addresses are allowed by default, not the services
that trust this machine or its network, and no camera that is connected to this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import msgspec

from vidflow.domain.errors import ParameterError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOCAL_NETWORKS: Final = (
    "127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7",
)  # fmt: skip
"""Loopback and private networks, which `vidflow dev` and `vidflow run` allow."""
_METADATA_NETWORKS: Final = tuple(
    ip_network(text)
    for text in ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/32", "fe80::/10")
)  # fmt: skip
"""Where clouds serve credentials to their machines. Only a network within one of these allows an address in it."""
_SPECIAL_NETWORKS: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23", "2001:db8::/32", "3fff::/20",
    )
)  # fmt: skip
"""Networks that are not public, from IANA's registries of special-purpose and multicast addresses. What `ipaddress` takes for global
differs between versions of Python."""
_PUBLIC_IPV6: Final = ip_network("2000::/3")
"""All IPv6 addresses that IANA has assigned for public use."""
_NAT64: Final = ip_network("64:ff9b::/96")
_IPV4_COMPATIBLE: Final = ip_network("::/96")


class SourceAccess(msgspec.Struct, frozen=True):
    """What sources may be reached, and how.

    `ca_file`: path of certificate authorities that are trusted besides the system's. `verify`: servers must prove their names.
    `networks`: networks whose addresses are allowed besides the public ones. `devices`: paths of cameras of this machine, which
    sources name in the same way.
    """

    ca_file: str | None = None
    verify: bool = True
    networks: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def allows(self, address: str) -> bool:
        """Return whether a source may be at this IP address.

        An IPv6 address that stands for an IPv4 address (mapped, compatible, NAT64, 6to4) is judged by that one.
        """
        networks = [ip_network(text) for text in self.networks]
        return all(
            _is_public(meant) or _is_in(meant, networks) for meant in _meant_by(ip_address(address.partition("%")[0]))
        )

    def names_device(self, source: str) -> bool:
        """Return whether the source is a camera of this machine that the operator has named."""
        return source in self.devices

    def is_named(self, address: str) -> bool:
        """Return whether the operator has allowed a network with this IP address, so that public ones are not enough."""
        networks = [ip_network(text) for text in self.networks]
        return all(_is_in(meant, networks) for meant in _meant_by(ip_address(address.partition("%")[0])))


def parse_networks(texts: Sequence[str]) -> tuple[str, ...]:
    """Return networks such as 10.0.0.0/8, or 192.168.1.20 for one address, in their usual form. Raises ParameterError."""
    try:
        return tuple(str(ip_network(text.strip())) for text in texts)
    except ValueError as error:
        raise ParameterError(f"Invalid network: {error}. Give one such as 10.0.0.0/8, or one address.") from error


def parse_devices(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of cameras such as /dev/video0. Raises ParameterError."""
    for text in texts:
        if not text.startswith("/") or not text.isprintable() or " " in text:
            raise ParameterError(f"Invalid device {text[:200]!r}. Give its path, such as /dev/video0, without spaces.")
    return tuple(texts)


def allow_local_networks(access: SourceAccess) -> SourceAccess:
    """Return the access with loopback and private networks allowed."""
    return msgspec.structs.replace(access, networks=(*access.networks, *LOCAL_NETWORKS))


def _meant_by(address: Address) -> list[Address]:
    """Return the addresses that a connection to this one may reach."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        return [IPv4Address(int(address) & 0xFFFF_FFFF)]
    return [address if address.sixtofour is None else address.sixtofour]


def _is_public(address: Address) -> bool:
    special = (*_METADATA_NETWORKS, *_SPECIAL_NETWORKS)
    return (address.version == 4 or address in _PUBLIC_IPV6) and not any(address in network for network in special)


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    metadata = next((network for network in _METADATA_NETWORKS if address in network), None)
    return any(address in network and (metadata is None or _is_within(network, metadata)) for network in networks)


def _is_within(network: Network, other: Network) -> bool:
    return (
        network.version == other.version and network.prefixlen >= other.prefixlen and network.network_address in other
    )
