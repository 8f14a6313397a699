"""Quotas of owners: requests a second to this process, and scenarios that have not ended.

Requests without a token and those of administrators have no quota. The fields RateLimit and RateLimit-Policy are those of the IETF draft
"RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers-10).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from litestar.types import Message, Send

from vidflow.domain.access import ReadScope, WriteScope
from vidflow.domain.rate_limit import Bucket, RateLimit
from vidflow.infra.postgres import scenarios
from vidflow.infra.postgres.connection import Connection
from vidflow.roles.api.problems import problem
from vidflow.settings import ApiOptions

MAX_OWNERS: Final = 10_000
"""Owners whose state is kept. One who comes back later starts with a full quota."""


class RequestQuota:
    """The requests a second of each owner. Use only on the event loop's thread."""

    def __init__(self, options: ApiOptions, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limit = None if options.owner_requests_per_s is None else RateLimit(options.owner_requests_per_s)
        self._clock_s = clock_s
        self._buckets: dict[str, Bucket] = {}

    def take(self, scope: ReadScope) -> dict[str, str]:
        """Count a request and return the headers that tell the client its quota. Raises a 429 problem if there is none left."""
        if self._limit is None or scope.is_for_all:
            return {}
        filled = self._limit.fill(self._buckets.pop(scope.owner, None), self._clock_s())
        taken = self._limit.take(filled)
        self._buckets[scope.owner] = taken or filled
        if len(self._buckets) > MAX_OWNERS:
            del self._buckets[next(iter(self._buckets))]
        headers = self._headers(self._limit, taken or filled)
        if taken is not None:
            return headers
        error = problem(
            429,
            "rate_limited",
            f"Owner {scope.owner} may send {self._limit.per_s:g} requests a second. Wait as long as Retry-After says, then send it again.",
        )
        error.headers = headers | {"Retry-After": str(math.ceil(self._limit.wait_s(filled)))}
        raise error

    def _headers(self, limit: RateLimit, bucket: Bucket) -> dict[str, str]:
        window_s = max(1, math.ceil(limit.burst / limit.per_s))
        return {
            "RateLimit-Policy": f'"requests";q={math.floor(limit.burst)};w={window_s}',
            "RateLimit": f'"requests";r={math.floor(bucket.left)};t={math.ceil(limit.wait_s(bucket))}',
        }


def add_headers(send: Send, headers: dict[str, str]) -> Send:
    """Return `send`, wrapped to add these headers to the response."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(item for item in raw if item[0] not in names)]
        await send(message)

    return send_with_headers


class ScenarioQuota:
    """The unfinished scenarios of each owner, read at most once a second. In between, this process counts those that it creates.

    Not thread-safe: Admission holds its lock.
    """

    def __init__(self, options: ApiOptions, refresh_s: float) -> None:
        self._limit = options.owner_scenarios
        self._refresh_s = refresh_s
        self._counts: dict[str, tuple[int, float]] = {}
        self._in_progress: Counter[str] = Counter()

    def begin(self, tx: Connection, scope: WriteScope) -> None:
        """Count a scenario that is about to be stored. Raises a 429 problem if the owner has as many as it may have."""
        if self._limit is None or scope.is_for_all:
            return
        count, read_s = self._counts.pop(scope.owner, (0, -math.inf))
        if time.monotonic() - read_s >= self._refresh_s:
            # Scenarios in progress may be counted twice: for a second the count may be too high, but it is never too low.
            count = scenarios.count_unfinished_of_owner(tx, scope.owner) + self._in_progress[scope.owner]
            read_s = time.monotonic()
        is_full = count >= self._limit
        self._counts[scope.owner] = (count if is_full else count + 1, read_s)
        if len(self._counts) > MAX_OWNERS:
            del self._counts[next(iter(self._counts))]
        if is_full:
            raise problem(
                429,
                "quota_reached",
                f"Owner {scope.owner} has {count} scenarios that wait or run, and may have {self._limit}. Try again when one has ended, or "
                "end one. The operator sets the limit (--owner-scenarios).",
            )
        self._in_progress[scope.owner] += 1

    def end(self, scope: WriteScope) -> None:
        """Note that a scenario that `begin` has let through is stored, or has failed to be."""
        if self._limit is None or scope.is_for_all:
            return
        if self._in_progress[scope.owner] > 1:
            self._in_progress[scope.owner] -= 1
        else:
            del self._in_progress[scope.owner]
