"""A small typed client of vidflow's HTTP API, used by the command line. Problem responses are raised as vidflow's own errors."""

from __future__ import annotations

from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from vidflow.contract import HistoryPage, InitScenario, RawPredictionPage, ScenarioResponse
from vidflow.domain.access import parse_token_id
from vidflow.domain.errors import InternalError, Unavailable, UserError, VidflowError

T = TypeVar("T")

_JSON: Final = {"Content-Type": "application/json"}


class _Problem(msgspec.Struct, frozen=True):
    """What is read of a problem response. RFC 9457 requires no field, and a proxy in front of vidflow answers with others."""

    detail: str = ""
    title: str = ""
    code: str = ""


class ApiClient:
    """A client of one vidflow server.

    Requests raise UserError if the server refuses them (4xx), Unavailable if it does not answer, InternalError if it fails (500).
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        """`token`: sent with each request. Raises UserError if `url` is not a valid HTTP URL, or `token` is not a token."""
        if token is not None and parse_token_id(token) is None:
            raise UserError(
                "VIDFLOW_TOKEN (--token) is not a token. It begins with vf_ and is printed by vidflow token create."
            )
        self._url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self._url, timeout=10.0, headers={"Authorization": f"Bearer {token}"} if token else {}
            )
        except httpx.InvalidURL as error:
            raise UserError(f"--url is not a URL ({error}). Write http://host:port.") from error
        if self._http.base_url.scheme not in {"http", "https"} or not self._http.base_url.host:
            raise UserError("--url is not an HTTP URL. Write http://host:port.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that it probably has the same files."""
        return self._http.base_url.host in {"127.0.0.1", "localhost", "::1"}

    def init_scenario(self, request: InitScenario) -> ScenarioResponse:
        """Create a scenario."""
        return self._request(
            ScenarioResponse, "POST", "/scenario/init", content=msgspec.json.encode(request), headers=_JSON
        )

    def get_scenario(self, scenario_uuid: str) -> ScenarioResponse:
        """Return a scenario's current state."""
        return self._request(ScenarioResponse, "GET", f"/scenario/{scenario_uuid}")

    def last_detail(self, scenario_uuid: str) -> str | None:
        """Return the latest worker output (a traceback) in the scenario's history, or None."""
        transitions = self._request(HistoryPage, "GET", f"/scenario/{scenario_uuid}/history").items
        return next((transition.detail for transition in reversed(transitions) if transition.detail), None)

    def shut_down(self, scenario_uuid: str) -> ScenarioResponse:
        """Request a scenario's shutdown."""
        return self._request(ScenarioResponse, "POST", f"/scenario/{scenario_uuid}/shutdown")

    def get_predictions(self, scenario_uuid: str, after: str | None, limit: int = 1000) -> RawPredictionPage:
        """Return a page of results after the cursor `after`, or the first page."""
        query = {"scenario_uuid": scenario_uuid, "limit": str(limit)} | ({"after": after} if after else {})
        return self._request(RawPredictionPage, "GET", "/prediction", params=query)

    def _request(self, kind: type[T], method: str, path: str, **options: Any) -> T:  # noqa: ANN401 - httpx's options
        try:
            return msgspec.json.decode(self._send(method, path, **options), type=kind)
        except msgspec.DecodeError as error:
            raise UserError(
                f"The server at {self._url} is not a vidflow of this version ({error}). Check --url."
            ) from error

    def _send(self, method: str, path: str, **options: Any) -> bytes:  # noqa: ANN401 - httpx's options
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unavailable(f"No vidflow answers at {self._url}: {error}. Start one with: vidflow dev") from error
        if response.is_success:
            return response.content
        kind: type[VidflowError] = UserError if response.is_client_error else Unavailable
        if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = InternalError
        problem = _read_problem(response)
        reason = problem.detail or problem.title or f"The server answered {response.status_code} without a reason."
        raise kind(reason, code=problem.code) if problem.code else kind(reason, code="refused")


def _read_problem(response: httpx.Response) -> _Problem:
    try:
        return msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        return _Problem()
