"""Scenarios over HTTP: create, read, list and shut them down. The orchestrator leads them through their lifecycle."""

from __future__ import annotations

from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import psycopg
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, QueryParameter

from vidflow.contract import ChangeScenario, GapPage, HistoryPage, InitScenario, ScenarioPage, ScenarioResponse
from vidflow.domain.access import ReadScope, WriteScope
from vidflow.domain.errors import Unavailable, UnknownScenario
from vidflow.domain.frame_rate import format_frame_rate
from vidflow.domain.messages import Parameters
from vidflow.domain.scenario import Decision, State, build_shutdown_request, decide
from vidflow.infra.postgres import audit, gaps, history, lifecycle, scenarios
from vidflow.infra.postgres.connection import FENCED_TIMEOUT_SETTING, Connection
from vidflow.infra.postgres.errors import is_conflict
from vidflow.infra.postgres.idempotency import Answer
from vidflow.roles.api.bodies import build_gap, build_scenario, build_transition
from vidflow.roles.api.context import Api, Limit, Reader, Writer
from vidflow.roles.api.cursors import AfterGap, AfterMove, decode_cursor, encode_cursor
from vidflow.roles.api.etags import respond_with_etag
from vidflow.roles.api.idempotency import answer_once, find_earlier_answer, respond
from vidflow.roles.api.init_checks import CheckedScenario, check_request, find_faults
from vidflow.roles.api.problems import problem, problem_responses
from vidflow.roles.api.requests import FIND_FAULTS, MAY_BE_REPEATED, StrictRequest

_MAX_SHUTDOWN_ATTEMPTS: Final = 20
"""How often the leader may overtake a shutdown request before the client is asked to repeat it."""

_EXAMPLES: Final = [
    Example(summary="A file, two frames a second, the default model", value={"source": "/videos/bikes.mp4", "fps": 2}),
    Example(
        summary="A camera, persons only",
        value={
            "source": "rtsp://camera.example/stream",
            "model": "yolox_nano",
            "fps": 5,
            "priority": 10,
            "parameters": {"score_threshold": 0.4, "labels": ["person"], "on_poison": "skip"},
        },
    ),
]
_CHANGES: Final = [Example(summary="Start it before the others", value={"priority": 100})]


@post(
    "/init",
    sync_to_thread=True,
    responses=problem_responses(400, 401, 403, 413, 415, 422, 429, 503),
    opt={FIND_FAULTS: find_faults, MAY_BE_REPEATED: True},
)
def init_scenario(
    request: StrictRequest, api: Api, writer: Writer, data: Annotated[InitScenario, Body(examples=_EXAMPLES)]
) -> Response[ScenarioResponse]:
    """Create a scenario: run a model over a source. After the 201, the scenario cannot be lost.

    With the header Idempotency-Key, the same request may be repeated until it is answered, for 24 hours: one scenario is created.
    """
    if request.idempotent is not None:
        with api.database.connection() as connection:
            earlier = find_earlier_answer(connection, writer, request.idempotent)
        if earlier is not None:
            return earlier
    new = _build_new(data, check_request(data, api.options))

    def create(tx: Connection) -> Answer:
        created = build_scenario(scenarios.insert_scenario(tx, writer, new))
        location = f"/scenario/{created.scenario_uuid}"
        return Answer(status=201, location=location, body=msgspec.json.encode(created))

    with (
        api.database.connection() as connection,
        api.admission.admit(connection, writer, scenarios.estimate_size_bytes(new)),
    ):
        if request.idempotent is None:
            return respond(create(connection))
        return answer_once(connection, writer, request.idempotent, create)


