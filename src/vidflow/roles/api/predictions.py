"""Results over HTTP: pages of frames in order, for ended scenarios and for live ones."""

from __future__ import annotations

from typing import Annotated, Any, cast
from uuid import UUID

import msgspec
from litestar import Request, Response, get
from litestar.params import FromQuery, QueryParameter

from vidflow.domain.detections import FrameResult
from vidflow.domain.errors import ResultsRemoved, UnknownScenario
from vidflow.domain.messages import MAX_SAFE_INTEGER
from vidflow.infra.postgres import predictions
from vidflow.roles.api.context import Api, Limit
from vidflow.roles.api.etags import respond_with_etag
from vidflow.roles.api.problems import problem_responses
from vidflow.roles.api.schemas import PredictionPage

AfterFrame = Annotated[
    int,
    QueryParameter(
        ge=predictions.BEFORE_FIRST_FRAME,
        le=MAX_SAFE_INTEGER,
        description="`next` of the previous page: the number of its last frame",
    ),
]


@get("/prediction", sync_to_thread=True, tags=["predictions"], responses=problem_responses(400, 404, 410, 503))
def get_predictions(
    request: Request[Any, Any, Any],
    api: Api,
    scenario_uuid: FromQuery[UUID],
    after: AfterFrame = predictions.BEFORE_FIRST_FRAME,
    limit: Limit = 100,
) -> Response[PredictionPage]:
    """List the detections frame by frame. Until the first frame is stored, the page is empty."""
    with api.database.connection() as connection:
        page = predictions.read_result_page(connection, str(scenario_uuid), after, limit)
    if page is None:
        raise UnknownScenario(f"Scenario {scenario_uuid} not found.")
    if page.removed:
        raise ResultsRemoved(
            f"The results of scenario {scenario_uuid} were removed after their retention time. Run it again."
        )
    # The frames are stored as JSON, which is copied into the response as it is.
    items = cast("list[FrameResult]", msgspec.Raw(b"[" + b",".join(page.frames) + b"]"))
    return respond_with_etag(
        request, PredictionPage(items, None if page.complete else str(page.last_frame), page.complete)
    )
