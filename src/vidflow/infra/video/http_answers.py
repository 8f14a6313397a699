"""What the answers of an HTTP server say: which part of a file they contain, where to ask instead, whether to try again."""

from __future__ import annotations

import re
import time
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import urljoin, urlsplit

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.messages import MAX_SAFE_INTEGER, FileIdentity
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video.http_connection import Response

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_TEMPORARY_CLIENT_ERRORS: Final = frozenset({408, 425, 429})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16}|\*)", re.ASCII)
_UNSATISFIED_RANGE: Final = re.compile(r"bytes \*/(\d{1,16})", re.ASCII)
_MAX_ETAG_CHARACTERS: Final = 200
_FILE_HEADERS: Final = ("Content-Length", "Content-Disposition", "Content-Range", "ETag", "Last-Modified")


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes of a file that a response contains: from `first` up to `end`. None is what the server does not state.

    `size_bytes`: the size of the whole file. `offers_ranges`: any other part can be requested.
    """

    first: int
    end: int | None
    size_bytes: int | None
    offers_ranges: bool


def read_part(response: Response, display_name: str) -> Part:
    """Return which part of the file a successful response contains.

    Raises SourceError for a compressed body, Unavailable for a part without a valid place.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise SourceError(
            f"The server sends {display_name} compressed, although it was asked not to. Give the URL of the file itself.",
            code="source_denied",
        )
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        return _read_range(response, display_name)
    size_bytes = _read_length(response, display_name)
    accepts = response.headers.get("Accept-Ranges", "").strip().lower()
    return Part(0, size_bytes, size_bytes, accepts == "bytes")


def _read_range(response: Response, display_name: str) -> Part:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is not None:
        first, last = int(match.group(1)), int(match.group(2))
        size_bytes = None if match.group(3) == "*" else int(match.group(3))
        if first <= last and (size_bytes is None or last < size_bytes) and last < MAX_SAFE_INTEGER:
            return Part(first, last + 1, size_bytes, offers_ranges=True)
    raise Unavailable(
        f"The server of {display_name} sent a part without a valid Content-Range. Check whether it supports range requests.",
        code="source_unreadable",
    )


def _read_length(response: Response, display_name: str) -> int | None:
    """Return the stated size of a whole body."""
    length = response.headers.get("Content-Length", "").strip()
    if response.is_chunked or not length.isdecimal():
        return None
    size_bytes = int(length) if len(length) <= len(str(MAX_SAFE_INTEGER)) else MAX_SAFE_INTEGER + 1
    if size_bytes > MAX_SAFE_INTEGER:
        raise SourceError(
            f"The server states an impossible size for {display_name}. Check the server.", code="source_denied"
        )
    return size_bytes


def read_size_of_unsatisfied_range(response: Response) -> int | None:
    """Return the size of the file as the answer 416 states it."""
    match = _UNSATISFIED_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def read_identity(response: Response, size_bytes: int | None) -> FileIdentity:
    """Return what the server says about the file."""
    etag = response.headers.get("ETag", "").strip()[:_MAX_ETAG_CHARACTERS] or None
    return FileIdentity(size_bytes, _read_time_ns(response.headers.get("Last-Modified")), etag)


def describes_file(response: Response) -> bool:
    """Return whether the server says of the body what it knows of a file, but not of a stream that it makes as it goes."""
    accepts = response.headers.get("Accept-Ranges", "").strip().lower()
    return accepts == "bytes" or any(response.headers.get(name) for name in _FILE_HEADERS)


def is_temporary(status: int) -> bool:
    """Return whether a later request may succeed."""
    return status in _TEMPORARY_CLIENT_ERRORS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def read_retry_after(response: Response) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, as a number or a date; None without a valid one."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    time_ns = _read_time_ns(value)
    return None if time_ns is None else max(0.0, time_ns / 1e9 - time.time())


def read_location(response: Response) -> str | None:
    """Return where a redirect leads; None for any other response."""
    return (response.headers.get("Location") or None) if response.status in _REDIRECTS else None


def resolve_reference(url: str, reference: str, access: SourceAccess, display_name: str) -> str:
    """Return the URL to which the response of `url` refers. Raises SourceError for one that is not followed."""
    try:
        target = urljoin(url, reference)
        scheme, host = urlsplit(target).scheme.lower(), urlsplit(target).hostname
    except ValueError:
        scheme, host = "", None
    if scheme not in {"http", "https"} or not host:
        raise SourceError(
            f"{display_name} leads to something that is not an HTTP URL. Give another URL.", code="source_denied"
        )
    if urlsplit(url).scheme.lower() == "https" and scheme == "http" and access.verify:
        raise SourceError(
            f"{display_name} leads from https to http, where anyone on the way could change it. Give another URL.",
            code="source_denied",
        )
    return target


def build_authorization(user: str, password: str, url: str, response: Response) -> str | None:
    """Return the Authorization header that answers the response's challenges, with Digest if offered; None for other schemes."""
    challenges = response.headers.get_all("WWW-Authenticate", [])
    for challenge in challenges:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "digest":
            passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            passwords.add_password(None, url, user, password)
            fields = urllib.request.parse_keqv_list(urllib.request.parse_http_list(rest))
            handler = urllib.request.AbstractDigestAuthHandler(passwords)
            if digest := handler.get_authorization(urllib.request.Request(url), fields):  # noqa: S310 - only described
                return f"Digest {digest}"
    if any(challenge.lower().startswith("basic") for challenge in challenges):
        return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return None


def build_status_error(status: int, display_name: str, *, was_read: bool) -> SourceError:
    """Return the error to raise for a refusal. `was_read`: an earlier request of the source was answered."""
    answer = f"The server refused {display_name} ({describe_status(status)})."
    if was_read and status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.GONE}:
        return SourceError(
            f"{answer} It allowed reading before, so a signed URL or a login has probably expired. Start a new scenario with a fresh"
            " URL. The stored frames remain.",
            code="source_expired",
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return SourceError(
            f"{answer} Give a valid login (http://user:password@host/...) or a signed URL.",
            code="source_unauthorized",
        )
    if status == HTTPStatus.NOT_FOUND:
        return SourceError(f"{answer} Check the URL.", code="source_not_found")
    if status == HTTPStatus.GONE:
        return SourceError(f"{answer} It was removed for good; give another URL.", code="source_gone")
    return SourceError(f"{answer} Check the URL and its permissions, or sign it again.", code="source_denied")


def describe_status(status: int) -> str:
    """Return a status with the standard's words for it. The server's own are not to be trusted."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} unknown status"


def _read_time_ns(value: str | None) -> int | None:
    try:
        return int(parsedate_to_datetime(value).timestamp()) * 1_000_000_000 if value else None
    except (ValueError, OverflowError):
        return None
