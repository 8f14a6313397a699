"""Which hosts a request may name in Host and Origin, so that a web page elsewhere cannot use a server on a person's machine."""

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
    """Return the host of a Host header: a name in lower case without its final dot, or an address in its usual form.

    None where the text is not a host with an optional port.
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    bracketed, name, port = match.groups()
    if port and (len(port) > len(str(MAX_PORT)) or int(port) > MAX_PORT):
        return None
    if bracketed is not None:
        found = parse_address(bracketed)
        return str(found) if found is not None else None
    name = name.lower().removesuffix(".")
    return name if all(name.split(".")) else None


def parse_origin_host(origin: str) -> str | None:
    """Return the host of an Origin header; None for `null`, or where it is not an http origin."""
    match = _ORIGIN.fullmatch(origin)
    return parse_host(match[1]) if match else None


def parse_address(host: str) -> Address | None:
    """Return the address that a host is, None where it is a name. An IPv4 address mapped into IPv6 is that IPv4 address."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class AllowedHosts:
    """Names, addresses and networks by which clients may reach this server. Loopback is always among them."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """`entries`: "api.example.org", "*.example.org" (each subdomain), an address, a network as 10.0.0.0/8, or "*".

        Raises SetupError for an entry that is none of these.
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
                f"--allowed-hosts (VIDFLOW_ALLOWED_HOSTS): {entry!r} is not a host; use names (api.example.org, *.example.org), "
                "addresses or networks (10.0.0.0/8), separated by commas, without ports"
            )
        (self._suffixes if wildcard else self._names).add(f".{name}" if wildcard else name)

    def allows(self, host: str) -> bool:
        """Whether a request may name this host, as `parse_host` returns it."""
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
    """Return the hosts of the options; an address or name that the server listens at is one of them.

    Raises SetupError for an entry of --allowed-hosts that is not a host.
    """
    listens_at = parse_address(options.host)
    if listens_at is not None and listens_at.is_unspecified:
        return AllowedHosts(options.allowed_hosts)
    own = options.host.partition("%")[0]  # without an IPv6 zone
    return AllowedHosts((*options.allowed_hosts, *([own] if own else [])))
