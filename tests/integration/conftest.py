"""What the tests of the tables, and those of runners and workers, stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.delivery import emptied_database
from tests.integration.runner_harness import ControlPlane

from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.connection import Connection


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection to the module's database, whose tables are empty. A module with needs of its own has its own."""
    with emptied_database(database_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def control_plane(kafka_settings: KafkaSettings) -> Iterator[ControlPlane]:
    """The topics as the leader and the inbox see them, for all tests of a module."""
    stage = ControlPlane(kafka_settings)
    yield stage
    stage.close()
