"""A vidflow's HTTP API as a client uses it: thin, typed, its problems turned into vidflow's own errors."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from vidflow.domain.errors import ErrorInfo, Unavailable, UserError


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


class Page(msgspec.Struct, frozen=True):
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
    """A connection to one vidflow. Raises UserError for what it refuses, Unavailable where it does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(base_url=self._url, timeout=10.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def is_local(self) -> bool:
        """Whether the server is on this machine, so that a path here is likely one there."""
        return urlsplit(self._url).hostname in {"127.0.0.1", "localhost", "::1"}

    def init(self, body: dict[str, Any]) -> ScenarioState:
        """Asks for a scenario."""
        return msgspec.json.decode(self._ask("POST", "/scenario/init", json=body), type=ScenarioState)

    def scenario(self, scenario_uuid: str) -> ScenarioState:
        """How it stands."""
        return msgspec.json.decode(self._ask("GET", f"/scenario/{scenario_uuid}"), type=ScenarioState)

    def shutdown(self, scenario_uuid: str) -> ScenarioState:
        """Asks for its end."""
        return msgspec.json.decode(self._ask("POST", f"/scenario/{scenario_uuid}/shutdown"), type=ScenarioState)

    def predictions(self, scenario_uuid: str, after: str | None, limit: int = 1000) -> Page:
        """The results behind the cursor `after`."""
        query = {"scenario_uuid": scenario_uuid, "limit": str(limit)} | ({"after": after} if after else {})
        return msgspec.json.decode(self._ask("GET", "/prediction", params=query), type=Page)

    def _ask(self, method: str, path: str, **parts: Any) -> bytes:  # noqa: ANN401 - what httpx takes
        try:
            answer = self._http.request(method, path, **parts)
        except httpx.TransportError as error:
            raise Unavailable(f"no vidflow answers at {self._url}: {error}; start one with: vidflow dev") from error
        if answer.is_success:
            return answer.content
        problem = _problem_of(answer)
        kind = UserError if answer.is_client_error else Unavailable
        raise kind(
            problem.detail or problem.title or f"{method} {path} answered {answer.status_code}", code=problem.code
        )


def _problem_of(answer: httpx.Response) -> _Problem:
    try:
        return msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        return _Problem(detail=f"the server answered {answer.status_code} without saying why")
