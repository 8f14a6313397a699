"""Watch the progress table: when frames were stored and scenarios ended, and the longest pause between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

import psycopg

POLL_S: Final = 0.01


class ProgressWatch:
    """Record the times (monotonic seconds) at which progress was seen."""

    def __init__(self, database_url: str) -> None:
        self.changed_at_s: list[float] = []
        self.over = threading.Event()
        self._url = database_url
        self._connection: psycopg.Connection[tuple[int, ...]] | None = None

    def watch(self) -> None:
        """Poll until `over` is set. An unreachable database counts as no progress."""
        previous: tuple[int, ...] | None = None
        while not self.over.wait(POLL_S):
            try:
                counts = self._read_counts()
            except psycopg.OperationalError:
                self._connection = None
                continue
            if previous is not None and counts != previous:
                self.changed_at_s.append(time.monotonic())
            previous = counts
        if self._connection is not None:
            self._connection.close()

    def longest_pause_s(self, since_s: float) -> float:
        """Return the longest time without progress from `since_s` to the last progress."""
        times_s = [since_s, *(time_s for time_s in self.changed_at_s if time_s > since_s)]
        return max((later - earlier for earlier, later in pairwise(times_s)), default=0.0)

    def first_change_after_s(self, since_s: float) -> float | None:
        """Return the seconds from `since_s` to the first progress after it, or None if there was none yet."""
        return next((time_s - since_s for time_s in self.changed_at_s if time_s > since_s), None)

    def _read_counts(self) -> tuple[int, ...]:
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=2)
        row = self._connection.execute(
            "SELECT sum(p.next_frame)::bigint, count(*) FILTER (WHERE p.closed) FROM scenario_progress p"
        ).fetchone()
        return row or ()


@contextmanager
def watched_progress(database_url: str) -> Iterator[ProgressWatch]:
    """Watch the progress while the block runs."""
    watch = ProgressWatch(database_url)
    thread = threading.Thread(target=watch.watch, name="progress watch")
    thread.start()
    try:
        yield watch
    finally:
        watch.over.set()
        thread.join()
