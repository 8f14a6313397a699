"""What the tests of the tables stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.delivery import emptied

from vidflow.infra.postgres import Connection


@pytest.fixture
def tables(database_url: str) -> Iterator[Connection]:
    """A connection to the module's database, whose tables are empty. A module with needs of its own has its own."""
    with emptied(database_url) as connection:
        yield connection
