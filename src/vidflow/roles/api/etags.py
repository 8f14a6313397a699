"""ETags: a response that the client already has is not sent again."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar, cast

import msgspec
from litestar import MediaType, Request, Response

T = TypeVar("T", bound=msgspec.Struct)


def respond_with_etag(request: Request[Any, Any, Any], content: T) -> Response[T]:
    """Return the content as JSON with its ETag, or a 304 without a body if the request's If-None-Match names that ETag."""
    body = msgspec.json.encode(content)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    header = request.headers.get("If-None-Match", "")
    if header.strip() == "*" or tag in {known.strip().removeprefix("W/") for known in header.split(",")}:
        return Response(cast("T", b""), status_code=304, headers=headers, media_type=MediaType.JSON)
    # The body is already encoded; the type parameter is for the OpenAPI document.
    return Response(cast("T", body), headers=headers, media_type=MediaType.JSON)
