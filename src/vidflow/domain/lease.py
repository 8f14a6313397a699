"""Lease arithmetic: how long a holder may trust its lease, and when a runner's lease has expired.

All times are monotonic seconds of a single process; clocks are never compared. infra/postgres stores the leases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

LEASE_S: Final = 2.0
"""Term of a lease, counted from the renewal that the database recorded."""
RENEW_S: Final = 0.5
"""Interval at which the holder renews its lease."""
MARGIN_S: Final = 0.5
"""How long before its end a holder stops trusting its lease, so that a write begun at the last moment still ends in time."""
STANDBY_POLL_S: Final = 0.2
"""Interval at which a standby checks whether the lease has expired."""
PROBE_MAX_AGE_S: Final = 1.0
"""An older probe does not count. By then, two consecutive probes have failed to return."""


def compute_trusted_until(attempted_s: float) -> float:
    """Return until when to trust a lease that an attempt begun at `attempted_s` acquired or renewed.

    The database set the end of the lease after `attempted_s`, so the result is never too late.
    """
    return attempted_s + LEASE_S - MARGIN_S


def is_runner_lease_expired(
    last_seen_s: float, probes_received_since_s: float | None, now_s: float, lease_s: float
) -> bool:
    """Return whether the lease of a runner last heard from at `last_seen_s` has expired.

    Silence counts only while the leader receives its own probes. After an interruption (None: it still lasts) the runner gets
    a whole new lease, counted from `probes_received_since_s`.
    """
    return probes_received_since_s is not None and now_s - max(last_seen_s, probes_received_since_s) >= lease_s


class ProbeWatch(msgspec.Struct, frozen=True):
    """The leader's returned probes. For each partition: when the newest was sent, and since when they return without interruption."""

    partitions: frozenset[int]
    newest_s: Mapping[int, float] = {}
    unbroken_since_s: Mapping[int, float] = {}

    def record_probe(self, partition: int, sent_s: float, now_s: float) -> ProbeWatch:
        """Return the watch after a probe sent at `sent_s` returned at `now_s`. A probe that returns too late has no effect."""
        if now_s - sent_s > PROBE_MAX_AGE_S or partition not in self.partitions:
            return self
        unbroken = now_s - self.newest_s.get(partition, float("-inf")) <= PROBE_MAX_AGE_S
        since_s = self.unbroken_since_s[partition] if unbroken else now_s
        return ProbeWatch(
            self.partitions,
            {**self.newest_s, partition: max(sent_s, self.newest_s.get(partition, sent_s))},
            {**self.unbroken_since_s, partition: since_s},
        )

    def probes_received_since(self, now_s: float) -> float | None:
        """Return since when the probes of all partitions return without interruption, None if those of one are missing."""
        if not self.partitions or any(
            now_s - self.newest_s.get(partition, float("-inf")) > PROBE_MAX_AGE_S for partition in self.partitions
        ):
            return None
        return max(self.unbroken_since_s[partition] for partition in self.partitions)
