"""What a holder may trust of its lease, and what a runner's silence means. Not where a lease is kept, nor who asks.

All times are one process's own monotonic seconds: no two clocks are ever compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

LEASE_S: Final = 2.0
"""How long a lease lasts behind the renewal that the database has noted."""
RENEW_S: Final = 0.5
"""How often its holder renews it."""
MARGIN_S: Final = 0.5
"""How long before its end a holder stops to trust it: a write begun in the last moment still ends in time."""
STANDBY_POLL_S: Final = 0.2
"""How often a standby looks whether it is over."""
RUNNER_LEASE_S: Final = 3.0
PROBE_MAX_AGE_S: Final = 1.0
"""A probe older than this does not count: two in a row have failed to come back."""


def compute_trusted_until(attempted_s: float) -> float:
    """Until when a lease may be trusted that was got or renewed by an attempt begun at `attempted_s`.

    Counted from before the attempt: the database set the end at some moment after it, so this is never too late.
    """
    return attempted_s + LEASE_S - MARGIN_S


def is_runner_lease_expired(
    last_seen_s: float, probes_received_since_s: float | None, now_s: float, lease_s: float = RUNNER_LEASE_S
) -> bool:
    """Whether a runner's silence since `last_seen_s` means that it is gone.

    Silence is silence only while the leader hears its own probes. After a break (None: it lasts) the runner has a whole
    lease anew, counted from the moment since when they are heard again.
    """
    return probes_received_since_s is not None and now_s - max(last_seen_s, probes_received_since_s) >= lease_s


class ProbeWatch(msgspec.Struct, frozen=True):
    """Which of the leader's probes have come back: of each partition the newest one's time, and since when without a break."""

    partitions: frozenset[int]
    newest_s: Mapping[int, float] = {}
    unbroken_since_s: Mapping[int, float] = {}

    def record_probe(self, partition: int, sent_s: float, now_s: float) -> ProbeWatch:
        """The watch after a probe, sent at `sent_s`, came back at `now_s`. One that comes too late changes nothing."""
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
        """Since when the probes of all partitions are heard without a break; None while one's is missing."""
        if not self.partitions or any(
            now_s - self.newest_s.get(partition, float("-inf")) > PROBE_MAX_AGE_S for partition in self.partitions
        ):
            return None
        return max(self.unbroken_since_s[partition] for partition in self.partitions)
