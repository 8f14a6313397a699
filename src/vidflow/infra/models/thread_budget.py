"""How many threads a model may use. The number changes while it runs, as other workers come and go on the machine."""

from __future__ import annotations


class ThreadBudget:
    """The number of threads that a model may use. Any thread may set it, and read it."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