def _build_new(data: InitScenario, checked: CheckedScenario) -> scenarios.NewScenario:
    return scenarios.NewScenario(
        source=checked.source,
        model=data.model,
        model_sha256=checked.model_sha256,
        fps=format_frame_rate(checked.fps),
        priority=data.priority,
        pool=data.pool,
        parameters=Parameters(
            score_threshold=data.parameters.score_threshold,
            labels=data.parameters.labels,
            on_poison=data.parameters.on_poison,
            on_corrupt=data.parameters.on_corrupt,
            follow=data.parameters.follow,
            follow_s=data.parameters.follow_s,
            duration_s=data.parameters.duration_s,
            end_at=data.parameters.end_at,
            give_up_after_s=data.parameters.give_up_after_s,
            stream=data.parameters.stream,
            live=data.parameters.live,
        ),
    )


@get("/{scenario_uuid:str}", sync_to_thread=True, responses=problem_responses(400, 401, 404, 503))
def get_scenario(
    request: Request[Any, Any, Any], api: Api, reader: Reader, scenario_uuid: FromPath[UUID]
) -> Response[ScenarioResponse]:
    """Get the current state of a scenario."""
    with api.database.connection() as connection:
        return respond_with_etag(request, _read_scenario(connection, reader, scenario_uuid))


@get("/", sync_to_thread=True, responses=problem_responses(400, 401, 503))
def list_scenarios(
    api: Api,
    reader: Reader,
    in_state: Annotated[State | None, QueryParameter(name="state", description="only scenarios in this state")] = None,
    after: Annotated[UUID | None, QueryParameter(description="the cursor `next` of the previous page")] = None,
    limit: Limit = 50,
) -> ScenarioPage:
    """List scenarios, the newest first."""
    with api.database.connection() as connection:
        page, has_more = scenarios.read_scenario_page(
            connection, reader, in_state, str(after) if after else None, limit
        )
    return ScenarioPage([build_scenario(scenario) for scenario in page], page[-1].scenario_uuid if has_more else None)


@post(
    "/{scenario_uuid:str}/shutdown",
    sync_to_thread=True,
    status_code=200,
    responses=problem_responses(400, 401, 403, 404, 503),
)
def shut_down(api: Api, writer: Writer, scenario_uuid: FromPath[UUID]) -> ScenarioResponse:
    """Request the end of a scenario. It is no error to repeat the request, or to send it after the scenario has ended."""
    with api.database.connection() as connection:
        _request_shutdown(connection, writer, str(scenario_uuid))
        return _read_scenario(connection, writer, scenario_uuid)


@patch(
    "/{scenario_uuid:str}",
    sync_to_thread=True,
    responses=problem_responses(400, 401, 403, 404, 409, 413, 415, 422, 503),
)
def change_scenario(
    api: Api, writer: Writer, scenario_uuid: FromPath[UUID], data: Annotated[ChangeScenario, Body(examples=_CHANGES)]
) -> ScenarioResponse:
    """Change the priority or the pool of a scenario that waits for a runner. The pool is fixed once the scenario was deployed."""
    with api.database.connection() as connection:
        is_changed = scenarios.change_waiting(
            connection, writer, str(scenario_uuid), priority=data.priority, pool=data.pool
        )
        scenario = _read_scenario(connection, writer, scenario_uuid)
    if is_changed:
        return scenario
    reason = (
        f"It was deployed in pool {scenario.pool} before, and stays there."
        if scenario.state is State.INIT_STARTUP
        else f"It is {scenario.state}, and only a waiting one can be changed."
    )
    raise problem(409, "scenario_not_changeable", f"Scenario {scenario_uuid} cannot be changed so. {reason}")


@delete(
    "/{scenario_uuid:str}",
    sync_to_thread=True,
    status_code=204,
    responses=problem_responses(400, 401, 403, 404, 409, 503),
)
def delete_scenario(api: Api, writer: Writer, scenario_uuid: FromPath[UUID]) -> None:
    """Delete a scenario that is inactive, with its results, history and gaps. Its uuid is unknown from then on."""
    with api.database.connection() as connection:
        if scenarios.delete_scenario(connection, writer, str(scenario_uuid)):
            return
        scenario = _read_scenario(connection, writer, scenario_uuid)
    raise problem(
        409,
        "scenario_not_ended",
        f"Scenario {scenario_uuid} has not ended: it is {scenario.state}. Request its shutdown, and delete it once it is inactive.",
    )


