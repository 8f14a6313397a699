"""All of vidflow on this machine: PostgreSQL, Kafka and the roles as child processes, started, kept running and stopped in order.

Used by `vidflow dev`, `vidflow run` and tests. The programs are those of production; only the servers are small.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Final

from vidflow.commands.dev.lines import LastLines, LineHandler, forward_lines
from vidflow.commands.dev.readiness import describe_missing
from vidflow.commands.dev.supervisor import ChildSupervisor
from vidflow.domain.errors import SetupError, Unavailable, VidflowError
from vidflow.domain.runner import default_memory_cap, divide_cores
from vidflow.domain.source_access import allow_local_networks
from vidflow.infra.embedded.child_process import (
    Notify,
    StartCancelled,
    find_free_ports,
    is_listening,
    start_child,
    stop_child,
)
from vidflow.infra.embedded.folder_lock import FolderLock
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.embedded.server import EmbeddedServer
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import create_topics
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.cores import available_cores
from vidflow.infra.process.memory import available_bytes
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.settings import DevOptions, build_kafka_variables, build_source_variables, read_environment_variable

POSTGRES: Final = "postgres"
KAFKA: Final = "kafka"
ENVIRONMENT: Final = "environment"
STOPPING_ORDER: Final = ("api", "runner", "orchestrator", "inbox", "relay", KAFKA, POSTGRES)
"""Roles that produce work or reports stop before those that handle them, so that a draining runner's last report is processed."""

_STOP_SIGNALS: Final = {POSTGRES: signal.SIGINT}  # after a SIGTERM it would wait for its clients
_GRACE_S: Final = {"runner": 30.0}  # it drains for up to 25 s
_DEFAULT_GRACE_S: Final = 10.0
_POLL_INTERVAL_S: Final = 0.05
_PROGRESS_INTERVAL_S: Final = 5.0
_PERMANENT_EXIT_CODES: Final = frozenset({2, 3})  # the request or the setup is at fault
_FAILURE_EXIT_CODE: Final = 1  # a bug, or an unknown cause
_MAX_CONSECUTIVE_EXITS: Final = 3


