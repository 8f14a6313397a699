"""TLS to the servers of sources: which certificates are accepted."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from vidflow.domain.errors import SetupError, SourceError
from vidflow.domain.source_access import SourceAccess


def build_tls_context(access: SourceAccess) -> ssl.SSLContext:
    """Return the settings of a client: the system's authorities and those of `access`. Raises SetupError for an unusable file."""
    context = ssl.create_default_context()
    if access.ca_file is not None:
        try:
            context.load_verify_locations(access.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise SetupError(
                f"{access.ca_file} has no certificates that can be read ({error.strerror or error}). Check --source-ca-file, which takes"
                " PEM certificates."
            ) from error
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def build_certificate_error(display_name: str, error: ssl.SSLCertVerificationError) -> SourceError:
    """Return the error to raise for a server whose certificate does not prove its name."""
    return SourceError(
        f"The certificate of {display_name} is not valid ({error.verify_message}). Have it fixed, or let the operator add its authority"
        " (--source-ca-file) or accept any certificate (--insecure-sources).",
        code="source_tls",
    )


@contextmanager
def ca_bundle(access: SourceAccess) -> Iterator[str]:
    """Yield the path of a file with all accepted authorities, for libraries that take a single one. A worker can write no other one."""
    authorities = build_tls_context(access).get_ca_certs(binary_form=True)
    with open(os.memfd_create("vidflow-ca"), "w", encoding="ascii") as file:  # noqa: PTH123 - a file descriptor
        file.writelines(ssl.DER_cert_to_PEM_cert(certificate) for certificate in authorities)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
