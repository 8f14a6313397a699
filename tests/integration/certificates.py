"""Create a certificate authority and certificates with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


class CertificateAuthority:
    """A certificate authority with its files in a folder. `ca` is the path of its certificate."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._run(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.ca,
        )  # fmt: skip

    def issue(self, name: str, alt_name: str | None = None, days: int = 2) -> tuple[Path, Path]:
        """Issue a certificate and return its path and that of its key.

        `alt_name` is the server's name (such as `DNS:localhost` or `IP:127.0.0.1`); without it the certificate is for a client. With a
        negative `days` the certificate has expired.
        """
        request, key, certificate = (self._folder / f"{name}.{end}" for end in ("csr", "key", "pem"))
        extension = self._folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={alt_name}\n" if alt_name else "extendedKeyUsage=clientAuth\n")
        self._run(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", key, "-out", request,
        )  # fmt: skip
        self._run(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", str(days),
            "-extfile", extension, "-out", certificate,
        )  # fmt: skip
        return certificate, key

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
