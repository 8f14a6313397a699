"""The names of the Kafka topics, and of the runner pools that are part of them."""

from __future__ import annotations

import re
from typing import Final

from vidflow.domain.errors import ParameterError

INIT_SCENARIO: Final = "init_scenario"
TO_DEPLOY: Final = "to_deploy"
RUNNER_EVENTS: Final = "runner_events"
RESULTS: Final = "results"
DEAD_LETTERS: Final = "dead_letters"

MAX_POOL_CHARACTERS: Final = 200
"""The limit of `Report.pool`. Kafka's limit for a topic name is 249."""
_POOL: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_POOL_CHARACTERS}}}")


def commands_topic(pool: str) -> str:
    """Return the topic of the commands for a pool of runners."""
    return f"{TO_DEPLOY}.{pool}"


def check_pool(name: str) -> None:
    """Raise ParameterError unless the pool name is valid. It becomes part of a topic name and of each report."""
    if not _POOL.fullmatch(name):
        shown = name if len(name) <= MAX_POOL_CHARACTERS else f"{name[:MAX_POOL_CHARACTERS]}…"
        raise ParameterError(
            f"Invalid pool name {shown!r}. Use 1 to {MAX_POOL_CHARACTERS} ASCII letters, digits, '.', '_' and '-'."
        )
