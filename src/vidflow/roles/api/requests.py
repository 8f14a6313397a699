"""A request whose body is taken strictly: JSON of exactly the handler's type, no number in quotes, no unknown field."""

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
"""Far more than any request needs, and so little that what becomes of it fits into one Kafka message."""


class StrictRequest(Request[Any, Any, State]):
    """Litestar converts a decoded body leniently; here it is decoded as the type that the handler names, or refused."""

    async def body(self) -> bytes:
        """Return the whole body. Raises a problem where the client hung up within it, which is not a fault of the server."""
        try:
            return await super().body()
        except InternalServerException as error:  # Litestar's name for it
            raise problem(400, "body_incomplete", "the connection ended before the whole body had come") from error

    async def json(self) -> Any:  # noqa: ANN401 - as the class above has it
        """The body as the handler's type. Raises a problem: 415, 400 or 422 with the field's name."""
        if self._json is Empty:
            kind, _ = self.content_type
            if kind != "application/json":
                raise problem(
                    415, "not_json", "the body must be JSON; send it with the header Content-Type: application/json"
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
    """What each field of a body may be, from the descriptions of its type."""
    info = msgspec.inspect.type_info(body_type)
    if not isinstance(info, msgspec.inspect.StructType):
        return {}
    described = {
        field.encode_name: field.type for field in info.fields if isinstance(field.type, msgspec.inspect.Metadata)
    }
    return {name: str((kind.extra_json_schema or {}).get("description", "")) for name, kind in described.items()}
