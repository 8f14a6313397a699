"""Results over HTTP: pages of frames in their order, for readers that come late and for those that follow live."""

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
        description="the cursor `next` of the page before: the number of its last frame",
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
    """What was seen, frame by frame. Before the first frame is stored: a page without items."""
    with api.database.connection() as connection:
        found = predictions.read_result_page(connection, str(scenario_uuid), after, limit)
    if found is None:
        raise UnknownScenario(f"there is no scenario {scenario_uuid}; those that there are: GET /scenario")
    if found.removed:
        raise ResultsRemoved(
            f"the results of {scenario_uuid} were removed, since it ended longer ago than they are kept: run it again"
        )
    # Raw: the items are JSON already, and go into the answer as they are.
    items = cast("list[FrameResult]", msgspec.Raw(b"[" + b",".join(found.frames) + b"]"))
    return respond_with_etag(
        request, PredictionPage(items, None if found.complete else str(found.last_frame), found.complete)
    )
