"""What the embedded PostgreSQL and Kafka share: the data folder and its lock, the ports, the log, start, readiness and stop."""

from __future__ import annotations

import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Final, Self

from vidflow.infra.embedded.child_process import (
    Account,
    Notify,
    choose_ports,
    log_file,
    poll_until_ready,
    start_child,
    stop_child,
)
from vidflow.infra.embedded.folder_lock import FolderLock
from vidflow.infra.process.stopping import Stop

_START_LIMIT_S: Final = 120.0  # after a crash it first replays its WAL or recovers its logs
_STOP_GRACE_S: Final = 10.0


class EmbeddedServer(ABC):
    """A server in a folder with its data, log and ports. The folder is locked while the server or its owner runs."""

    name: ClassVar[str]
    _log_name: ClassVar[str]
    _port_file_name: ClassVar[str]
    _port_count: ClassVar[int]
    _stop_signal: ClassVar[signal.Signals]
    """Ends the server in order. It gets this signal when its owner is killed, too."""
    _account: Account | None = None
    """The user that the server runs as, None for this process's own."""

    def __init__(self, folder: Path, ports: Sequence[int], *, notify: Notify, stop: Stop) -> None:
        """Lock the folder. `start` starts the server. `ports` are by default the last ones, or free ones.

        Raises SetupError if another process uses the folder.
        """
        self.folder = folder.absolute()
        self.process: subprocess.Popen[bytes] | None = None
        self._notify = notify
        self._stop = stop
        self._lock = FolderLock(self.folder)
        try:
            self._ports = choose_ports(self.folder / self._port_file_name, self._port_count, ports)
        except BaseException:
            self._lock.release()
            raise

    @property
    def port(self) -> int:
        """The port for clients."""
        return self._ports[0]

    @property
    def pid(self) -> int | None:
        """The pid of the server, None before the first start."""
        return self.process.pid if self.process else None

    def start(self) -> Self:
        """Create the data folder if necessary, start the server, and wait until it answers.

        A crashed server can be started again, on the same ports. Raises Unavailable with the end of its log if it does not start,
        StartCancelled on a stop.
        """
        if not self._data.exists():
            self._notify(f"creating {self.name}'s data folder")
            self._create_data()
        self._notify(f"starting {self.name} on port {self.port}")
        with log_file(self._log_path) as output:
            self.process = start_child(
                self._command(),
                output=output,
                death_signal=self._stop_signal,
                account=self._account,
                keep_open=[self._lock.fd],
            )
        self._wait_for_answer(poll_until_ready(self.name, self.process, self._log_path, self._stop, _START_LIMIT_S))
        return self

    def stop(self) -> None:
        """Stop the server and release the folder."""
        if self.process is not None:
            stop_child(self.process, self._stop_signal, _STOP_GRACE_S)
        self._lock.release()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log_path(self) -> Path:
        return self.folder / self._log_name

    def _create_data(self) -> None:
        """Create the data folder under another name, and rename it when it is complete: a crash must not leave a partial one."""
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._fill_data(new)
        new.rename(self._data)

    @abstractmethod
    def _fill_data(self, new: Path) -> None:
        """Write the data of a new server into an empty folder."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Return the command that runs the server in the foreground."""

    @abstractmethod
    def _wait_for_answer(self, polls: Iterable[None]) -> None:
        """Iterate over `polls` until the server answers."""
