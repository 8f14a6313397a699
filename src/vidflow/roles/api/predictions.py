"""Results over HTTP: pages of frames in order, for ended scenarios and for live ones."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from litestar import Request, Response, get
from litestar.params import FromQuery, QueryParameter

from vidflow.contract import PredictionPage
from vidflow.domain.errors import ResultsRemoved, UnknownScenario
from vidflow.domain.messages import MAX_SAFE_INTEGER
from vidflow.infra.postgres import results
from vidflow.roles.api.bodies import build_prediction_page
from vidflow.roles.api.context import Api, Limit, Reader
from vidflow.roles.api.etags import respond_with_etag
from vidflow.roles.api.problems import problem_responses

AfterFrame = Annotated[
    int,
    QueryParameter(
        ge=results.BEFORE_FIRST_FRAME,
        le=MAX_SAFE_INTEGER,
        description="`next` of the previous page: the number of its last frame",
    ),
]


@get("/prediction", sync_to_thread=True, tags=["predictions"], responses=problem_responses(400, 401, 404, 410, 503))
def get_predictions(
    request: Request[Any, Any, Any],
    api: Api,
    reader: Reader,
    scenario_uuid: FromQuery[UUID],
    after: AfterFrame = results.BEFORE_FIRST_FRAME,
    limit: Limit = 100,
) -> Response[PredictionPage]:
    """List the detections frame by frame. Until the first frame is stored, the page is empty."""
    with api.database.connection() as connection:
        page = results.read_result_page(connection, reader, str(scenario_uuid), after, limit)
    if page is None:
        raise UnknownScenario(f"Scenario {scenario_uuid} not found.")
    if page.removed:
        raise ResultsRemoved(
            f"The results of scenario {scenario_uuid} were removed after their retention time. Run it again."
        )
    return respond_with_etag(request, build_prediction_page(page))
