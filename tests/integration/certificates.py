"""Certificates for tests: an authority, and what it has signed, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


class CertificateAuthority:
    """An authority whose files lie in a folder. `ca` is its certificate."""

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
        """Sign a certificate for a server `alt_name` IP:127.0.0.1 or DNS:localhost, or for a client; return its file and its key's.

        One of `days` below 0 has expired.
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
