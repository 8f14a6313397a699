"""ETags: a response that the client already has is not sent again."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from litestar import MediaType, Request, Response


def respond_with_etag(request: Request[Any, Any, Any], content: msgspec.Struct) -> Response[Any]:
    """Return the content as JSON with its ETag, or a 304 without a body if the request's If-None-Match names that ETag."""
    body = msgspec.json.encode(content)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    header = request.headers.get("If-None-Match", "")
    if header.strip() == "*" or tag in {known.strip().removeprefix("W/") for known in header.split(",")}:
        return Response(b"", status_code=304, headers=headers, media_type=MediaType.JSON)
    return Response(body, headers=headers, media_type=MediaType.JSON)
