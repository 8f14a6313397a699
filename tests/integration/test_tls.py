"""PostgreSQL by TLS with `sslmode=verify-full`: who is trusted, and what is said of who is not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from tests.integration.api_server import create_scenario, ready_api
from tests.integration.certificates import CertificateAuthority
from tests.integration.cli_process import run_command
from tests.integration.pgbouncer import running_pgbouncer
from tests.integration.postgres_tls import running_tls_proxy

from vidflow.domain.errors import SetupError
from vidflow.infra.postgres import migrations
from vidflow.infra.postgres.connection import connect
from vidflow.settings import ApiOptions


class TlsServers:
    """A server by TLS, with one certificate after another; the URLs by which it is reached."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.url = url
        ours, other = CertificateAuthority(folder, "ours"), CertificateAuthority(folder, "other")
        self.ours, self.other = ours.ca, other.ca
        self.certificates = {
            "good": ours.issue("good", "DNS:localhost"),
            "of another host": ours.issue("host", "DNS:db.example"),
            "expired": ours.issue("expired", "DNS:localhost", days=-1),
        }
        port = urlsplit(url).port or 0
        self.ports = {
            name: stack.enter_context(running_tls_proxy(port, one)) for name, one in self.certificates.items()
        }
        self.ports["without TLS"] = port

    def url_of(self, name: str, root: Path, mode: str = "verify-full", port: int = 0) -> str:
        parts = urlsplit(self.url)
        query = urlencode({"sslmode": mode, "sslrootcert": str(root), "hostaddr": "127.0.0.1"})
        place = f"{parts.username}:{parts.password}@localhost:{port or self.ports[name]}"
        return parts._replace(netloc=place, query=query).geturl()


@pytest.fixture(scope="module")
def tls_servers(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServers]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    with ExitStack() as stack:
        yield TlsServers(database_url, tmp_path_factory.mktemp("certificates"), stack)


def test_a_server_whose_certificate_is_in_order_is_trusted(tls_servers: TlsServers) -> None:
    url = tls_servers.url_of("good", tls_servers.ours)
    with connect(url, name="test") as tables:
        assert tables.pgconn.ssl_in_use
        assert tables.execute("SELECT 1").fetchone() == (1,)
    migrations.migrate(url, print)
    assert all(applied for _, applied in migrations.list_migrations(url))
    with ready_api(ApiOptions(database_url=url)) as client:
        create_scenario(client)


REFUSALS = {
    "a wrong authority": ("good", "other", "certificate verify failed .*(self-signed|unable to get|issuer)"),
    "a wrong host name": ("of another host", "ours", 'for "db.example" does not match host name "localhost"'),
    "an expired certificate": ("expired", "ours", "certificate has expired"),
    "a server without TLS": ("without TLS", "ours", "server does not support SSL"),
    "a file that is not there": ("good", "missing", "root certificate file .* does not exist"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_with_a_certificate_is_told_in_one_line(tls_servers: TlsServers, case: str) -> None:
    name, root, expected = REFUSALS[case]
    folder = tls_servers.ours.parent
    url = tls_servers.url_of(name, folder / f"{root}.pem")
    with pytest.raises(
        SetupError, match=f"^TLS to PostgreSQL failed: .*{expected}.*Check sslmode and sslrootcert"
    ) as caught:
        connect(url, name="test")
    assert "\n" not in caught.value.message
    assert "does not answer" not in caught.value.message


def test_a_role_and_a_command_end_by_it_with_the_code_of_a_fault_of_the_set_up(tls_servers: TlsServers) -> None:
    url = tls_servers.url_of("good", tls_servers.other)
    for command in (["db", "status"], ["relay", "--kafka", "127.0.0.1:1"]):
        end = run_command(*command, variables={"VIDFLOW_DATABASE_URL": url})
        assert end.returncode == 3, end.stderr
        [line] = end.stderr.splitlines()
        assert line.startswith("vidflow: TLS to PostgreSQL failed: ")


@pytest.mark.long
def test_a_pooler_s_certificate_is_looked_at_as_a_server_s(tls_servers: TlsServers, tmp_path: Path) -> None:
    good, settings = tls_servers.certificates["good"], []
    for file in good:  # it drops to another user, who may not read this one's files
        (tmp_path / file.name).write_bytes(file.read_bytes())
        settings.append(str(tmp_path / file.name))
    certificate, key = settings
    more = f"client_tls_sslmode = allow\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n"
    with running_pgbouncer(tls_servers.url, tmp_path, more) as through:
        port = urlsplit(through).port or 0
        with connect(tls_servers.url_of("good", tls_servers.ours, port=port), name="test") as tables:
            assert tables.pgconn.ssl_in_use
        with pytest.raises(SetupError, match=r"^TLS to PostgreSQL failed: "):
            connect(tls_servers.url_of("good", tls_servers.other, port=port), name="test")