class Stack:
    """All of vidflow. After `start` and `wait_until_ready`, `url` serves until `stop`.

    A process that dies is restarted, PostgreSQL and Kafka on the same ports. `notify` is called for each step and each death,
    `show` for each line that a role prints. The `stop` belongs to the stack: `stop()` requests it, and a request from outside
    cancels a start.
    """

    def __init__(self, options: DevOptions, notify: Notify, show: LineHandler, stop: Stop) -> None:
        self._options = options
        self._notify = notify
        self._show = show
        self._stop = stop
        self._last_lines = LastLines()
        self._supervisors: dict[str, list[ChildSupervisor]] = {kind: [] for kind in STOPPING_ORDER}
        self._clean_up = ExitStack()
        self.port = 0
        self._folder: Path | None = None
        self.database_url = ""
        self.kafka = KafkaSettings()

    @property
    def url(self) -> str:
        """The URL of the api."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the servers, create schema and topics, and start the roles. Returns before the roles are ready.

        Raises SetupError (folder or port in use, an extra missing), Unavailable (a server does not start) or StartCancelled
        (a stop was requested). After an error, call `stop` to end what was started.
        """
        self.port = self._free_port()
        self._folder = folder = self._lock_folder()
        postgres = self._create_postgres(folder)
        kafka = self._create_kafka(folder)
        self.kafka = kafka.settings if kafka else self._options.kafka
        self._run_parallel(lambda: self._open_database(postgres), lambda: self._open_kafka(kafka))
        self._write_environment(folder)
        for kind, count in self._counts().items():
            if not self._supervisors[kind]:
                self._start_roles(kind, count)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the api answers and /health/system misses nothing that this stack runs.

        Raises Unavailable after `timeout_s`, SetupError if a role ends because of its setup, VidflowError if a role fails
        repeatedly, StartCancelled at a stop.
        """
        started_s = notified_s = time.monotonic()
        while not self._stop.requested:
            missing = describe_missing(self.port, self.external_roles)
            if missing is None:
                return
            self._raise_start_failure()
            now_s = time.monotonic()
            if now_s - started_s > timeout_s:
                raise Unavailable(f"vidflow is not ready after {timeout_s:.0f} s. {missing}")
            if now_s - notified_s > _PROGRESS_INTERVAL_S:
                notified_s = now_s
                self._notify(f"not ready yet: {missing}")
            self._stop.wait(_POLL_INTERVAL_S)
        raise StartCancelled("The start was cancelled, since a stop was requested.")

    @property
    def external_roles(self) -> list[str]:
        """The roles that a scenario needs but this stack does not run."""
        return [kind for kind, count in self._counts().items() if not count]

    @property
    def environment_file(self) -> Path | None:
        """The file of shell variables with this stack's options, for roles started by hand. It contains a password."""
        return self._folder.absolute() / ENVIRONMENT if self._folder else None

    def pids(self) -> dict[str, list[int]]:
        """Return the running processes by role, with `postgres` and `kafka` if they are embedded."""
        pids_by_kind = {
            kind: [supervisor.pid for supervisor in supervisors] for kind, supervisors in self._supervisors.items()
        }
        return {kind: [pid for pid in pids if pid is not None] for kind, pids in pids_by_kind.items() if pids}

    def stop(self) -> None:
        """Stop all processes in order, each within its grace time, and delete the data unless a data folder was given."""
        self._stop.request()
        for kind in STOPPING_ORDER:
            for supervisor in self._supervisors[kind]:
                supervisor.request_end()
            for supervisor in self._supervisors[kind]:
                supervisor.end()
        self._clean_up.close()

    def _write_environment(self, folder: Path) -> None:
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in self._variables("orchestrator").items()]
        path = folder / ENVIRONMENT
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text("".join(lines))

    def _free_port(self) -> int:
        port = self._options.port or find_free_ports(1)[0]
        if is_listening(port):
            raise SetupError(f"Port {port} is in use. Stop the program that listens there, or choose another --port.")
        return port

    def _lock_folder(self) -> Path:
        """Return the data folder, locked for the stack's lifetime: the given one, or a temporary one."""
        folder = self._options.data_dir
        if folder is None:
            folder = Path(self._clean_up.enter_context(tempfile.TemporaryDirectory(prefix="vidflow-")))
        lock = FolderLock(folder)
        self._clean_up.callback(lock.release)
        return folder

    def _create_postgres(self, folder: Path) -> EmbeddedPostgres | None:
        if self._options.database_url is not None:
            return None
        server = EmbeddedPostgres(folder / POSTGRES, notify=self._notify, stop=self._stop)
        self._clean_up.callback(server.stop)
        return server

    def _create_kafka(self, folder: Path) -> EmbeddedKafka | None:
        if self._options.kafka.bootstrap:
            return None
        if self._options.kafka.properties:
            self._notify("the Kafka properties are ignored by the embedded Kafka; use another Kafka with --kafka")
        cache = read_environment_variable("VIDFLOW_CACHE_DIR")
        server = EmbeddedKafka(folder / KAFKA, notify=self._notify, stop=self._stop, cache=cache)
        self._clean_up.callback(server.stop)
        return server

    def _run_parallel(self, *starts: Callable[[], None]) -> None:
        """Run the starts in parallel. If one fails, cancel the others and raise its error."""
        with ThreadPoolExecutor(thread_name_prefix="starts") as pool:
            futures = [pool.submit(start) for start in starts]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if any(future.exception() for future in done):
                self._stop.request()
        errors = [error for future in futures if (error := future.exception()) is not None]
        # A StartCancelled is only the consequence of another error.
        for error in sorted(errors, key=lambda error: isinstance(error, StartCancelled)):
            raise error

    def _open_database(self, server: EmbeddedPostgres | None) -> None:
        """Prepare the database and its schema, and start the api, which needs nothing else."""
        if server is None:
            self.database_url = self._options.database_url or ""
        else:
            self._supervise(POSTGRES, POSTGRES, lambda: _process(server.start()))
            self.database_url = server.url
            migrate(self.database_url, self._notify)
        self._start_roles("api", 1)

    def _open_kafka(self, server: EmbeddedKafka | None) -> None:
        """Prepare Kafka and its topics. The runners start in parallel, since loading their libraries takes as long as Kafka's start."""
        if server is not None:
            server.fetch_jars()
        self._start_roles("runner", self._options.runners)
        if server is None:
            self._create_topics()
        else:
            self._supervise(KAFKA, KAFKA, lambda: self._start_with_topics(server))

    def _start_with_topics(self, server: EmbeddedKafka) -> subprocess.Popen[bytes]:
        """Start Kafka and create its topics. After each start, since a broker whose data folder was lost has no topics."""
        process = _process(server.start())
        try:
            self._create_topics()
        except BaseException:
            stop_child(process, signal.SIGTERM, _DEFAULT_GRACE_S)
            raise
        return process

    def _create_topics(self) -> None:
        if created := create_topics(self.kafka):
            self._notify(f"created the topics {', '.join(created)}")

    def _counts(self) -> Mapping[str, int]:
        options = self._options
        return {
            "orchestrator": options.orchestrators,
            "relay": options.relays,
            "inbox": 1,
            "runner": options.runners,
            "api": 1,
        }

    def _start_roles(self, kind: str, count: int) -> None:
        if count:
            self._notify(f"starting {kind}" if count == 1 else f"starting {kind} x{count}")
        for number in range(1, count + 1):
            self._start_role(kind, kind if count == 1 else f"{kind}-{number}")

    def _start_role(self, kind: str, name: str) -> None:
        command = [sys.executable, "-P", "-m", "vidflow", kind, *self._arguments(kind)]
        variables = self._variables(kind)

        def launch() -> subprocess.Popen[bytes]:
            process = start_child(
                command,
                output=subprocess.PIPE,
                death_signal=signal.SIGKILL,  # its servers are gone then, so it could not stop cleanly
                environment=variables,
            )
            output = process.stdout
            if output is not None:
                start_thread(f"reads {name}", lambda: forward_lines(name, output, self._handle_line), self._stop)
            return process

        self._supervise(kind, name, launch)

    def _supervise(self, kind: str, name: str, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        supervisor = ChildSupervisor(
            name,
            launch,
            self._notify,
            self._stop,
            stop_signal=_STOP_SIGNALS.get(kind, signal.SIGTERM),
            grace_s=_GRACE_S.get(kind, _DEFAULT_GRACE_S),
        )
        supervisor.start()
        self._supervisors[kind].append(supervisor)

    def _handle_line(self, name: str, line: str) -> None:
        self._last_lines.keep(name, line)
        self._show(name, line)

    def _arguments(self, kind: str) -> Sequence[str]:
        """Return the arguments that distinguish this stack's roles from another's. No secrets: anyone can read command lines."""
        return ["--port", str(self.port), "--no-inbox"] if kind == "api" else []

    def _variables(self, kind: str) -> Mapping[str, str]:
        """Return a role's options as environment variables. It inherits all other variables from this process."""
        options = self._options
        variables = {
            **build_kafka_variables(self.kafka),
            **build_source_variables(allow_local_networks(options.sources)),
            # A runner needs no database, and the models in it must not see the password.
            "VIDFLOW_DATABASE_URL": "" if kind == "runner" else self.database_url,
            "VIDFLOW_MAX_WORKERS": str(options.max_workers),
            "VIDFLOW_VIDEO_FPS": options.video_fps,
            "VIDFLOW_INFERENCE": options.inference,
            "VIDFLOW_DEVICE": str(options.device),
            "VIDFLOW_SANDBOX": options.sandbox,
            "VIDFLOW_ANY_FILE": str(options.any_file).lower(),
            "VIDFLOW_ANY_ONNX": str(options.models_dir is None).lower(),  # the api listens on loopback
            "VIDFLOW_DATA_DIR": str(self._folder.absolute()) if self._folder and not options.database_url else "",
            "VIDFLOW_METRICS_PORT": "",  # with one port for all roles, only the first could serve
            "VIDFLOW_HEALTH_FILE": "",
        }
        if options.runners > 1 and read_environment_variable("VIDFLOW_WORKER_MEMORY_BYTES") is None:
            cap = default_memory_cap(available_bytes(), options.max_workers * options.runners)
            variables["VIDFLOW_WORKER_MEMORY_BYTES"] = str(cap)  # by default each assumes the whole machine
        if options.runners > 1 and read_environment_variable("VIDFLOW_CORES") is None:
            variables["VIDFLOW_CORES"] = str(divide_cores(available_cores(), options.runners))
        if options.media_root is not None:
            variables["VIDFLOW_MEDIA_ROOT"] = str(options.media_root.absolute())
        if options.models_dir is not None:
            variables["VIDFLOW_MODELS_DIR"] = str(options.models_dir.absolute())
        return variables

    def _raise_start_failure(self) -> None:
        """Raise the error that a role printed before it ended, if it would end the same way again."""
        for supervisor in chain.from_iterable(self._supervisors.values()):
            name, exits = supervisor.name, supervisor.consecutive_exits
            if supervisor.last_exit_code in _PERMANENT_EXIT_CODES:
                raise SetupError(f"{name} cannot start: {self._last_lines.find_error(name)}")
            if supervisor.last_exit_code == _FAILURE_EXIT_CODE and exits >= _MAX_CONSECUTIVE_EXITS:
                raise VidflowError(f"{name} ended {exits} times in a row: {self._last_lines.find_error(name)}")


def _process(server: EmbeddedServer) -> subprocess.Popen[bytes]:
    if server.process is None:
        raise Unavailable(f"{server.name} was not started.")
    return server.process
