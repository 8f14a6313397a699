"""Hosts that requests may name in Host and Origin, so that pages of other sites cannot use a server on their reader's machine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from vidflow.domain.errors import SetupError
from vidflow.settings import ApiOptions

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PORT: Final = 65535
_AUTHORITY: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::([0-9]*))?", re.ASCII | re.IGNORECASE)
_ORIGIN: Final = re.compile(r"https?://([^/?#\s]+)", re.IGNORECASE)


def parse_host(authority: str) -> str | None:
    """Return the host of a Host header: a name in lower case without its final dot, or an address in canonical form.

    None if the text is not a host with an optional port.
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    bracketed, name, port = match.groups()
    if port and (len(port) > len(str(MAX_PORT)) or int(port) > MAX_PORT):
        return None
    if bracketed is not None:
        address = parse_address(bracketed)
        return str(address) if address is not None else None
    name = name.lower().removesuffix(".")
    return name if all(name.split(".")) else None


def parse_origin_host(origin: str) -> str | None:
    """Return the host of an Origin header, or None for `null` and any other value that is not an HTTP origin."""
    match = _ORIGIN.fullmatch(origin)
    return parse_host(match[1]) if match else None


def parse_address(host: str) -> Address | None:
    """Return the host as an address, or None if it is a name. An IPv4-mapped IPv6 address is returned as the IPv4 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on `host`."""
    address = parse_address(host)
    return host == "localhost" if address is None else address.is_loopback


class AllowedHosts:
    """Names, addresses and networks by which clients may address this server. Loopback is always allowed."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """`entries`: "api.example.org", "*.example.org" (each subdomain), an address, a network like 10.0.0.0/8, or "*".

        Raises SetupError for any other entry.
        """
        self._names: set[str] = set()
        self._suffixes: set[str] = set()
        self._networks: list[Network] = []
        self._any = False
        for entry in entries:
            self._add(entry.strip())

    def _add(self, entry: str) -> None:
        if entry == "*":
            self._any = True
            return
        try:
            self._networks.append(ipaddress.ip_network(entry.removeprefix("[").removesuffix("]"), strict=False))
        except ValueError:
            self._add_name(entry)

    def _add_name(self, entry: str) -> None:
        wildcard = entry.startswith("*.")
        try:
            name = parse_host(entry.removeprefix("*.").encode("idna").decode("ascii"))
        except UnicodeError:
            name = None
        if name is None or ":" in entry:
            raise SetupError(
                f"Invalid host {entry!r} in --allowed-hosts (VIDFLOW_ALLOWED_HOSTS). Use names (api.example.org, *.example.org), "
                "addresses or networks (10.0.0.0/8), separated by commas, without ports."
            )
        (self._suffixes if wildcard else self._names).add(f".{name}" if wildcard else name)

    def allows(self, host: str) -> bool:
        """Return whether a request may name this host, in the form that `parse_host` returns."""
        if self._any:
            return True
        address = parse_address(host)
        if address is not None:
            return address.is_loopback or any(address in network for network in self._networks)
        return (
            host == "localhost"
            or host.endswith(".localhost")
            or host in self._names
            or any(host.endswith(suffix) for suffix in self._suffixes)
        )


def parse_allowed_hosts(options: ApiOptions) -> AllowedHosts:
    """Return the hosts of the options, with the name or address that the server listens on.

    Raises SetupError for an entry of --allowed-hosts that is not a host.
    """
    address = parse_address(options.host)
    if address is not None and address.is_unspecified:
        return AllowedHosts(options.allowed_hosts)
    host = options.host.partition("%")[0]  # without an IPv6 zone
    return AllowedHosts((*options.allowed_hosts, *([host] if host else [])))
