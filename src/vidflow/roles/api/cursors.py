"""Cursors: the place in a list that a page ends at, as text that a client passes on and does not read."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Final

import msgspec
from litestar.params import QueryParameter

from vidflow.infra.postgres import history
from vidflow.infra.postgres.gaps import GapKey, StoredGap
from vidflow.roles.api.problems import problem
from vidflow.roles.api.schemas import FieldProblem

MAX_CURSOR_CHARACTERS: Final = 200
_INT4: Final = 2**31 - 1
_INT8: Final = 2**63 - 1

AfterMove = Annotated[
    int,
    QueryParameter(
        ge=history.BEFORE_FIRST_TRANSITION,
        le=_INT4,
        description="the cursor `next` of the page before: the number of its last move",
    ),
]
AfterGap = Annotated[
    str | None,
    QueryParameter(max_length=MAX_CURSOR_CHARACTERS, description="the cursor `next` of the page before"),
]


def encode_cursor(gap: StoredGap) -> str:
    """Return the cursor of a gap."""
    place = msgspec.json.encode(GapKey(gap.after_frame, gap.from_s, gap.reason))
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def decode_cursor(cursor: str) -> GapKey:
    """Return the place that a cursor stands for. Raises a problem where it is none of this API."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=GapKey)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise _cursor_problem() from error
    if abs(place.after_frame) > _INT8 or not math.isfinite(place.from_s) or "\0" in place.reason:
        raise _cursor_problem()
    return place


def _cursor_problem() -> Exception:
    detail = "after: this is not a cursor of this list; pass the `next` of the page before"
    return problem(400, "request_malformed", detail, errors=[FieldProblem("after", detail)])
