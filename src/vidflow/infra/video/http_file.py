"""The body of an HTTP(S) URL as a file: continues where a connection broke, and ends only where the body's end is proven.

A change of the body between two requests is an error, since its bytes would be mixed.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.messages import FileIdentity
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import http_answers
from vidflow.infra.video.http_connection import Response
from vidflow.infra.video.http_requests import (
    HttpRequests,
    TemporaryStatus,
    build_no_response_error,
    describe_failure,
    is_temporary_failure,
)
from vidflow.infra.video.source_connection import Interruption, ReadingStopped
from vidflow.infra.video.source_file import SourceFile

MAX_FAILURES: Final = 8
"""Failures in a row after which a reader gives up by default.

It pauses after each one, from FIRST_PAUSE_S, doubling up to MAX_PAUSE_S.
"""
FIRST_PAUSE_S: Final = 0.1
FIRST_STATUS_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 10.0
MAX_PAUSES_S: Final = 120.0
"""Longest time to wait in a row. A server that asks for more (Retry-After) leaves it to a later attempt of the scenario."""
MIN_PROGRESS_BYTES: Final = 64 * 1024
"""A connection that delivers less before it breaks counts as a failure in a row."""
SLOW_S: Final = 60.0
SLOW_BYTES: Final = 16 * 1024
"""A server is too slow if it sends less than this in this time. The time between two reads does not count."""
SKIP_BYTES: Final = 256 * 1024
"""A seek forward by at most this much reads on, which is faster than a new request."""
_NO_RANGES: Final = (
    " Its server does not answer range requests, without which a file whose index is at its end cannot be read."
)
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]{0,160}"')


@dataclass(slots=True)
class _Body:
    """The body of a response. `next` is the place of its next byte in the whole file, `end` that of its end if that is stated."""

    response: Response
    next: int
    end: int | None
    start: int

    def read(self, size: int) -> bytes:
        """Return the next bytes, empty at the body's proven end."""
        if self.end is not None:
            size = min(size, self.end - self.next)
        data = self.response.read(size) if size else b""
        if not data and self.end is not None and self.next < self.end:
            raise http.client.IncompleteRead(b"", self.end - self.next)
        self.next += len(data)
        return data


