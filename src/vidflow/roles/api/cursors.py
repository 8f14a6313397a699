"""Cursors: the place in a list where a page ends. Their text is opaque to clients."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Final

import msgspec
from litestar.params import QueryParameter

from vidflow.infra.postgres import history
from vidflow.infra.postgres.gaps import GapKey, GapRow
from vidflow.roles.api.faults import fault, faults_problem

MAX_CURSOR_CHARACTERS: Final = 200
_INT4: Final = 2**31 - 1
_INT8: Final = 2**63 - 1

AfterMove = Annotated[
    int,
    QueryParameter(
        ge=history.BEFORE_FIRST_TRANSITION,
        le=_INT4,
        description="`next` of the previous page: the number of its last transition",
    ),
]
AfterGap = Annotated[
    str | None,
    QueryParameter(max_length=MAX_CURSOR_CHARACTERS, description="the cursor `next` of the previous page"),
]


def encode_cursor(gap: GapRow) -> str:
    """Return the cursor of a page that ends with this gap."""
    key = msgspec.json.encode(GapKey(gap.after_frame, gap.from_s, gap.reason))
    return base64.urlsafe_b64encode(key).decode().rstrip("=")


def decode_cursor(cursor: str) -> GapKey:
    """Return the key of the gap that a page ended with. Raises a 400 problem if the text is not such a cursor."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        key = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=GapKey)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise _cursor_problem() from error
    if abs(key.after_frame) > _INT8 or not math.isfinite(key.from_s) or "\0" in key.reason:
        raise _cursor_problem()
    return key


def _cursor_problem() -> Exception:
    message = "Not a cursor of this list. Pass `next` of the previous page."
    return faults_problem(400, "request_malformed", [fault("after", message)])
