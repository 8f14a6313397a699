"""How many threads a model may use. The number changes while it runs, as other workers come and go on the machine."""

from __future__ import annotations

import time
from typing import Final

RESIZE_SHARE: Final = 0.05
"""The largest share of the time that a model may spend on changing its number of threads."""


class ThreadBudget:
    """The number of threads that a model may use. Any thread may set it, and read it."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads


class ThreadCount:
    """Decides when a model whose change of threads takes time follows its budget."""

    def __init__(self, budget: ThreadBudget) -> None:
        self._budget = budget
        self.current = budget.threads
        self._wanted, self._since_s = self.current, time.monotonic()

    def find_due(self, change_s: float) -> int | None:
        """Return the number of threads to change to, or None to keep it. `change_s`: how long a change takes.

        The budget must have been the same for a time of which a change is only a small share.
        """
        now_s = time.monotonic()
        if self._budget.threads != self._wanted:
            self._wanted, self._since_s = self._budget.threads, now_s
        is_due = self._wanted != self.current and now_s - self._since_s >= change_s / RESIZE_SHARE
        return self._wanted if is_due else None
