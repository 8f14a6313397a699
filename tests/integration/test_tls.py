"""TLS to PostgreSQL with `sslmode=verify-full`: which servers are trusted, and which errors the others cause."""

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
    """A PostgreSQL server behind TLS proxies with different certificates, and the URLs to connect to it."""

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
            name: stack.enter_context(running_tls_proxy(port, certificate))
            for name, certificate in self.certificates.items()
        }
        self.ports["without TLS"] = port

    def url_of(self, name: str, root: Path, mode: str = "verify-full", port: int = 0) -> str:
        parts = urlsplit(self.url)
        query = urlencode({"sslmode": mode, "sslrootcert": str(root), "hostaddr": "127.0.0.1"})
        netloc = f"{parts.username}:{parts.password}@localhost:{port or self.ports[name]}"
        return parts._replace(netloc=netloc, query=query).geturl()


@pytest.fixture(scope="module")
def tls_servers(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServers]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    with ExitStack() as stack:
        yield TlsServers(database_url, tmp_path_factory.mktemp("certificates"), stack)


def test_a_server_with_a_valid_certificate_is_trusted(tls_servers: TlsServers) -> None:
    url = tls_servers.url_of("good", tls_servers.ours)
    with connect(url, name="test") as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("SELECT 1").fetchone() == (1,)
    migrations.migrate(url, print)
    assert all(applied for _, applied in migrations.list_migrations(url))
    with ready_api(ApiOptions(database_url=url)) as client:
        create_scenario(client)


REFUSALS = {
    "an untrusted authority": ("good", "other", "certificate verify failed .*(self-signed|unable to get|issuer)"),
    "a wrong host name": ("of another host", "ours", 'for "db.example" does not match host name "localhost"'),
    "an expired certificate": ("expired", "ours", "certificate has expired"),
    "a server without TLS": ("without TLS", "ours", "server does not support SSL"),
    "a missing file": ("good", "missing", "root certificate file .* does not exist"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_certificate_problem_is_reported_in_one_line(tls_servers: TlsServers, case: str) -> None:
    name, root, expected = REFUSALS[case]
    folder = tls_servers.ours.parent
    url = tls_servers.url_of(name, folder / f"{root}.pem")
    with pytest.raises(
        SetupError, match=f"^TLS to PostgreSQL failed: .*{expected}.*Check sslmode and sslrootcert"
    ) as caught:
        connect(url, name="test")
    assert "\n" not in caught.value.message
    assert "does not answer" not in caught.value.message


@pytest.mark.long
def test_roles_and_commands_exit_with_the_setup_code(tls_servers: TlsServers) -> None:
    url = tls_servers.url_of("good", tls_servers.other)
    for command in (["db", "status"], ["relay", "--kafka", "127.0.0.1:1"]):
        result = run_command(*command, variables={"VIDFLOW_DATABASE_URL": url})
        assert result.returncode == 3, result.stderr
        [line] = result.stderr.splitlines()
        assert line.startswith("vidflow: TLS to PostgreSQL failed: ")


@pytest.mark.long
def test_the_certificate_of_a_pooler_is_verified(tls_servers: TlsServers, tmp_path: Path) -> None:
    good, settings = tls_servers.certificates["good"], []
    for file in good:  # PgBouncer runs as another user, who may not read the original files
        (tmp_path / file.name).write_bytes(file.read_bytes())
        settings.append(str(tmp_path / file.name))
    certificate, key = settings
    extra_settings = f"client_tls_sslmode = allow\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n"
    with running_pgbouncer(tls_servers.url, tmp_path, extra_settings) as pgbouncer_url:
        port = urlsplit(pgbouncer_url).port or 0
        with connect(tls_servers.url_of("good", tls_servers.ours, port=port), name="test") as connection:
            assert connection.pgconn.ssl_in_use
        with pytest.raises(SetupError, match=r"^TLS to PostgreSQL failed: "):
            connect(tls_servers.url_of("good", tls_servers.other, port=port), name="test")
