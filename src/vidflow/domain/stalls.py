"""Which partitions of a topic have messages that do not arrive. Used by consumers that must be replaced then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STALL_TIMEOUT_S: Final = 30.0
"""A consumer that lags and has not advanced for this long will never recover: its client has lost the partition's leader."""


class StallWatch:
    """Since when each lagging partition has been at the same position. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._lagging: dict[int, tuple[int, float]] = {}

    def observe(self, lagging: Mapping[int, int], now_s: float) -> None:
        """Record the positions of all partitions that have not reached their ends. The others count as advancing."""
        self._lagging = {
            partition: self._keep_since(partition, position, now_s) for partition, position in lagging.items()
        }

    def _keep_since(self, partition: int, position: int, now_s: float) -> tuple[int, float]:
        last_position, since_s = self._lagging.get(partition, (position, now_s))
        return (position, since_s if position == last_position else now_s)

    def list_stalled(self, now_s: float, for_s: float) -> list[int]:
        """Return the partitions that have lagged at the same position for at least `for_s`."""
        return [partition for partition, (_, since_s) in self._lagging.items() if now_s - since_s >= for_s]
