"""Requests of one URL: redirects are followed, logins answered, and failures explained."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.redaction import redact
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.source_tls import build_certificate_error, build_tls_context
from vidflow.infra.video import http_answers
from vidflow.infra.video.http_connection import Response, get
from vidflow.infra.video.source_connection import Interruption

MAX_REDIRECTS: Final = 10


class TemporaryStatus(http.client.HTTPException):
    """The server answered, but only a later request may succeed."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answers {http_answers.describe_status(status)}")


class HttpRequests:
    """GET requests of one URL, each over its own connection. `target` is where the last one was redirected to."""

    def __init__(self, url: str, access: SourceAccess, interruption: Interruption) -> None:
        self.url, self.target = url, url
        self.display_name = redact(url)
        self._access, self._interruption = access, interruption
        self._tls: ssl.SSLContext | None = None
        self._authorization: str | None = None

    def get(self, headers: Mapping[str, str]) -> Response:
        """Return the final response to a request with these headers.

        Raises OSError, http.client.HTTPException, ValueError for an invalid URL, SourceError for a place that is not allowed, or
        ReadingStopped.
        """
        target = self.target
        for _ in range(MAX_REDIRECTS):
            response = self._get(target, headers)
            if response.status == HTTPStatus.UNAUTHORIZED and self._authorize(response, target):
                response.close()
                response = self._get(target, headers)
            location = http_answers.read_location(response)
            if location is None:
                if not response.status < HTTPStatus.BAD_REQUEST and self.target != self.url:
                    response.close()
                    target = self.target = self.url
                    continue
                self.target = target
                return response
            response.close()
            target = http_answers.resolve_reference(target, location, self._access, self.display_name)
        raise SourceError(
            f"{self.display_name} redirects more than {MAX_REDIRECTS} times. Give the final URL.", code="source_denied"
        )

    def forget_redirect(self) -> bool:
        """Request the original URL again, since the place of a redirect may have expired. Return whether there was one."""
        was_redirected, self.target = self.target != self.url, self.url
        return was_redirected

    def _get(self, url: str, headers: Mapping[str, str]) -> Response:
        if self._tls is None and urlsplit(url).scheme.lower() == "https":
            self._tls = build_tls_context(self._access)
        if self._authorization and find_origin(url) == find_origin(self.url):
            headers = {**headers, "Authorization": self._authorization}
        return get(url, headers, self._access, self._tls, self._interruption, self.display_name)

    def _authorize(self, response: Response, url: str) -> bool:
        """Prepare the URL's login for the server's challenge. Return whether there is something new to try."""
        parts = urlsplit(self.url)
        if parts.username is None or find_origin(url) != find_origin(self.url):
            return False
        authorization = http_answers.build_authorization(
            unquote(parts.username), unquote(parts.password or ""), url, response
        )
        is_new = authorization is not None and authorization != self._authorization
        self._authorization = authorization
        return is_new


def is_temporary_failure(error: Exception) -> bool:
    """Return whether a later request may get a response."""
    return not isinstance(error, ssl.SSLCertVerificationError | UnicodeError)


def build_no_response_error(display_name: str, error: Exception) -> SourceError | Unavailable:
    """Return the error to raise for a request without a response."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return build_certificate_error(display_name, error)
    if isinstance(error, UnicodeError):
        return SourceError(f"{display_name} has no valid host. Correct the URL.", code="source_invalid")
    return Unavailable(
        f"{display_name} does not answer ({describe_failure(error)}). Check that its server is running and that the runner can"
        " reach it.",
        code="source_unreachable",
    )


def describe_failure(error: Exception) -> str:
    """Return what happened to a request, in a few words."""
    if isinstance(error, http.client.IncompleteRead):
        return "it ended too early"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, TemporaryStatus):
        return "it sent no valid HTTP response"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def find_origin(url: str) -> tuple[str, str | None, int | None]:
    """Return the scheme, host and port of a URL, which a login is for."""
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname, parts.port
