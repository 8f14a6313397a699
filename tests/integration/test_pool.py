"""Requests and roles survive every loss of the server or the network, with a real api and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
from vidflow.infra.postgres.lease_holder import Lease, run_as_holder
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.postgres.pool import UNCHECKED_IDLE_S, Pool, PoolBusy
from vidflow.infra.process.stopping import Stop
from vidflow.roles.api import database
from vidflow.settings import ApiOptions

CONCURRENCY = 16
REQUESTS = 80


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that the tests may stop."""
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
    """A client of an api that connects to the server through the proxy."""
    url = urlsplit(server.url)
    proxied_url = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
    with ready_api(ApiOptions(database_url=proxied_url)) as client:
        yield client


def statuses(client: httpx.Client, uuid: str, requests: int = REQUESTS) -> set[int]:
    """Send concurrent reads and writes that use every pooled connection. Return the status codes, with 201 as 200."""

    def send(number: int) -> int:
        match number % 4:
            case 0:
                return client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"}).status_code - 1
            case 1:
                return client.get("/scenario", params={"limit": 5}).status_code
            case 2:
                return client.get("/prediction", params={"scenario_uuid": uuid}).status_code
        return client.get(f"/scenario/{uuid}").status_code

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        return set(threads.map(send, range(requests)))


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


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.parametrize("loss", [restart, terminate, restore, drop, hang_up])
def test_no_request_fails_after_the_server_is_back(
    client: httpx.Client,
    server: EmbeddedPostgres,
    proxy: Proxy,
    tmp_path: Path,
    loss: Callable[[EmbeddedPostgres, Proxy, Path], None],
) -> None:
    uuid = create_scenario(client)["scenario_uuid"]
    assert statuses(client, uuid) == {200}
    loss(server, proxy, tmp_path)
    assert not Stop().wait(2 * UNCHECKED_IDLE_S)  # connections used more recently are not checked
    assert statuses(client, uuid) == {200}


@pytest.mark.long
@pytest.mark.fault
def test_requests_during_an_outage_do_not_make_later_requests_fail(
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


def test_a_read_that_takes_too_long_is_cancelled_and_reported(
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
    with closing(Pool(database_url, name="vidflow pool", size=2, statement_timeout_s=5)) as pool:
        yield pool


def test_a_pool_opens_at_most_size_connections(pool: Pool) -> None:
    with pool.connection(1), pool.connection(1):
        assert pool.read_usage().in_use == 2
        with pytest.raises(PoolBusy), pool.connection(0.01):
            pass
    with pool.connection(1) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert pool.read_usage().in_use == 0


def test_a_connection_with_an_open_transaction_is_not_reused(pool: Pool) -> None:
    with pool.connection(1) as first:
        first.execute("BEGIN")
    assert first.closed
    with pool.connection(1) as second:
        assert second is not first


def test_a_connection_that_became_read_only_is_not_reused(pool: Pool) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection(1) as connection:  # noqa: PT012
        connection.execute("SET default_transaction_read_only = on")
        connection.execute("DELETE FROM runners")
    with pool.connection(1) as connection:
        connection.execute("DELETE FROM runners")


def test_waiting_for_a_lost_answer_times_out(server: EmbeddedPostgres, proxy: Proxy) -> None:
    url = urlsplit(server.url)
    proxied_url = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
    with connect(proxied_url, name="test", response_timeout_s=0.3) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        proxy.drop()
        with pytest.raises(psycopg.OperationalError, match=r"no answer within 0\.3 s") as caught:
            connection.execute("SELECT 1")
        assert is_away(caught.value)
        assert connection.closed


@pytest.mark.fault
@pytest.mark.long
def test_the_work_of_a_lease_holder_continues_after_every_loss(
    server: EmbeddedPostgres, proxy: Proxy, tmp_path: Path
) -> None:
    """Covers all connections of a role: for its lease, its fenced writes and its reads."""
    url = urlsplit(server.url)
    proxied_url = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{proxy.port}").geturl()
    stop, writes, reads = Stop(), [0], [0]

    def write(lease: Lease) -> None:
        while lease.is_held() and not stop.requested:
            with lease.fenced() as tx:
                tx.execute("DELETE FROM runners")
            writes[0] += 1
            stop.wait(0.01)

    def read_continuously(connection: Connection) -> None:
        while not stop.wait(0.01):
            connection.execute("SELECT 1")
            reads[0] += 1

    with ThreadPoolExecutor(2) as threads:
        writer = threads.submit(run_as_holder, proxied_url, "tested", stop, write)
        reader = threads.submit(
            lambda: run_with_reconnect(
                proxied_url, name="vidflow reads", stop=stop, pause_s=0.1, body=read_continuously, response_timeout_s=1
            )
        )
        try:
            for loss in (terminate_all, drop, restart, restore, hang_up):
                counts = writes[0], reads[0]
                wait_until(lambda counts=counts: writes[0] > counts[0] and reads[0] > counts[1], "both threads work")
                loss(server, proxy, tmp_path)
                counts = writes[0], reads[0]
                wait_until(
                    lambda counts=counts: writes[0] > counts[0] and reads[0] > counts[1],
                    f"both threads continue after {loss.__name__}",
                )
        finally:
            stop.request()
        writer.result(10)
        reader.result(10)
