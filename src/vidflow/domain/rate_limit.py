"""A limit of requests per second: a bucket that fills at a constant rate and from which each request takes one token."""

from __future__ import annotations

import msgspec


class Bucket(msgspec.Struct, frozen=True):
    """`left`: the requests that may come at once, at the time `at_s` of a monotonic clock."""

    left: float
    at_s: float


class RateLimit(msgspec.Struct, frozen=True):
    """At most `per_s` requests a second in the long run, and as many at once as one second allows, at least one."""

    per_s: float

    @property
    def burst(self) -> float:
        """The requests that may come at once."""
        return max(self.per_s, 1.0)

    def fill(self, bucket: Bucket | None, now_s: float) -> Bucket:
        """Return the bucket as it is now, full if there is none yet."""
        if bucket is None:
            return Bucket(self.burst, now_s)
        elapsed_s = max(0.0, now_s - bucket.at_s)
        return Bucket(min(self.burst, bucket.left + elapsed_s * self.per_s), now_s)

    def take(self, bucket: Bucket) -> Bucket | None:
        """Return the bucket after one request, None if the request has to wait."""
        return Bucket(bucket.left - 1, bucket.at_s) if bucket.left >= 1 else None

    def wait_s(self, bucket: Bucket) -> float:
        """Return how long it takes until the next request may come."""
        return max(0.0, (1 - bucket.left) / self.per_s)