@get("/{scenario_uuid:str}/history", sync_to_thread=True, responses=problem_responses(400, 401, 404, 503))
def get_history(
    api: Api,
    reader: Reader,
    scenario_uuid: FromPath[UUID],
    after: AfterMove = history.BEFORE_FIRST_TRANSITION,
    limit: Limit = 100,
) -> HistoryPage:
    """List the transitions of a scenario: from which state to which, why and when."""
    with api.database.connection() as connection:
        page, has_more = history.read_history_page(connection, reader, str(scenario_uuid), after, limit)
        if not page:
            _require_scenario(connection, reader, scenario_uuid)
    return HistoryPage([build_transition(row) for row in page], str(page[-1].number) if has_more else None)


@get("/{scenario_uuid:str}/gaps", sync_to_thread=True, responses=problem_responses(400, 401, 404, 503))
def get_gaps(
    api: Api, reader: Reader, scenario_uuid: FromPath[UUID], after: AfterGap = None, limit: Limit = 100
) -> GapPage:
    """List the gaps of a scenario: where frames are missing that should have been kept, and why."""
    key = gaps.BEFORE_FIRST_GAP if after is None else decode_cursor(after)
    with api.database.connection() as connection:
        page, has_more = gaps.read_gap_page(connection, reader, str(scenario_uuid), key, limit)
        if not page:
            _require_scenario(connection, reader, scenario_uuid)
    return GapPage([build_gap(row) for row in page], encode_cursor(page[-1]) if has_more else None)


def _require_scenario(connection: Connection, scope: ReadScope, scenario_uuid: UUID) -> None:
    if not scenarios.exists(connection, scope, str(scenario_uuid)):
        raise _unknown_scenario(scenario_uuid)


def _request_shutdown(connection: Connection, scope: WriteScope, scenario_uuid: str) -> None:
    """Move the scenario to its shutdown. If the leader moves it at the same time, read it and decide again."""
    for _ in range(_MAX_SHUTDOWN_ATTEMPTS):
        scenario = lifecycle.read_scenario(connection, scope, scenario_uuid)
        if scenario is None:
            raise _unknown_scenario(scenario_uuid)
        decision = decide(scenario, build_shutdown_request())
        if decision.after is None or _try_move(connection, scope, decision):
            return
    raise Unavailable(f"Scenario {scenario_uuid} changes too often at the moment. Request its shutdown again.")


def _try_move(connection: Connection, scope: WriteScope, decision: Decision) -> bool:
    try:
        with connection.transaction():
            # A process frozen in this transaction would lock out the leader.
            connection.execute(f"SET LOCAL {FENCED_TIMEOUT_SETTING}")
            if not lifecycle.write_decisions(connection, [decision]):
                return False
            audit.add_entry(connection, scope, "shutdown_requested", decision.before.scenario_uuid)
            return True
    except psycopg.Error as error:
        if is_conflict(error):
            return False
        raise


def _read_scenario(connection: Connection, scope: ReadScope, scenario_uuid: UUID) -> ScenarioResponse:
    scenario = scenarios.find_scenario(connection, scope, str(scenario_uuid))
    if scenario is None:
        raise _unknown_scenario(scenario_uuid)
    return build_scenario(scenario)


def _unknown_scenario(scenario_uuid: UUID | str) -> UnknownScenario:
    return UnknownScenario(f"Scenario {scenario_uuid} not found.")


def router() -> Router:
    """Return the routes under /scenario."""
    return Router(
        "/scenario",
        route_handlers=[
            init_scenario,
            get_scenario,
            list_scenarios,
            shut_down,
            change_scenario,
            delete_scenario,
            get_history,
            get_gaps,
        ],
        tags=["scenarios"],
    )
