"""Why the certificate of a PostgreSQL server is not accepted, in OpenSSL's words: libpq says only that it is not."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's SSLRequest."""
_WAIT_S: Final = 3.0


def diagnose_certificate(conninfo: str, error: psycopg.Error) -> str | None:
    """Ask the server for its certificate again and return what is wrong with it; None where that does not show.

    For an error message alone: nothing is sent but the request, and the connection that failed stays failed.
    """
    if "certificate verify failed" not in str(error):
        return None
    parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    trusted = parts.get("sslrootcert", "system")
    host, port = parts.get("host", "localhost").split(",")[0], parts.get("port", "5432").split(",")[0]
    try:
        context = ssl.create_default_context(cafile=None if trusted == "system" else trusted)
        with socket.create_connection((parts.get("hostaddr", host).split(",")[0], int(port)), _WAIT_S) as wire:
            wire.sendall(_SSL_REQUEST)
            if wire.recv(1) == b"S":
                context.wrap_socket(wire, server_hostname=host).close()
    except ssl.SSLCertVerificationError as refused:
        return refused.verify_message
    except (OSError, ValueError):
        return None
    return None
