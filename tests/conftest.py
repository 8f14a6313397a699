"""Shared fixtures: a real PostgreSQL and a real Kafka per session, and the sample data next to the checkout.

`--order-seed N` runs the tests in a random order, the same one for each N: files, classes and tests are shuffled, each within its parent.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import psycopg
import pytest

from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop
from vidflow.settings import read_environment_variable

POSTGRES_URL_VARIABLE = "VIDFLOW_TEST_POSTGRES_URL"
"""The server to use, set by a test session that runs other sessions on mutated code."""
SHARED = Path(__file__).parents[2] / "shared"
NO_SHARED = f"no sample data at {SHARED}"

hypothesis.settings.register_profile("vidflow", deadline=None)  # on a busy machine, a deadline fails tests that hold
hypothesis.settings.load_profile("vidflow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--order-seed", type=int, default=None, help="shuffle the tests, in the same way for each number")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the tests if `--order-seed` is given. Pytest then groups those that share a parameter of a wider scope."""
    seed = config.getoption("--order-seed")
    if seed is not None:
        chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        ranks: dict[object, float] = {}
        items.sort(key=lambda item: [ranks.setdefault(node, chance.random()) for node in item.listchain()])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report in one line which tests were skipped for want of the sample data."""
    skipped: Sequence[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    names = [report.nodeid for report in skipped if NO_SHARED in str(report.longrepr)]
    if names:
        files = ", ".join(sorted({name.partition("::")[0] for name in names}))
        terminalreporter.write_line(f"{len(names)} tests were skipped: {NO_SHARED}. They are in {files}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of sample clips and weights. Tests that use it are skipped if it does not exist."""
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED)
    return SHARED


@pytest.fixture(scope="session")
def rtsp_server() -> None:
    """Skip tests that need a camera where there is none."""
    from tests.rtsp.camera import require_server  # noqa: PLC0415

    require_server()


@pytest.fixture(scope="session")
def rtmp_server() -> None:
    """Skip tests that need an RTMP server where there is none."""
    from tests.rtmp.server import require_server  # noqa: PLC0415

    require_server()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server started for this session, or of the outer session's server. Its database `vidflow` is empty."""
    if outer_url := os.environ.get(POSTGRES_URL_VARIABLE):
        yield outer_url
        return
    from vidflow.infra.embedded.postgres import EmbeddedPostgres  # noqa: PLC0415 - unit tests need no server

    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), notify=print, stop=Stop())
    try:
        yield server.start().url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def kafka_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """The settings of a broker started for this session. It has no topics."""
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
    """The name of a template database with the current schema."""
    from vidflow.infra.postgres.migrations import migrate  # noqa: PLC0415

    name = f"template_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate(_replace_database(postgres_url, name), print)
    return name


@pytest.fixture(scope="module")
def database_url(postgres_url: str, _template_database: str) -> Iterator[str]:
    """The URL of an empty database with the current schema, created for the test module."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {_template_database}")
        yield _replace_database(postgres_url, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _replace_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()
