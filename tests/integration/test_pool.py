"""Whatever becomes of the server or the network, no request gets a connection that has died. A real api, a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from tests.faults.proxy import Proxy
from tests.integration.api_server import SOURCE_URL, assert_problem, create_scenario, ready_api, wait_until

from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.postgres import backup
from vidflow.infra.postgres.connection import Connection, connect, run_with_reconnect
from vidflow.infra.postgres.errors import is_away
from vidflow.infra.postgres.lease import Lease, run_as_holder
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.postgres.pool import UNCHECKED_IDLE_S, Pool, PoolBusy
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import database
from vidflow.settings import ApiOptions

AT_ONCE = 16
REQUESTS = 80


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that may be stopped."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), notify=print, stop=Stop()).start()
    try:
        migrate(server.url, print)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def proxy(server: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(lambda: server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def client(server: EmbeddedPostgres, proxy: Proxy) -> Iterator[httpx.Client]:
    """An api that reaches the server through the proxy."""
    url = urlsplit(server.url)
    through = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
    with ready_api(ApiOptions(database_url=through)) as client:
        yield client


def statuses(client: httpx.Client, uuid: str, requests: int = REQUESTS) -> set[int]:
    """Many requests at once, reads and writes, so that every pooled connection is used."""

    def ask(number: int) -> int:
        match number % 4:
            case 0:
                return client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"}).status_code - 1
            case 1:
                return client.get("/scenario", params={"limit": 5}).status_code
            case 2:
                return client.get("/prediction", params={"scenario_uuid": uuid}).status_code
        return client.get(f"/scenario/{uuid}").status_code

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return set(threads.map(ask, range(requests)))


def restart(server: EmbeddedPostgres, _proxy: Proxy, _folder: Path) -> None:
    process = server.process
    assert process is not None
    process.kill()
    process.wait()
    server.start()


def terminate(server: EmbeddedPostgres, _proxy: Proxy, _folder: Path) -> None:
    with psycopg.connect(server.url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'vidflow api'")


def terminate_all(server: EmbeddedPostgres, _proxy: Proxy, _folder: Path) -> None:
    with psycopg.connect(server.url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type LIKE 'client%'"
        )


def restore(server: EmbeddedPostgres, _proxy: Proxy, folder: Path) -> None:
    backup.write_backup(server.url, folder / "backup", replace=False, notify=print)
    backup.restore(server.url, folder / "backup", replace=True, notify=print)


def drop(_server: EmbeddedPostgres, proxy: Proxy, _folder: Path) -> None:
    proxy.drop()


def hang_up(_server: EmbeddedPostgres, proxy: Proxy, _folder: Path) -> None:
    proxy.hang_up()


@pytest.mark.fault
@pytest.mark.parametrize("loss", [restart, terminate, restore, drop, hang_up])
def test_no_request_fails_once_the_server_answers_again(
    client: httpx.Client,
    server: EmbeddedPostgres,
    proxy: Proxy,
    tmp_path: Path,
    loss: Callable[[EmbeddedPostgres, Proxy, Path], None],
) -> None:
    uuid = create_scenario(client)["scenario_uuid"]
    assert statuses(client, uuid) == {200}
    loss(server, proxy, tmp_path)
    assert not Stop().wait(2 * UNCHECKED_IDLE_S)  # a connection lost so soon after its use is lost as one in use
    assert statuses(client, uuid) == {200}


@pytest.mark.fault
def test_requests_that_come_while_the_server_is_away_make_none_fail_that_come_later(
    client: httpx.Client, server: EmbeddedPostgres
) -> None:
    uuid = create_scenario(client)["scenario_uuid"]
    process = server.process
    assert process is not None
    process.kill()
    process.wait()
    assert 503 in statuses(client, uuid, 8)
    server.start()
    assert statuses(client, uuid) == {200}


def test_a_read_that_takes_too_long_is_ended_and_says_so(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 0.3)
    with ready_api(ApiOptions(database_url=server.url)) as client:
        uuid = create_scenario(client)["scenario_uuid"]
        with psycopg.connect(server.url) as other:
            other.execute("LOCK TABLE scenarios IN ACCESS EXCLUSIVE MODE")
            answer = client.get(f"/scenario/{uuid}")
            assert_problem(answer, 503, "database_timeout")
            assert answer.headers["retry-after"] == "1"
        assert client.get(f"/scenario/{uuid}").status_code == 200


@pytest.fixture
def pool(database_url: str) -> Iterator[Pool]:
    pool = Pool(database_url, name="vidflow pool", size=2, statement_timeout_s=5)
    yield pool
    pool.close()


def test_a_pool_has_no_more_connections_than_its_size(pool: Pool) -> None:
    with pool.connection(1), pool.connection(1):
        assert pool.read_usage().in_use == 2
        with pytest.raises(PoolBusy), pool.connection(0.01):
            pass
    with pool.connection(1) as one:
        assert one.execute("SELECT 1").fetchone() == (1,)
    assert pool.read_usage().in_use == 0


def test_a_connection_in_a_broken_transaction_is_not_given_out_again(pool: Pool) -> None:
    with pool.connection(1) as one:
        one.execute("BEGIN")
        first = one
    assert first.closed
    with pool.connection(1) as another:
        assert another is not first


def test_a_connection_that_turned_read_only_is_not_given_out_again(pool: Pool) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection(1) as one:  # noqa: PT012
        one.execute("SET default_transaction_read_only = on")
        one.execute("DELETE FROM runners")
    with pool.connection(1) as another:
        another.execute("DELETE FROM runners")


def test_an_answer_that_was_lost_on_the_way_is_not_waited_for_for_ever(server: EmbeddedPostgres, proxy: Proxy) -> None:
    url = urlsplit(server.url)
    through = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
    with connect(through, name="test", response_timeout_s=0.3) as tables:
        assert tables.execute("SELECT 1").fetchone() == (1,)
        proxy.drop()
        with pytest.raises(psycopg.OperationalError, match=r"no answer within 0\.3 s") as caught:
            tables.execute("SELECT 1")
        assert is_away(caught.value)
        assert tables.closed


@pytest.mark.fault
def test_a_lease_s_work_goes_on_after_every_loss(server: EmbeddedPostgres, proxy: Proxy, tmp_path: Path) -> None:
    """Whatever a role holds of connections: its lease's, its fenced writes', its reads'."""
    url = urlsplit(server.url)
    through = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
    stop, written, read = Stop(), [0], [0]

    def lead(lease: Lease) -> None:
        while lease.is_held() and not stop.requested:
            with lease.fenced() as tx:
                tx.execute("DELETE FROM runners")
            written[0] += 1
            stop.wait(0.01)

    def look(tables: Connection) -> None:
        while not stop.wait(0.01):
            tables.execute("SELECT 1")
            read[0] += 1

    with ThreadPoolExecutor(2) as threads:
        leading = threads.submit(run_as_holder, through, "tested", stop, lead)
        looking = threads.submit(
            lambda: run_with_reconnect(
                through, name="vidflow looks", stop=stop, pause_s=0.1, body=look, response_timeout_s=1
            )
        )
        try:
            for loss in (terminate_all, drop, restart, restore, hang_up):
                before = written[0], read[0]
                wait_until(lambda before=before: written[0] > before[0] and read[0] > before[1], "both work")
                loss(server, proxy, tmp_path)
                before = written[0], read[0]
                wait_until(
                    lambda before=before: written[0] > before[0] and read[0] > before[1],
                    f"both go on after {loss.__name__}",
                )
        finally:
            stop.request()
        leading.result(10)
        looking.result(10)
