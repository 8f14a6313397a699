"""Run PgBouncer in transaction mode. It cannot be installed by pip: `apt-get install pgbouncer`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.integration.api_server import free_port, wait_until

POOL_SIZE = 4
"""Fewer sessions than vidflow's connections, so that a client's session changes between transactions."""


@contextmanager
def running_pgbouncer(url: str, folder: Path, extra_settings: str = "") -> Iterator[str]:
    """Run PgBouncer and yield the URL of the server's database through it. Skip the test if PgBouncer is not installed."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed; apt-get install pgbouncer")
    server, port = urlsplit(url), free_port()
    users = folder / "users.txt"
    users.write_text(f'"{server.username}" "{server.password}"\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"""
        [databases]
        * = host=127.0.0.1 port={server.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = {POOL_SIZE}
        max_client_conn = 200
        server_login_retry = 1
        """.replace("        ", "")
        + extra_settings
    )
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    user_option = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (folder / "pgbouncer.log").open("wb") as log_file:
        process = subprocess.Popen([program, "-q", *user_option, str(settings)], stderr=log_file, stdout=log_file)
    pgbouncer_url = server._replace(netloc=f"{server.username}:{server.password}@127.0.0.1:{port}").geturl()
    with process:
        try:
            wait_until(
                lambda: _accepts_connections(pgbouncer_url) or process.poll() is not None,
                "PgBouncer accepts connections",
            )
            assert process.poll() is None, (folder / "pgbouncer.log").read_text()
            yield pgbouncer_url
        finally:
            process.terminate()


def _accepts_connections(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
