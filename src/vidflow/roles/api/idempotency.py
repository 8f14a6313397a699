"""Requests with an Idempotency-Key, which a client may repeat until it gets an answer: the change is made once.

The header follows the IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header-07). Its value may
also stand without quotes, as many clients send it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from litestar import MediaType, Request, Response

from vidflow.domain.access import WriteScope
from vidflow.infra.postgres.connection import Connection
from vidflow.infra.postgres.idempotency import KEPT_HOURS, Answer, add_answer, find_answer, try_lock_key
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.roles.api.problems import problem

MAX_KEY_CHARACTERS: Final = 255
HEADER: Final = "Idempotency-Key"
KEY_TEXT: Final = r'"[!#-\[\]-~]{1,255}"|[!#-+\--\[\]-~]{1,255}'
"""Pattern of the header's value: visible ASCII without quotes and backslashes, and outside quotes without commas."""
_KEY: Final = re.compile(KEY_TEXT)


class IdempotentRequest(NamedTuple):
    """The key of a request, and the hash of what it asks for."""

    key: str
    sha256: bytes


def read_key(request: Request[Any, Any, Any], body: bytes) -> IdempotentRequest | None:
    """Return the key of a request, None if it has none. Raises a 400 problem for an invalid one, or several."""
    values = request.headers.getall(HEADER, [])
    if not values:
        return None
    match = _KEY.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None:
        raise problem(
            400,
            "idempotency_key_invalid",
            f"{HEADER}: Send one key of 1 to {MAX_KEY_CHARACTERS} visible ASCII characters, such as a new uuid for each change.",
        )
    asked = f"{request.method} {request.url.path}\n".encode() + body
    return IdempotentRequest(match[0].strip('"'), hashlib.sha256(asked).digest())


def find_earlier_answer(connection: Connection, scope: WriteScope, request: IdempotentRequest) -> Response[Any] | None:
    """Return the answer to the same request of this owner, None if it is the first. Raises a 422 problem if it was another request."""
    found = find_answer(connection, scope, request.key)
    if found is None:
        return None
    request_sha256, answer = found
    if request_sha256 != request.sha256:
        raise problem(
            422,
            "idempotency_key_reused",
            f"{HEADER}: In the last {KEPT_HOURS} hours, this key came with another request. Use a new key for each change.",
        )
    return respond(answer)


def answer_once(
    connection: Connection, scope: WriteScope, request: IdempotentRequest, change: Callable[[Connection], Answer]
) -> Response[Any]:
    """Make the change and keep its answer in one transaction, or return the earlier answer.

    Raises a 409 problem while the same request is under way, and a 422 problem as `find_earlier_answer`.
    """
    with connection.transaction():
        if not try_lock_key(connection, scope, request.key):
            raise problem(
                409,
                "idempotency_key_in_use",
                f"{HEADER}: A request with this key is under way. Send it again in a second to get its answer.",
            )
        earlier = find_earlier_answer(connection, scope, request)
        if earlier is not None:
            return earlier
        answer = change(connection)
        add_answer(connection, scope, request.key, request.sha256, answer)
        crashpoint("api.before_commit")
    crashpoint("api.after_commit")
    return respond(answer)


def respond(answer: Answer) -> Response[Any]:
    """Return the answer as a response."""
    headers = {"Location": answer.location} if answer.location is not None else {}
    return Response(answer.body, status_code=answer.status, headers=headers, media_type=MediaType.JSON)