class HttpFile(SourceFile):
    """The body of a URL. It can be sought in if the server answers range requests.

    `size_bytes` is None if the server does not state it. `is_described`: it says of the body what it would not know of a stream that it
    makes as it goes. `identity` is what the server says about the body: its size, modification
    time and ETag. A seek makes no request, only a read does.
    """

    def __init__(
        self,
        url: str,
        access: SourceAccess | None = None,
        interruption: Interruption | None = None,
        *,
        was_read: bool = False,
        first: int = 0,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        """Request the body from the byte `first` on.

        `was_read`: an earlier attempt could read it, so a refusal means that the permission has expired. `max_failures`: failures in a
        row after which it is given up.

        Raises SourceError, Unavailable or ReadingStopped.
        """
        super().__init__(unquote(urlsplit(url).path.rpartition("/")[2]) or "video", can_seek=False)
        self._interruption = interruption or threading.Event()
        self._was_read, self._max_failures = was_read, max_failures
        self._requests = HttpRequests(url, access or SourceAccess(), self._interruption)
        self._body: _Body | None = None
        self._first = self._position = first
        self._failures, self._paused_s = 0, 0.0
        self._waited_s, self._waited_bytes = 0.0, 0
        self.display_name = self._requests.display_name
        self.content_type, self.is_described = "", False
        self.identity: FileIdentity | None = None
        self.size_bytes: int | None = None
        self._request_until_answered()
        self._was_read = True

    def _request_until_answered(self) -> None:
        while self._body is None and self.size_bytes is None:
            self._try_request()

    def close(self) -> None:
        """Close the connection."""
        if self._body is not None:
            self._body.response.close()
            self._body = None

    @property
    def url(self) -> str:
        """The place of the body, after redirects."""
        return self._requests.target

    @property
    def hint(self) -> str:  # type: ignore[override]
        """What a server without range requests cannot give."""
        return "" if self.can_seek else _NO_RANGES

    def _find_size(self) -> int | None:
        return self.size_bytes

    def _read(self, size: int) -> bytes:
        while self.size_bytes is None or self._position < self.size_bytes:
            body = self._body
            if body is None or not 0 <= self._position - body.next <= SKIP_BYTES:
                self.close()
                self._try_request()
                continue
            try:
                data = self._measure_read(body, (self._position - body.next) or size)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.close()
                self._handle_break(error)
                continue
            if not data:
                self.close()
                self._handle_end(body)
            elif body.next > self._position:
                self._position = body.next
                return data
        return b""

    def _measure_read(self, body: _Body, size: int) -> bytes:
        """Read from the body. Raises TimeoutError if the server is too slow over a longer time."""
        began_s = time.monotonic()
        data = body.read(size)
        self._waited_s += time.monotonic() - began_s
        self._waited_bytes += len(data)
        if self._waited_bytes >= SLOW_BYTES:
            self._waited_s, self._waited_bytes = 0.0, 0
        elif self._waited_s > SLOW_S:
            raise TimeoutError(f"less than {SLOW_BYTES} bytes in {SLOW_S:.0f} s")
        if body.next - body.start >= MIN_PROGRESS_BYTES:
            self._failures, self._paused_s = 0, 0.0
        return data

    def _handle_break(self, error: Exception) -> None:
        """Wait before the next request if there can be one. Raises Unavailable otherwise."""
        place = f"after {self._position} bytes" + ("" if self.size_bytes is None else f" of {self.size_bytes}")
        if self.can_seek:
            self._pause(error, FIRST_PAUSE_S, f"The connection to {self.display_name} broke {place}")
            return
        raise Unavailable(
            f"The connection to {self.display_name} broke {place} ({describe_failure(error)}), and its server does not answer range"
            " requests, with which the rest could be read. Check the server, or download the file first.",
            code="source_unreadable",
        ) from error

    def _handle_end(self, body: _Body) -> None:
        """Note the end of the file, unless the body was only a part of it."""
        if body.end is None:
            self.size_bytes = body.next
        elif body.next != self.size_bytes and body.next - body.start < MIN_PROGRESS_BYTES:
            self._pause(http.client.IncompleteRead(b""), FIRST_PAUSE_S, f"{self.display_name} is sent in tiny parts")

    def _pause(self, error: Exception, first_s: float, problem: str, seconds: float | None = None) -> None:
        """Count a failure and wait before the next try. Raises Unavailable after too many, or at too long a wait."""
        self._failures += 1
        if seconds is None:
            seconds = min(first_s * 2.0 ** (self._failures - 1), MAX_PAUSE_S)
        self._paused_s += seconds
        if self._failures >= self._max_failures or self._paused_s > MAX_PAUSES_S:
            code = "source_unreadable" if self.identity is not None else "source_unreachable"
            raise Unavailable(
                f"{problem} ({describe_failure(error)}). Check that its server is running and that the runner can reach it. A later attempt"
                " continues after the last stored frame.",
                code=code,
            ) from error
        if self._interruption.wait(seconds):
            raise ReadingStopped

    def _try_request(self) -> None:
        """Request the body from the position on, and keep it. After a failure that may pass, wait and keep none."""
        try:
            response = self._requests.get(self._headers())
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._requests.forget_redirect():
                return
            if self.identity is None or not is_temporary_failure(error):
                raise build_no_response_error(self.display_name, error) from error
            self._pause(error, FIRST_PAUSE_S, f"{self.display_name} does not answer")
            return
        if http_answers.is_temporary(response.status):
            pause_s = http_answers.read_retry_after(response)
            response.close()
            self._pause(
                TemporaryStatus(response.status), FIRST_STATUS_PAUSE_S,
                f"{self.display_name} is not available now", pause_s,
            )  # fmt: skip
            return
        try:
            self._body = self._accept(response)
        except BaseException:
            response.close()
            raise
        if self._body is None:
            response.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Range": f"bytes={self._position}-"}
        etag = self.identity.etag if self.identity else None
        if self._position and etag and _STRONG_ETAG.fullmatch(etag):
            headers["If-Range"] = etag
        return headers

    def _accept(self, response: Response) -> _Body | None:
        """Return the response's body; None at the end of the file, or if another request is needed."""
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._end_at(response)
            return None
        if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            raise http_answers.build_status_error(response.status, self.display_name, was_read=self._was_read)
        part = http_answers.read_part(response, self.display_name)
        self._note_identity(http_answers.read_identity(response, part.size_bytes))
        self.content_type = response.headers.get_content_type()
        self.is_described = http_answers.describes_file(response)
        if part.first != self._position:
            raise Unavailable(
                f"The server of {self.display_name} sent another part than requested. Check whether it supports range requests.",
                code="source_unreadable",
            )
        if self._position == self._first:
            self.can_seek = part.offers_ranges
        self.size_bytes = part.size_bytes if part.size_bytes is not None else self.size_bytes
        return _Body(response, part.first, part.end, part.first)

    def _end_at(self, response: Response) -> None:
        """Note that the file ends at or before the position."""
        stated = http_answers.read_size_of_unsatisfied_range(response)
        size_bytes = self._position if stated is None else stated
        if self.size_bytes not in {None, size_bytes} or size_bytes > self._position:
            raise Unavailable(
                f"The server of {self.display_name} refuses a part of the file that should exist. Check the server.",
                code="source_unreadable",
            )
        self.size_bytes = size_bytes

    def _note_identity(self, identity: FileIdentity) -> None:
        """Record what the server says about the body. Raises SourceError if it says something else than before."""
        if self.identity is None:
            self.identity = identity
        elif not self.identity.matches(identity):
            raise SourceError(
                f"{self.display_name} was changed while it was read (its size, modification time or ETag differs). Start a new scenario"
                " for the new content.",
                code="source_changed",
            )
