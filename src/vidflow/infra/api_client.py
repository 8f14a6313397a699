"""A vidflow's HTTP API as a client uses it: thin, typed, its problems turned into vidflow's own errors."""

from __future__ import annotations

from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from vidflow.domain.errors import ErrorInfo, InternalError, Unavailable, UserError, VidflowError

T = TypeVar("T")


class ScenarioState(msgspec.Struct, frozen=True):
    """What a client needs to know of a scenario."""

    scenario_uuid: str
    state: str
    outcome: str | None
    error: ErrorInfo | None
    attempt: int
    frames_stored: int
    frames_expected: int | None
    waiting_for: str | None


class _Transition(msgspec.Struct, frozen=True):
    detail: str | None


class _History(msgspec.Struct, frozen=True):
    items: list[_Transition]


class RawPredictionPage(msgspec.Struct, frozen=True):
    """A page of results; each item is left as the JSON that the server sent."""

    items: list[msgspec.Raw]
    next: str | None
    complete: bool


class _Problem(msgspec.Struct, frozen=True):
    """RFC 9457."""

    title: str = ""
    detail: str = ""
    code: str = "refused"


class ApiClient:
    """A connection to one vidflow.

    Raises UserError for what it refuses, Unavailable if it does not answer, InternalError if it fails (500).
    """

    def __init__(self, url: str) -> None:
        """Raises UserError where `url` is none."""
        self._url = url.rstrip("/")
        try:
            self._http = httpx.Client(base_url=self._url, timeout=10.0)
        except httpx.InvalidURL as error:
            raise UserError(f"--url is no URL ({error}); write it as http://host:port") from error
        if self._http.base_url.scheme not in {"http", "https"} or not self._http.base_url.host:
            raise UserError("--url is no URL of a vidflow; write it as http://host:port")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that a path here is likely one there."""
        return self._http.base_url.host in {"127.0.0.1", "localhost", "::1"}

    def init_scenario(self, body: dict[str, Any]) -> ScenarioState:
        """Asks for a scenario."""
        return self._request(ScenarioState, "POST", "/scenario/init", json=body)

    def get_scenario(self, scenario_uuid: str) -> ScenarioState:
        """How it stands."""
        return self._request(ScenarioState, "GET", f"/scenario/{scenario_uuid}")

    def last_detail(self, scenario_uuid: str) -> str | None:
        """Return the latest worker output (a traceback) in the scenario's history, None if there is none."""
        moves = self._request(_History, "GET", f"/scenario/{scenario_uuid}/history").items
        return next((move.detail for move in reversed(moves) if move.detail), None)

    def shut_down(self, scenario_uuid: str) -> ScenarioState:
        """Asks for its end."""
        return self._request(ScenarioState, "POST", f"/scenario/{scenario_uuid}/shutdown")

    def get_predictions(self, scenario_uuid: str, after: str | None, limit: int = 1000) -> RawPredictionPage:
        """The results behind the cursor `after`."""
        query = {"scenario_uuid": scenario_uuid, "limit": str(limit)} | ({"after": after} if after else {})
        return self._request(RawPredictionPage, "GET", "/prediction", params=query)

    def _request(self, kind: type[T], method: str, path: str, **parts: Any) -> T:  # noqa: ANN401 - what httpx takes
        try:
            return msgspec.json.decode(self._send(method, path, **parts), type=kind)
        except msgspec.DecodeError as error:
            raise UserError(
                f"what answers at {self._url} is no vidflow of this version ({error}); see --url"
            ) from error

    def _send(self, method: str, path: str, **parts: Any) -> bytes:  # noqa: ANN401 - what httpx takes
        try:
            answer = self._http.request(method, path, **parts)
        except httpx.TransportError as error:
            raise Unavailable(f"no vidflow answers at {self._url}: {error}; start one with: vidflow dev") from error
        if answer.is_success:
            return answer.content
        problem = _decode_problem(answer)
        kind: type[VidflowError] = UserError if answer.is_client_error else Unavailable
        if answer.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = InternalError
        raise kind(
            problem.detail or problem.title or f"{method} {path} answered {answer.status_code}", code=problem.code
        )


def _decode_problem(answer: httpx.Response) -> _Problem:
    try:
        return msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        return _Problem(detail=f"the server answered {answer.status_code} without saying why")
