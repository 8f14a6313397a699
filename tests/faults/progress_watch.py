"""Watches what is stored, from beside: when frames came and scenarios ended, and how long nothing of that happened."""

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
    """The moments (monotonic) at which there was more than before."""

    def __init__(self, database_url: str) -> None:
        self.changed_at_s: list[float] = []
        self.over = threading.Event()
        self._url = database_url
        self._connection: psycopg.Connection[tuple[int, ...]] | None = None

    def watch(self) -> None:
        """Looks until it is over; a database that is away has nothing new."""
        seen: tuple[int, ...] | None = None
        while not self.over.wait(POLL_S):
            try:
                now = self._look()
            except psycopg.OperationalError:
                self._connection = None
                continue
            if seen is not None and now != seen:
                self.changed_at_s.append(time.monotonic())
            seen = now
        if self._connection is not None:
            self._connection.close()

    def longest_pause_s(self, since_s: float) -> float:
        """The longest time from then on in which nothing was stored and nothing ended, until it last did."""
        moments = [since_s, *(moment for moment in self.changed_at_s if moment > since_s)]
        return max((later - earlier for earlier, later in pairwise(moments)), default=0.0)

    def first_change_after_s(self, since_s: float) -> float | None:
        """How long after then something was stored; None while nothing was."""
        return next((moment - since_s for moment in self.changed_at_s if moment > since_s), None)

    def _look(self) -> tuple[int, ...]:
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=2)
        row = self._connection.execute(
            "SELECT sum(p.next_frame)::bigint, count(*) FILTER (WHERE p.closed) FROM scenario_progress p"
        ).fetchone()
        return row or ()


@contextmanager
def watched_progress(database_url: str) -> Iterator[ProgressWatch]:
    """Watches while the block lasts."""
    flow = ProgressWatch(database_url)
    thread = threading.Thread(target=flow.watch, name="watches the flow")
    thread.start()
    try:
        yield flow
    finally:
        flow.over.set()
        thread.join()
