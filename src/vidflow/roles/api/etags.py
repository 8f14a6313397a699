"""Answers that a client may have already: a tag of what it has spares sending it again."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar, cast

import msgspec
from litestar import MediaType, Request, Response

T = TypeVar("T", bound=msgspec.Struct)


def respond_with_etag(request: Request[Any, Any, Any], answer: T) -> Response[T]:
    """The answer as JSON with its ETag; 304 without a body where the client's If-None-Match names this very one."""
    body = msgspec.json.encode(answer)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    asked = request.headers.get("If-None-Match", "")
    known = tag in {one.strip().removeprefix("W/") for one in asked.split(",")} or asked.strip() == "*"
    if known:
        return Response(cast("T", b""), status_code=304, headers=headers, media_type=MediaType.JSON)
    # Encoded once, here; the type says what the bytes are.
    return Response(cast("T", body), headers=headers, media_type=MediaType.JSON)
