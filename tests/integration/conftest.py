"""Fixtures of the tests of tables, runners and workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.integration.delivery import emptied_database
from tests.integration.runner_harness import ControlPlane

from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.postgres.connection import Connection


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A connection to the module's database, with all tables empty. Some modules override this fixture."""
    with emptied_database(database_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def control_plane(kafka_settings: KafkaSettings) -> Iterator[ControlPlane]:
    """The leader's and the inbox's side of the topics, shared by all tests of a module."""
    with closing(ControlPlane(kafka_settings)) as control_plane:
        yield control_plane
