"""Requests with a strict body: JSON of exactly the handler's type, without numbers in quotes or unknown fields."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import InternalServerException
from litestar.types import Empty

from vidflow.roles.api.problems import body_problem, problem

MAX_BODY_BYTES = 256 * 1024
"""Far more than any request needs, yet small enough that the scenario's commands fit into one Kafka message."""


class StrictRequest(Request[Any, Any, State]):
    """A request that decodes its body as the handler's type. Litestar itself would convert a decoded body leniently."""

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
            body_type: type = field.annotation if field is not None else object
            try:
                self._json = msgspec.json.decode(await self.body(), type=body_type)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise body_problem(error, _hints(body_type)) from error
        return self._json


@cache
def _hints(body_type: type) -> dict[str, str]:
    """Return the allowed values of each field of a body, from the descriptions in its type."""
    info = msgspec.inspect.type_info(body_type)
    if not isinstance(info, msgspec.inspect.StructType):
        return {}
    described = {
        field.encode_name: field.type for field in info.fields if isinstance(field.type, msgspec.inspect.Metadata)
    }
    return {name: str((type_.extra_json_schema or {}).get("description", "")) for name, type_ in described.items()}
