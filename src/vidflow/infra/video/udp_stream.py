"""An MPEG transport stream that is sent to this machine over UDP, plain or in RTP packets, to one address or a multicast group."""

from __future__ import annotations

import errno
import socket
import struct
import time
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video.source_connection import STOP_POLL_S, Interruption, require_running, resolve
from vidflow.infra.video.source_file import SourceFile

SILENCE_S: Final = 5.0
"""After so long without a datagram, the port is released."""
_DATAGRAM_BYTES: Final = 65_536
_KERNEL_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Requested for the time in which nobody reads. The kernel may grant less."""
_RTP_HEADER_BYTES: Final = 12


class UdpStream(SourceFile):
    """The datagrams that arrive at the address of `udp://ADDRESS:PORT`, in their order of arrival."""

    def __init__(self, url: str, display_name: str, access: SourceAccess, interruption: Interruption) -> None:
        """Listen at the address. Raises SourceError, Unavailable or ReadingStopped."""
        super().__init__("datagrams", can_seek=False)
        self._display_name, self._interruption = display_name, interruption
        parts = urlsplit(url)
        if parts.port is None:
            raise SourceError(f"{display_name} has no port. Write udp://ADDRESS:PORT.", code="source_invalid")
        try:
            address, *_ = resolve(parts.hostname or "", parts.port, access, interruption, display_name)
            if not access.is_named(address[0]):
                raise SourceError(
                    f"{display_name} would open a port of the runner. The operator can allow it for a network"
                    " (--allow-source-network).",
                    code="source_refused",
                )
            self._socket = _listen(address)
        except (OSError, UnicodeError) as error:
            is_used = getattr(error, "errno", None) == errno.EADDRINUSE
            reason = "another program reads it" if is_used else getattr(error, "strerror", None) or str(error)
            raise Unavailable(
                f"{display_name} cannot be received ({reason}). The address must be one of the runner's machine, or a multicast"
                " group.",
                code="source_unreachable",
            ) from error
        self._pending = b""

    def close(self) -> None:
        """Release the port."""
        self._socket.close()

    def _read(self, size: int) -> bytes:
        deadline_s = time.monotonic() + SILENCE_S
        while not self._pending:
            require_running(self._interruption)
            try:
                self._pending = strip_rtp(self._socket.recv(_DATAGRAM_BYTES))
            except TimeoutError as error:
                if time.monotonic() > deadline_s:
                    raise Unavailable(
                        f"Nothing is sent to {self._display_name}. Check the sender's target.", code="source_timeout"
                    ) from error
            except OSError as error:
                raise Unavailable(
                    f"{self._display_name} cannot be received any more ({error.strerror}).", code="source_unreachable"
                ) from error
        data, self._pending = self._pending[:size], self._pending[size:]
        self._position += len(data)
        return data

    def _find_size(self) -> int | None:
        return None


def strip_rtp(datagram: bytes) -> bytes:
    """Return the payload of an RTP packet (RFC 3550), and other data unchanged: a transport stream cannot begin like RTP."""
    if len(datagram) <= _RTP_HEADER_BYTES or datagram[0] >> 6 != 2:
        return datagram
    first = _RTP_HEADER_BYTES + 4 * (datagram[0] & 0x0F)
    if datagram[0] & 0x10:  # a header extension, with its length in words
        first += 4 + 4 * int.from_bytes(datagram[first + 2 : first + 4])
    padding = datagram[-1] if datagram[0] & 0x20 else 0
    return datagram[first : len(datagram) - padding]


def _listen(address: Any) -> socket.socket:  # noqa: ANN401 - by its family
    host = ip_address(address[0].partition("%")[0])
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    try:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER_BYTES)
        if host.is_multicast:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # each reader of a group gets all datagrams
        receiver.bind(address)
        if host.is_multicast and host.version == 4:
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, host.packed + bytes(4))
        elif host.is_multicast:
            receiver.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, host.packed + struct.pack("@I", address[3])
            )
        receiver.settimeout(STOP_POLL_S)
    except BaseException:
        receiver.close()
        raise
    return receiver
