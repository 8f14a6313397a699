"""Requests with a strict body: JSON of exactly the handler's type, without numbers in quotes or unknown fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.concurrency import sync_to_thread
from litestar.datastructures import State
from litestar.exceptions import InternalServerException
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.types import Empty

from vidflow.contract import FieldProblem
from vidflow.roles.api import json_bodies
from vidflow.roles.api.idempotency import IdempotentRequest, read_key
from vidflow.roles.api.init_checks import build_problem
from vidflow.roles.api.json_bodies import decode_body
from vidflow.roles.api.problems import problem
from vidflow.settings import ApiOptions

FindFaults = Callable[[Mapping[str, Any], ApiOptions], list[FieldProblem]]
FIND_FAULTS: Final = "find_faults"
"""The option of a handler with its FindFaults: what is wrong with the valid fields of a body that has invalid ones."""
MAY_BE_REPEATED: Final = "may_be_repeated"
"""The option of a handler whose requests may have an Idempotency-Key."""
OPTIONS: Final = "options"
"""The name of the ApiOptions in the app's state."""

MAX_BODY_BYTES = 256 * 1024
"""Far more than any request needs, yet small enough that the scenario's commands fit into one Kafka message."""


class StrictRequest(Request[Any, Any, State]):
    """A request that decodes its body as the handler's type. Litestar itself would convert a decoded body leniently.

    `idempotent`: its Idempotency-Key, None if it has none.
    """

    idempotent: IdempotentRequest | None = None

    async def body(self) -> bytes:
        """Return the whole body. Raises a 400 problem if the client disconnects before its end, which is no server fault."""
        try:
            return await super().body()
        except InternalServerException as error:  # what Litestar raises then
            raise problem(
                400,
                "body_incomplete",
                "The connection ended before the end of the body. Send the request again.",
            ) from error

    async def json(self) -> Any:  # noqa: ANN401 - Litestar's signature
        """Return the body as the handler's type. Raises a 415, 400 or 422 problem; a 422 names the field."""
        if self._json is Empty:
            media_type, _ = self.content_type
            if media_type != "application/json":
                raise problem(
                    415, "not_json", "The body must be JSON. Send it with the header Content-Type: application/json."
                )
            field = self.route_handler.parsed_data_field
            body_type = field.annotation if field is not None else msgspec.Struct
            body = await self.body()
            if self.route_handler.opt.get(MAY_BE_REPEATED):
                self.idempotent = read_key(self, body)
            self._json = decode_body(body, body_type)
            if self._json is None:
                self._json = Empty
                raise await sync_to_thread(self._build_problem, body, body_type)
        return self._json

    def _build_problem(self, body: bytes, body_type: type[msgspec.Struct]) -> ProblemDetailsException:
        """Return the problem with the faults of the body's types, and those that the handler finds in its other fields."""
        invalid = json_bodies.find_faults(body, body_type)
        find_others: FindFaults | None = self.route_handler.opt.get(FIND_FAULTS)
        options = self.app.state[OPTIONS]
        others = find_others(invalid.values, options) if find_others is not None else []
        return build_problem([*invalid.faults, *others], options)
