"""What many tests stand on: the real PostgreSQL and the real Kafka, one of each a session, and the sample data beside the checkout."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

POSTGRES_URL_VARIABLE = "VIDFLOW_TEST_POSTGRES_URL"
"""Names the server of a session of tests that runs others on broken code."""
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of sample clips and weights; a test that asks for it is skipped where the folder is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the sample data are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that was made for this session, or lent by the one that runs it; its database `vidflow` is empty."""
    if lent := os.environ.get(POSTGRES_URL_VARIABLE):
        yield lent
        return
    from vidflow.infra.embedded.postgres import EmbeddedPostgres  # noqa: PLC0415 - unit tests need no server

    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), notify=print, stop=Stop())
    try:
        yield server.start().url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def kafka_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """What clients of a broker are configured with that was made for this session; it has no topics."""
    from vidflow.infra.embedded.kafka import EmbeddedKafka  # noqa: PLC0415

    broker = EmbeddedKafka(
        tmp_path_factory.mktemp("kafka"),
        notify=print,
        stop=Stop(),
        cache=read_environment_variable("VIDFLOW_CACHE_DIR"),
    )
    try:
        yield broker.start().settings
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def _template_database(postgres_url: str) -> str:
    """The name of a database with today's schema, to be copied."""
    from vidflow.infra.postgres.migrations import migrate  # noqa: PLC0415

    name = f"template_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate(_replace_database(postgres_url, name), print)
    return name


@pytest.fixture(scope="module")
def database_url(postgres_url: str, _template_database: str) -> Iterator[str]:
    """The URL of a database with today's schema and nothing in it, made for this module of tests."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {_template_database}")
        yield _replace_database(postgres_url, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _replace_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()
