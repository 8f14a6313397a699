"""How many threads a model may use. The number changes while it runs, as other workers come and go on the machine."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ThreadBudget:
    """The number of threads that a model may use. Any thread may set it, and read it."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads


class ThreadsCommand(msgspec.Struct, frozen=True, tag="threads"):
    """The runner's order: how many threads the model may use from now on."""

    threads: Annotated[int, msgspec.Meta(ge=1)]
