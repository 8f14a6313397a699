"""What the tests of the tables, and those of runners and workers, stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.delivery import emptied
from tests.integration.runners import Stage

from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.connection import Connection


@pytest.fixture
def tables(database_url: str) -> Iterator[Connection]:
    """A connection to the module's database, whose tables are empty. A module with needs of its own has its own."""
    with emptied(database_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def stage(kafka_settings: KafkaSettings) -> Iterator[Stage]:
    """The topics as the leader and the inbox see them, for all tests of a module."""
    stage = Stage(kafka_settings)
    yield stage
    stage.close()
