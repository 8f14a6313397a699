"""Results over HTTP: pages of frames in their order, for readers that come late and for those that follow live."""

from __future__ import annotations

from typing import Annotated, Any, cast
from uuid import UUID

import msgspec
from litestar import Request, Response, get
from litestar.params import FromQuery, QueryParameter

from vidflow.domain.detections import FrameResult
from vidflow.domain.errors import ResultsRemoved, UnknownScenario
from vidflow.domain.messages import MAX_FRAME
from vidflow.infra.postgres import predictions
from vidflow.roles.api.answers import tagged
from vidflow.roles.api.context import Api, Limit
from vidflow.roles.api.problems import documented
from vidflow.roles.api.schemas import PredictionPage

After = Annotated[
    int,
    QueryParameter(
        ge=predictions.BEFORE_THE_FIRST,
        le=MAX_FRAME,
        description="the cursor `next` of the page before: the number of its last frame",
    ),
]


@get("/prediction", sync_to_thread=True, tags=["predictions"], responses=documented(400, 404, 410, 503))
def get_predictions(
    request: Request[Any, Any, Any],
    api: Api,
    scenario_uuid: FromQuery[UUID],
    after: After = predictions.BEFORE_THE_FIRST,
    limit: Limit = 100,
) -> Response[PredictionPage]:
    """What was seen, frame by frame. Before the first frame is stored: a page without items."""
    with api.database.connection() as connection:
        found = predictions.page(connection, str(scenario_uuid), after, limit)
    if found is None:
        raise UnknownScenario(f"there is no scenario {scenario_uuid}; those that there are: GET /scenario")
    if found.removed:
        raise ResultsRemoved(
            f"the results of {scenario_uuid} were removed, since it ended longer ago than they are kept: run it again"
        )
    # Raw: the items are JSON already, and go into the answer as they are.
    items = cast("list[FrameResult]", msgspec.Raw(b"[" + b",".join(found.frames) + b"]"))
    return tagged(request, PredictionPage(items, None if found.complete else str(found.last_frame), found.complete))
