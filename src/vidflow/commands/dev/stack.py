"""A whole vidflow on this machine: PostgreSQL, Kafka and the roles, each a child process, started in order, kept running, ended in order.

For `vidflow dev`, `vidflow run` and tests. What it runs are the same programs that run in production; only the servers are small.
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
from pathlib import Path
from typing import Final

from vidflow.commands.dev.lines import LastLines, LineHandler, forward_lines
from vidflow.commands.dev.readiness import describe_missing
from vidflow.commands.dev.supervisor import ChildSupervisor
from vidflow.domain.errors import SetupError, Unavailable, VidflowError
from vidflow.domain.runner import default_memory_cap
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
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import create_topics
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.memory import available_bytes
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.settings import DevOptions, build_kafka_variables, read_environment_variable

POSTGRES: Final = "postgres"
KAFKA: Final = "kafka"
ENVIRONMENT: Final = "environment"
STOPPING_ORDER: Final = ("api", "runner", "orchestrator", "inbox", "relay", KAFKA, POSTGRES)
"""Who asks for work first, who carries it last: a draining runner's last report still finds all that hear it."""

_STOP_SIGNALS: Final = {POSTGRES: signal.SIGINT}  # it would wait for its clients at a SIGTERM
_GRACE_S: Final = {"runner": 30.0}  # it drains for up to 25 s
_DEFAULT_GRACE_S: Final = 10.0
_POLL_INTERVAL_S: Final = 0.05
_PROGRESS_INTERVAL_S: Final = 5.0
_PERMANENT_EXIT_CODES: Final = frozenset({2, 3})  # exit codes: what was asked for, or the set-up, is at fault
_FAILURE_EXIT_CODE: Final = 1  # exit code: a bug, or nobody knows
_MAX_CONSECUTIVE_EXITS: Final = 3


