"""ETags: a response that the client already has is not sent again."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import msgspec
from litestar import MediaType, Request, Response

_TAG: Final = re.compile(r'[ \t,]*(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|$)')
"""One element of a list of entity tags (RFC 9110, 8.8.3 and 5.6.1), with the empty elements before it. A tag may contain a comma."""


def respond_with_etag(request: Request[Any, Any, Any], content: msgspec.Struct) -> Response[Any]:
    """Return the content as JSON with its ETag, or a 304 without a body if the request's If-None-Match names that ETag."""
    body = msgspec.json.encode(content)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if names_tag(", ".join(request.headers.getall("If-None-Match", [])), tag):
        return Response(b"", status_code=304, headers=headers, media_type=MediaType.JSON)
    return Response(body, headers=headers, media_type=MediaType.JSON)


def names_tag(if_none_match: str, tag: str) -> bool:
    """Return whether the value of If-None-Match names the tag, which is quoted. `*` names each. A weak tag equals its strong form.

    A value that does not have the header's form names nothing.
    """
    value = if_none_match.strip(" \t")
    if value == "*":
        return True
    value = value.rstrip(" \t,")
    end, named = 0, set()
    while end < len(value):
        match = _TAG.match(value, end)
        if match is None:
            return False
        named.add(match[1])
        end = match.end()
    return tag in named
