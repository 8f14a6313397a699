"""Find out why a PostgreSQL server's certificate is rejected. libpq reports only that it is."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's SSLRequest message."""
_TIMEOUT_S: Final = 3.0


def diagnose_certificate(conninfo: str, error: psycopg.Error) -> str | None:
    """Connect to the server again and return OpenSSL's reason for rejecting its certificate, or None if it cannot be determined.

    Only for an error message. Nothing but the TLS request is sent.
    """
    if "certificate verify failed" not in str(error):
        return None
    parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    root_cert = parts.get("sslrootcert", "system")
    host, port = parts.get("host", "localhost").split(",")[0], parts.get("port", "5432").split(",")[0]
    try:
        context = ssl.create_default_context(cafile=None if root_cert == "system" else root_cert)
        with socket.create_connection((parts.get("hostaddr", host).split(",")[0], int(port)), _TIMEOUT_S) as raw_socket:
            raw_socket.sendall(_SSL_REQUEST)
            if raw_socket.recv(1) == b"S":
                context.wrap_socket(raw_socket, server_hostname=host).close()
    except ssl.SSLCertVerificationError as rejected:
        return rejected.verify_message
    except (OSError, ValueError):
        return None
    return None
