"""Pages of other sites that may use the API from a browser (CORS). By default there are none."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from litestar.config.cors import CORSConfig

from vidflow.domain.errors import SetupError
from vidflow.roles.api.hosts import parse_origin_host
from vidflow.settings import ApiOptions

_ORIGIN: Final = re.compile(r"https?://[^/?#\s*]+", re.IGNORECASE)
_MAX_AGE_S: Final = 600
"""How long a browser remembers the answer to a preflight."""


def parse_cors_origins(options: ApiOptions) -> frozenset[str]:
    """Return the origins of --cors-origins, as browsers send them. Raises SetupError for anything else, "*" included."""
    for origin in options.cors_origins:
        if not _ORIGIN.fullmatch(origin) or parse_origin_host(origin) is None:
            raise SetupError(
                f"Invalid origin {origin[:80]!r} in --cors-origins (VIDFLOW_CORS_ORIGINS). Write each as the browser sends it, such as "
                "https://app.example.org, separated by commas."
            )
    return frozenset(origin.lower() for origin in options.cors_origins)


def build_cors_config(origins: Collection[str]) -> CORSConfig | None:
    """Return the framework's configuration for these origins, None if no page of another site is let in."""
    if not origins:
        return None
    return CORSConfig(
        allow_origins=sorted(origins),
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "X-Request-Id"],
        expose_headers=["ETag", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"],
        max_age=_MAX_AGE_S,
    )
