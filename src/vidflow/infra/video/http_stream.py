"""The body of an HTTP(S) URL as a live stream: one request, read as it comes, and lost when its connection is."""

from __future__ import annotations

import http.client
from http import HTTPStatus

from vidflow.domain.errors import Unavailable
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import http_answers
from vidflow.infra.video.http_connection import Response
from vidflow.infra.video.http_requests import (
    HttpRequests,
    TemporaryStatus,
    build_no_response_error,
    describe_failure,
)
from vidflow.infra.video.source_connection import Interruption
from vidflow.infra.video.source_file import SourceFile


class HttpStream(SourceFile):
    """The body of a response. `url` is its place after redirects, `display_name` the one before without secrets."""

    def __init__(self, url: str, access: SourceAccess, interruption: Interruption) -> None:
        """Request the body. Raises SourceError, Unavailable or ReadingStopped."""
        super().__init__("stream", can_seek=False)
        requests = HttpRequests(url, access, interruption)
        self.display_name = requests.display_name
        self._response = _request(requests)
        self.url = requests.target
        self.content_type = self._response.headers.get_content_type()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def _read(self, size: int) -> bytes:
        try:
            data = self._response.read(size)
        except TimeoutError as error:
            raise Unavailable(f"{self.display_name} sends nothing ({error}).", code="source_timeout") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(
                f"The connection to {self.display_name} broke ({describe_failure(error)}).",
                code="source_unreachable",
            ) from error
        self._position += len(data)
        return data

    def _find_size(self) -> int | None:
        return None


def _request(requests: HttpRequests) -> Response:
    try:
        response = requests.get({})
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise build_no_response_error(requests.display_name, error) from error
    if response.status == HTTPStatus.OK:
        return response
    response.close()
    if http_answers.is_temporary(response.status):
        raise build_no_response_error(requests.display_name, TemporaryStatus(response.status))
    raise http_answers.build_status_error(response.status, requests.display_name, was_read=False)