class Stack:
    """All of vidflow by `options`: `start`, `wait_until_ready`, then `url` serves until `stop`.

    Whatever dies is started again, PostgreSQL and Kafka on their ports. `notify` hears of each step and each death, `show` gets the
    roles' log lines. The stop is the stack's: `stop()` requests it, and a request from outside ends a start.
    """

    def __init__(self, options: DevOptions, say: Notify, show: LineHandler, stop: Stop) -> None:
        self._options = options
        self._say = say
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
        """Where the api serves."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the servers, the schema, the topics and the roles; returns while the roles still get ready.

        Raises SetupError (folder or port in use, an extra missing), Unavailable (a server does not come up) or GivenUp (a
        stop was requested); what runs by then ends with `stop`.
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
        """Return once the api answers and /health/system misses nothing that this stack was asked to run.

        Raises Unavailable after `timeout_s`, SetupError if a role ends because its set-up is at fault, VidflowError if one
        fails again and again, GivenUp at a stop.
        """
        began_s = told_s = time.monotonic()
        while not self._stop.requested:
            missing = describe_missing(self.port, self.external_roles)
            if missing is None:
                return
            self._raise_start_failure()
            now_s = time.monotonic()
            if now_s - began_s > timeout_s:
                raise Unavailable(f"vidflow is not ready after {timeout_s:.0f} s: {missing}")
            if now_s - told_s > _PROGRESS_INTERVAL_S:
                told_s = now_s
                self._say(f"not ready yet: {missing}")
            self._stop.wait(_POLL_INTERVAL_S)
        raise StartCancelled("the start was given up: a stop was asked for")

    @property
    def external_roles(self) -> list[str]:
        """The roles that a scenario needs and this stack was asked not to run."""
        return [kind for kind, count in self._counts().items() if not count]

    @property
    def environment_file(self) -> Path | None:
        """The options of this stack's roles as shell variables, for roles that are started by hand. It holds a password."""
        return self._folder.absolute() / ENVIRONMENT if self._folder else None

    def pids(self) -> dict[str, list[int]]:
        """The processes that run now, by role; `postgres` and `kafka` where they are the stack's own."""
        found = {kind: [keeper.pid for keeper in keepers] for kind, keepers in self._supervisors.items()}
        return {kind: [pid for pid in pids if pid is not None] for kind, pids in found.items() if pids}

    def stop(self) -> None:
        """Ends all that runs, in order, each within its grace time; data that were not asked to be kept go."""
        self._stop.request()
        for kind in STOPPING_ORDER:
            for keeper in self._supervisors[kind]:
                keeper.request_end()
            for keeper in self._supervisors[kind]:
                keeper.end()
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
            raise SetupError(f"port {port} is in use: stop who listens there, or give another one (--port)")
        return port

    def _lock_folder(self) -> Path:
        """The folder of the data, locked for the stack's lifetime: the given one, or one that goes with the stack."""
        folder = self._options.data_dir
        if folder is None:
            folder = Path(self._clean_up.enter_context(tempfile.TemporaryDirectory(prefix="vidflow-")))
        lock = FolderLock(folder)
        self._clean_up.callback(lock.release)
        return folder

    def _create_postgres(self, folder: Path) -> EmbeddedPostgres | None:
        if self._options.database_url is not None:
            return None
        server = EmbeddedPostgres(folder / POSTGRES, notify=self._say, stop=self._stop)
        self._clean_up.callback(server.stop)
        return server

    def _create_kafka(self, folder: Path) -> EmbeddedKafka | None:
        if self._options.kafka.bootstrap:
            return None
        if self._options.kafka.properties:
            self._say("the Kafka properties are not used: this vidflow brings its own Kafka (another one: --kafka)")
        cache = read_environment_variable("VIDFLOW_CACHE_DIR")
        server = EmbeddedKafka(folder / KAFKA, notify=self._say, stop=self._stop, cache=cache)
        self._clean_up.callback(server.stop)
        return server

    def _run_parallel(self, *starts: Callable[[], None]) -> None:
        """Runs the starts in parallel; where one fails, the others are given up."""
        with ThreadPoolExecutor(thread_name_prefix="starts") as pool:
            running = [pool.submit(start) for start in starts]
            ended, _ = wait(running, return_when=FIRST_EXCEPTION)
            if any(each.exception() for each in ended):
                self._stop.request()
        errors = [error for each in running if (error := each.exception()) is not None]
        for error in sorted(
            errors, key=lambda error: isinstance(error, StartCancelled)
        ):  # the cause before what it led to
            raise error

    def _open_database(self, own: EmbeddedPostgres | None) -> None:
        """The database with its schema, and the role that needs nothing but it."""
        if own is None:
            self.database_url = self._options.database_url or ""
        else:
            self._supervise(POSTGRES, POSTGRES, lambda: _process(own.start()))
            self.database_url = own.url
            migrate(self.database_url, self._say)
        self._start_roles("api", 1)

    def _open_kafka(self, own: EmbeddedKafka | None) -> None:
        """Kafka with its topics. The runners start beside it: they load their libraries for as long as it takes to come up."""
        if own is not None:
            own.fetch_jars()
        self._start_roles("runner", self._options.runners)
        if own is None:
            self._create_topics()
        else:
            self._supervise(KAFKA, KAFKA, lambda: self._start_with_topics(own))

    def _start_with_topics(self, own: EmbeddedKafka) -> subprocess.Popen[bytes]:
        """Each time that it starts: a broker whose data folder was lost has none."""
        process = _process(own.start())
        try:
            self._create_topics()
        except BaseException:
            stop_child(process, signal.SIGTERM, _DEFAULT_GRACE_S)
            raise
        return process

    def _create_topics(self) -> None:
        if made := create_topics(self.kafka):
            self._say(f"made the topics {', '.join(made)}")

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
            self._say(f"starting {kind}" if count == 1 else f"starting {kind} x{count}")
        for number in range(1, count + 1):
            self._start_role(kind, kind if count == 1 else f"{kind}-{number}")

    def _start_role(self, kind: str, name: str) -> None:
        command = [sys.executable, "-P", "-m", "vidflow", kind, *self._arguments(kind)]
        variables = self._variables(kind)

        def launch() -> subprocess.Popen[bytes]:
            process = start_child(
                command,
                output=subprocess.PIPE,
                death_signal=signal.SIGKILL,  # its servers are gone then: there is nothing to end well for
                environment=variables,
            )
            output = process.stdout
            if output is not None:
                start_thread(f"reads {name}", lambda: forward_lines(name, output, self._handle_line), self._stop)
            return process

        self._supervise(kind, name, launch)

    def _supervise(self, kind: str, name: str, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        keeper = ChildSupervisor(
            name,
            launch,
            self._say,
            self._stop,
            stop_signal=_STOP_SIGNALS.get(kind, signal.SIGTERM),
            grace_s=_GRACE_S.get(kind, _DEFAULT_GRACE_S),
        )
        keeper.start()
        self._supervisors[kind].append(keeper)

    def _handle_line(self, name: str, line: str) -> None:
        self._last_lines.keep(name, line)
        self._show(name, line)

    def _arguments(self, kind: str) -> Sequence[str]:
        """What tells one stack's roles from another's, and nothing secret: command lines can be read by all."""
        return ["--port", str(self.port), "--no-inbox"] if kind == "api" else []

    def _variables(self, kind: str) -> Mapping[str, str]:
        """The options of a role as it reads them; what is not here it takes from this process's own environment."""
        options = self._options
        variables = {
            **build_kafka_variables(self.kafka),
            "VIDFLOW_DATABASE_URL": ""
            if kind == "runner"
            else self.database_url,  # it needs none, and runs models of others
            "VIDFLOW_MAX_WORKERS": str(options.max_workers),
            "VIDFLOW_VIDEO_FPS": options.video_fps,
            "VIDFLOW_ANY_FILE": str(options.any_file).lower(),
            "VIDFLOW_ANY_ONNX": str(options.models_dir is None).lower(),  # the api listens on loopback
            "VIDFLOW_DATA_DIR": str(self._folder.absolute()) if self._folder and not options.database_url else "",
            "VIDFLOW_METRICS_PORT": "",  # one port for all of them would serve the first alone
            "VIDFLOW_HEALTH_FILE": "",
        }
        if options.runners > 1 and read_environment_variable("VIDFLOW_WORKER_MEMORY_BYTES") is None:
            cap = default_memory_cap(available_bytes(), options.max_workers * options.runners)
            variables["VIDFLOW_WORKER_MEMORY_BYTES"] = str(cap)  # each of them would take the whole machine for its own
        if options.media_root is not None:
            variables["VIDFLOW_MEDIA_ROOT"] = str(options.media_root.absolute())
        if options.models_dir is not None:
            variables["VIDFLOW_MODELS_DIR"] = str(options.models_dir.absolute())
        return variables

    def _raise_start_failure(self) -> None:
        """A role that ends by its set-up's fault before all is ready will end so again: its own last line is the error."""
        for keepers in self._supervisors.values():
            for keeper in keepers:
                if keeper.last_exit_code in _PERMANENT_EXIT_CODES:
                    raise SetupError(f"{keeper.name} cannot start: {self._last_lines.find_error(keeper.name)}")
                if keeper.last_exit_code == _FAILURE_EXIT_CODE and keeper.consecutive_exits >= _MAX_CONSECUTIVE_EXITS:
                    last = self._last_lines.find_error(keeper.name)
                    raise VidflowError(f"{keeper.name} ended {keeper.consecutive_exits} times in a row: {last}")


def _process(server: EmbeddedPostgres | EmbeddedKafka) -> subprocess.Popen[bytes]:
    if server.process is None:
        raise Unavailable(f"{server.name} was not started")
    return server.process
