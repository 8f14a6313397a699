"""The command line as real processes: help, exit codes, errors, and behaviour without its servers."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import msgspec
import pytest
from confluent_kafka.admin import NewTopic
from tests import clips
from tests.integration.api_server import SOURCE_URL, free_port, is_ready
from tests.integration.cli_process import (
    CLOSED_DATABASE,
    CLOSED_KAFKA,
    LIMIT_S,
    SECRET,
    RefusingServer,
    RunningCommand,
    build_environment,
    hides_internals,
    run_command,
    run_commands,
    running_command,
)
from tests.integration.delivery import remove_topics
from tests.integration.many_commands import Command
from tests.integration.processes import descendants, is_alive, name_of
from tests.integration.server_owner import wait_until

from vidflow.domain.runner import default_memory_cap
from vidflow.domain.topics import DEAD_LETTERS
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.kafka import admin, offsets, topics
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import PARTITIONS
from vidflow.infra.postgres import outbox
from vidflow.infra.postgres.connection import connect
from vidflow.infra.postgres.migrations import migrate
from vidflow.infra.process.memory import available_bytes
from vidflow.infra.process.stopping import Stop, start_thread
from vidflow.settings import read_environment_variable

A_FILE = str(Path(__file__))
DATABASE, KAFKA = ["--database-url", CLOSED_DATABASE], ["--kafka", CLOSED_KAFKA]
NO_DATABASE = r"No database is configured\. Set VIDFLOW_DATABASE_URL \(or --database-url\).*vidflow dev"
NO_KAFKA = r"No Kafka is configured\. Set VIDFLOW_KAFKA \(or --kafka\).*vidflow dev"


class Refusal(msgspec.Struct, frozen=True):
    """A command line that is refused, with its exit code and a pattern of its message."""

    arguments: list[str]
    code: int
    pattern: str
    variables: dict[str, str] = {}


REFUSALS = {
    "api without a database": Refusal(["api"], 3, NO_DATABASE),
    "relay without a database": Refusal(["relay"], 3, NO_DATABASE),
    "inbox without a database": Refusal(["inbox"], 3, NO_DATABASE),
    "orchestrator without a database": Refusal(["orchestrator"], 3, NO_DATABASE),
    "migrate without a database": Refusal(["db", "migrate"], 3, NO_DATABASE),
    "status without a database": Refusal(["db", "status"], 3, NO_DATABASE),
    "backup without a database": Refusal(["db", "backup", "/tmp/none"], 3, NO_DATABASE),
    "backup, the database away": Refusal(["db", "backup", "/tmp/none", *DATABASE], 4, "PostgreSQL does not answer: .*Start it"),
    "backup into a file": Refusal(["db", "backup", A_FILE, *DATABASE], 2, "is a file. Choose a folder for the backup"),
    "restore without a backup": Refusal(["db", "restore", "/tmp", *DATABASE], 2, "/tmp holds no backup written by `vidflow db backup`"),
    "scenarios removed before their results": Refusal(
        ["orchestrator", *DATABASE, *KAFKA, "--keep-scenarios-days", "30"], 3, "30 needs --keep-results-days of at most 30"
    ),
    "api that lets other machines name models by path": Refusal(
        ["api", *DATABASE, *KAFKA, "--any-onnx", "--host", "192.0.2.1"], 3, "--any-onnx .*needs a loopback --host, not 192.0.2.1"
    ),
    "api without Kafka for its inbox": Refusal(["api", *DATABASE], 3, r"No Kafka is configured.*--no-inbox"),
    "relay without Kafka": Refusal(["relay", *DATABASE], 3, NO_KAFKA),
    "inbox without Kafka": Refusal(["inbox", *DATABASE], 3, NO_KAFKA),
    "orchestrator without Kafka": Refusal(["orchestrator", *DATABASE], 3, NO_KAFKA),
    "runner of a pool with an invalid name": Refusal(["runner", *KAFKA, "--pool", "a b"], 2, "Invalid pool name 'a b'"),
    "runner without Kafka": Refusal(["runner"], 3, NO_KAFKA),
    "topics without Kafka": Refusal(["topics", "create"], 3, NO_KAFKA),
    "outbox without a database": Refusal(["outbox", "list"], 3, NO_DATABASE),
    "outbox, the database away": Refusal(["outbox", "retry", "1", *DATABASE], 4, "PostgreSQL does not answer: "),
    "dlq without Kafka": Refusal(["dlq", "list"], 3, NO_KAFKA),
    "dlq, Kafka away": Refusal(["dlq", "list", *KAFKA], 4, "Kafka does not answer .*Start it, or set VIDFLOW_KAFKA"),
    "dlq, nothing selected": Refusal(["dlq", "drop", *KAFKA], 2, "Give either the places of dead letters .* or --all"),
    "migrate, the database away": Refusal(["db", "migrate", *DATABASE], 4, "PostgreSQL does not answer: .*Start it, or set"),
    "status, the database away": Refusal(["db", "status", *DATABASE], 4, "PostgreSQL does not answer: .*Start it, or set"),
    "a fixed Kafka property": Refusal(
        ["relay", *DATABASE, *KAFKA], 3, r"Kafka property acks cannot be set\. .* unset VIDFLOW_KAFKA_ACKS", {"VIDFLOW_KAFKA_ACKS": "1"}
    ),
    "an unknown Kafka property": Refusal(
        ["topics", "create", *KAFKA], 3, 'No such configuration property: "no.such".*--kafka-properties', {"VIDFLOW_KAFKA_NO_SUCH": "1"}
    ),
    "no such file of Kafka properties": Refusal(
        ["dlq", "list", *KAFKA, "--kafka-properties", "/no/such"], 3, "/no/such cannot be read .*--kafka-properties"
    ),
    "topics, no such pool": Refusal(["topics", "create", *KAFKA, "--pool", "a b"], 2, "Invalid pool name 'a b'. Use 1 to 200"),
    "topics, more replicas in sync than replicas": Refusal(
        ["topics", "create", *KAFKA, "--replication-factor", "2", "--min-insync-replicas", "3"], 3, "is more than --replication-factor 2"
    ),
    "topics, Kafka away": Refusal(["topics", "create", *KAFKA], 4, "Kafka does not answer .*Start it, or set VIDFLOW_KAFKA"),
    "an invalid database URL": Refusal(["relay", "--database-url", f"db {SECRET}"], 3, "not a PostgreSQL URL"),
    "a database URL with an invalid password": Refusal(
        ["db", "status", "--database-url", f"postgresql://u:{SECRET}%@db/x"], 3, "cannot be parsed. Write postgresql://"
    ),
    "a database URL with an invalid port": Refusal(
        ["db", "status", "--database-url", f"postgresql://u:{SECRET}@db:port/x"], 3, "cannot be parsed. Write postgresql://"
    ),
    "invalid VIDEO_FPS": Refusal(["api", *DATABASE, *KAFKA], 3, r"Invalid VIDEO_FPS \(--video-fps\) 'x'. Use a number", {"VIDEO_FPS": "x"}),
    "run, no such file": Refusal(["run", "none.mp4"], 2, "none.mp4 is not a file. Give a video file, a URL, a camera or one of sample:"),
    "run, no such sample": Refusal(["run", "sample:none"], 2, "Unknown sample 'none'. Available: sample:bikes"),
    "run, fps is a word": Refusal(["run", A_FILE, "--fps", "fast"], 2, "Invalid --fps 'fast'. Use a number .* a fraction"),
    "run, fps is NaN": Refusal(["run", A_FILE, "--fps", "nan"], 2, "Invalid --fps 'nan'. Use a number"),
    "run, fps is negative": Refusal(["run", A_FILE, "--fps", "-1"], 2, "Invalid --fps '-1'. Use a number"),
    "run, unknown model": Refusal(["run", A_FILE, "--model", "none"], 2, "Unknown model 'none'. Available: yolox_nano, motion, "),
    "run, labels for a model that has some": Refusal(
        ["run", A_FILE, "--labels-file", "coco80"], 2, r"--labels-file is for an \.onnx file without a spec, not for 'yolox_nano'"
    ),
    "models check, a model without an ONNX file": Refusal(["models", "check", "motion"], 2, "vidflow models show motion"),
    "models check, no ONNX file": Refusal(["models", "check", A_FILE], 2, r"is neither an ONNX file \(\.onnx\) nor a model spec"),
    "run, unknown label": Refusal(["run", A_FILE, "--labels", "unicorn"], 2, "no label 'unicorn'. Available: airplane"),
    "run, a label without a name": Refusal(["run", A_FILE, "--labels", "cat,"], 2, "--labels are names separated by commas"),
    "run, no server at the URL": Refusal(["run", A_FILE, "--url", "http://127.0.0.1:1"], 4, "Start one with: vidflow dev"),
    "run, the runner's options with a URL": Refusal(
        ["run", A_FILE, "--url", "http://127.0.0.1:1", "--device", "cpu", "--no-insecure-sources", "--models-dir", "."], 2,
        "--models-dir, --device, --insecure-sources: no effect with --url: .* Leave it out. See: vidflow run --help",
    ),
    "run, variables of a runner with a URL": Refusal(
        ["run", A_FILE, "--url", "http://127.0.0.1:1"], 4, "Start one with: vidflow dev", {"VIDFLOW_DEVICE": "cpu"}
    ),
    "run, an invalid URL": Refusal(["run", A_FILE, "--url", "http://h:port"], 2, "Write http://host:port"),
    "run, a URL without a host": Refusal(["run", A_FILE, "--url", "vidflow"], 2, "Write http://host:port"),
    "bench, no such file": Refusal(["bench", "--source", "none.mp4"], 2, "none.mp4 is not a file. Give a video file"),
    "bench, no such sample": Refusal(["bench", "--source", "sample:none"], 2, "Unknown sample 'none'. Available: sample:bikes"),
    "bench, a camera": Refusal(
        ["bench", "--source", f"rtsp://u:{SECRET}@h/1"], 2, r"rtsp://\S+@h/1 is not the path of a file\. .* record a clip of it"
    ),
    "bench, unknown model": Refusal(
        ["bench", "--source", A_FILE, "--model", "none"], 2, "Unknown model 'none'. Available: yolox_nano, motion, "
    ),
    "bench, no such model file": Refusal(["bench", "--source", A_FILE, "--model", "./none.onnx"], 2, "none.onnx"),
    "bench, fps is a word": Refusal(["bench", "--source", A_FILE, "--fps", "fast"], 2, "Invalid frame rate 'fast'. Use a number"),
    "bench, too little time": Refusal(["bench", "--seconds", "0"], 2, "Invalid --seconds: .*See: vidflow bench --help$"),
    "no command": Refusal([], 2, r"Missing command. Commands: api, .*, run, .*\. See: vidflow --help$"),
    "a misspelt option": Refusal(["run", A_FILE, "--fpz", "1"], 2, r"No such option: --fpz .*--fps\)\. See: vidflow run --help$"),
    "invalid MAX_WORKERS": Refusal(["runner"], 2, r"Invalid MAX_WORKERS \(--max-workers\): .* valid integer", {"MAX_WORKERS": "x"}),
    "dlq with the output format of run": Refusal(["dlq", "list"], 3, NO_KAFKA, {"VIDFLOW_OUTPUT": "csv"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def command_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CompletedProcess[str]]:
    """Run all these command lines."""
    commands = [Command(case.arguments, build_environment(case.variables)) for case in REFUSALS.values()]
    return dict(zip(REFUSALS, run_commands(tmp_path_factory.mktemp("commands"), commands), strict=True))


def assert_says(text: str, pattern: str) -> None:
    """Assert that the output contains the pattern, across lines, and no internals."""
    plain_text = " ".join(text.split())
    assert re.search(pattern, plain_text), plain_text
    assert hides_internals(text)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_command_ends_with_one_line_and_its_exit_code(
    name: str, command_results: dict[str, CompletedProcess[str]]
) -> None:
    end, refusal = command_results[name], REFUSALS[name]
    assert end.returncode == refusal.code, end.stderr
    assert [line[:9] for line in end.stderr.splitlines()] == ["vidflow: "], end.stderr
    assert_says(end.stderr, refusal.pattern)
    assert end.stdout == ""


def test_the_version_is_printed() -> None:
    end = run_command("--version")
    assert (end.returncode, end.stderr) == (0, "")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", end.stdout)


def test_a_port_in_use_is_reported_in_one_line() -> None:
    with RefusingServer() as other:
        end = run_command("api", *DATABASE, "--no-inbox", "--port", str(other.port))
    assert end.returncode == 3
    assert_says(end.stderr, rf"cannot listen on 127.0.0.1:{other.port} \(.*\)\. Choose another --port")


def test_a_rejected_password_is_reported_in_one_line(database_url: str) -> None:
    wrong_url = re.sub(r"(?<=vidflow):[^@]*@", f":{SECRET}@", database_url)
    for command in (["relay", *KAFKA], ["db", "status"], ["db", "migrate"]):
        end = run_command(*command, "--database-url", wrong_url)
        assert end.returncode == 3, end.stderr
        assert len(end.stderr.splitlines()) == 1
        assert_says(
            end.stderr, "PostgreSQL rejected the connection of VIDFLOW_DATABASE_URL .*password authentication failed"
        )


def test_status_lists_the_applied_migrations_and_ends_with_0(database_url: str) -> None:
    end = run_command("db", "status", "--database-url", database_url)
    assert (end.returncode, end.stderr) == (0, "")
    assert re.fullmatch(r"(applied  \d{4}_\S+\n)+", end.stdout)


@pytest.mark.long
def test_rejected_outbox_messages_are_listed_retried_and_dropped(database_url: str) -> None:
    with connect(database_url, name="test") as connection:
        connection.execute("TRUNCATE outbox RESTART IDENTITY")
        outbox.add_messages(
            connection,
            [outbox.OutboxMessage(topic="t", key="k", kind="deploy", epoch=1, payload=b"x") for _ in range(2)],
        )
        outbox.set_aside(connection, 1, "too large")
    database = ["--database-url", database_url]
    assert re.fullmatch(
        r"1  \S+ \S+  t  k  deploy, epoch 1, 1 bytes: too large\n", run_command("outbox", "list", *database).stdout
    )
    assert run_command("outbox", "retry", "1", *database).stdout == "to be sent again: 1 of 1\n"
    assert run_command("outbox", "list", *database).stdout == "no message is set aside\n"
    assert run_command("outbox", "drop", "2", *database).stdout == "deleted: 0 of 1\n"


@pytest.mark.parametrize("role", ["api", "relay", "inbox", "orchestrator"])
def test_a_role_without_its_database_logs_once_what_it_needs_and_waits(tmp_path: Path, role: str) -> None:
    with RefusingServer() as server:
        database = ["--database-url", f"postgresql://vidflow:{SECRET}@127.0.0.1:{server.port}/vidflow"]
        with running_command(
            tmp_path, role, *database, *KAFKA, *(["--port", str(free_port())] if role == "api" else [])
        ) as waiting:
            waiting.wait_for("away")
            attempts = server.connections
            wait_until(lambda: server.connections >= attempts + 3, "it keeps trying")
            [line] = [line for line in waiting.stderr.splitlines() if "listening" not in line]
            assert_says(
                line,
                r"server=PostgreSQL .*waiting; start it, or set VIDFLOW_DATABASE_URL; `vidflow dev` starts its own",
            )
            assert waiting.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("role", ["relay", "inbox", "orchestrator", "runner"])
def test_a_role_without_kafka_logs_once_what_it_needs_and_waits(tmp_path: Path, role: str, database_url: str) -> None:
    with RefusingServer() as server:
        database = [] if role == "runner" else ["--database-url", database_url]
        with running_command(tmp_path, role, *database, "--kafka", f"127.0.0.1:{server.port}") as waiting:
            waiting.wait_for("away")
            attempts = server.connections
            wait_until(lambda: server.connections >= attempts + 10, "it keeps trying")
            [line] = [line for line in waiting.stderr.splitlines() if " info " not in line]
            assert_says(line, r"server=Kafka .*waiting; start it, or set VIDFLOW_KAFKA; `vidflow dev` starts its own")
            assert waiting.stop() == 0


def test_a_role_without_its_topics_says_how_to_create_them_and_waits(
    tmp_path: Path, database_url: str, kafka_settings: KafkaSettings
) -> None:
    remove_topics(kafka_settings)
    with running_command(
        tmp_path, "inbox", "--database-url", database_url, "--kafka", kafka_settings.bootstrap
    ) as waiting:
        waiting.wait_for("topic_missing .*vidflow topics create")
        end = run_command("topics", "create", "--kafka", kafka_settings.bootstrap)
        assert (end.returncode, end.stderr) == (0, "")
        assert end.stdout.startswith("created ")
        waiting.wait_for("back server=Kafka")
        assert waiting.stop() == 0
    assert run_command("topics", "create", "--kafka", kafka_settings.bootstrap).stdout == "all topics exist\n"


def test_the_settings_of_an_existing_topic_are_corrected(kafka_settings: KafkaSettings) -> None:
    remove_topics(kafka_settings)
    client = admin.create_admin(kafka_settings)
    [created] = client.create_topics([NewTopic(DEAD_LETTERS, 1, 1)]).values()
    created.result()
    end = run_command("topics", "create", "--kafka", kafka_settings.bootstrap)
    assert (end.returncode, end.stderr) == (0, "")
    assert_says(
        end.stdout,
        r"changed dead_letters: message.timestamp.type=LogAppendTime \(was CreateTime\), cleanup.policy=compact \(was delete\)",
    )
    assert run_command("topics", "create", "--kafka", kafka_settings.bootstrap).stdout == "all topics exist\n"


@pytest.mark.long
def test_topics_of_pools_are_created_like_the_default_and_weak_topics_are_reported(
    kafka_settings: KafkaSettings,
) -> None:
    remove_topics(kafka_settings, [*PARTITIONS, "to_deploy.gpu", "to_deploy.a_b"])
    client = admin.create_admin(kafka_settings)
    [created] = client.create_topics([NewTopic(DEAD_LETTERS, 1, 1)]).values()
    created.result()
    create = ["topics", "create", "--kafka", kafka_settings.bootstrap]
    end = run_command(
        *create, "--pool", "gpu", "--pool", "a_b", "--replication-factor", "1", "--min-insync-replicas", "1"
    )
    assert (end.returncode, end.stderr) == (0, "")
    assert_says(end.stdout, r"created .*to_deploy\.gpu, to_deploy\.a_b")
    for topic in ("to_deploy.gpu", "to_deploy.a_b"):
        assert len(offsets.read_partitions(client, topic)) == PARTITIONS["to_deploy.default"]
    end = run_command(*create, "--pool", "gpu", "--replication-factor", "2", "--min-insync-replicas", "2")
    assert (end.returncode, end.stdout) == (0, "all topics exist\n")
    assert_says(
        end.stderr,
        r"dead_letters is weaker than required: 1 replicas instead of 2 .*min.insync.replicas=1 instead of 2",
    )
    assert_says(end.stderr, "to_deploy.gpu is weaker than required")
    remove_topics(kafka_settings, ["results"])
    end = run_command(*create, "--replication-factor", "2")
    assert end.returncode == 3
    assert_says(end.stderr, "vidflow: Kafka refuses to create topic results: .*[Rr]eplication")
    end = run_command(*create, "--pool", "a.b")
    assert end.returncode == 3
    assert_says(end.stderr, "vidflow: Kafka refuses to create topic to_deploy.a.b: .*collides")
    remove_topics(kafka_settings, ["to_deploy.gpu", "to_deploy.a_b"])


def test_video_fps_is_the_frame_rate_of_scenarios_that_specify_none(tmp_path: Path, database_url: str) -> None:
    port = free_port()
    variables = {
        "VIDEO_FPS": "3",
        "VIDFLOW_DATABASE_URL": database_url,
        "VIDFLOW_INBOX": "false",
        "VIDFLOW_PORT": str(port),
    }
    with (
        running_command(tmp_path, "api", variables=variables) as api,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        wait_until(lambda: is_ready(client), "it is ready")
        response = client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"})
        assert (response.status_code, response.json()["fps"]) == (201, 3)
        assert api.stop() == 0


@pytest.mark.long
def test_max_workers_is_the_number_of_slots_of_a_runner(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    topics.create_topics(kafka_settings)
    variables = {"MAX_WORKERS": "7", "VIDFLOW_KAFKA": kafka_settings.bootstrap}
    with running_command(tmp_path, "runner", variables=variables) as runner:
        cap = default_memory_cap(available_bytes(), 7)
        runner.wait_for(f"runner_ready .*slots=7 worker_memory_bytes={cap}")
        assert runner.stop() == 0


class RestartableServers:
    """A separate PostgreSQL and Kafka that a test may stop and start again."""

    def __init__(self, folder: Path) -> None:
        cache = read_environment_variable("VIDFLOW_CACHE_DIR")
        self.postgres = EmbeddedPostgres(folder / "postgres", notify=print, stop=Stop())
        self.kafka = EmbeddedKafka(folder / "kafka", notify=print, stop=Stop(), cache=cache)

    def start(self) -> None:
        self.postgres.start()
        migrate(self.postgres.url, print)
        self.kafka.start()
        topics.create_topics(self.kafka.settings)

    def stop(self) -> None:
        self.kafka.stop()
        self.postgres.stop()

    @property
    def variables(self) -> dict[str, str]:
        return {"VIDFLOW_DATABASE_URL": self.postgres.url, "VIDFLOW_KAFKA": self.kafka.bootstrap}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableServers]:
    servers = RestartableServers(tmp_path_factory.mktemp("servers"))
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


class RunningRoles:
    """One process of each role on these servers, and a client of the api."""

    def __init__(
        self, servers: RestartableServers, roles: dict[str, RunningCommand], url: str, metrics_ports: dict[str, int]
    ) -> None:
        self.servers = servers
        self.roles = roles
        self.metrics_ports = metrics_ports
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=10)

    def is_healthy(self) -> bool:
        try:
            return self.http.get("/health/system").status_code == 200
        except httpx.TransportError:
            return False

    def create_scenario(self, source: Path, **fields: Any) -> str:
        response = self.http.post(
            "/scenario/init", json={"source": str(source), "model": "motion", "fps": "all", **fields}
        )
        assert response.status_code == 201, response.text
        return str(response.json()["scenario_uuid"])

    def wait_until_inactive(self, uuid: str) -> dict[str, Any]:
        wait_until(lambda: self.scenario(uuid)["state"] == "inactive", f"{uuid} ends", LIMIT_S)
        return self.scenario(uuid)

    def scenario(self, uuid: str) -> dict[str, Any]:
        return dict(self.http.get(f"/scenario/{uuid}").json())

    def metrics(self, role: str) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_ports[role]}/metrics").text

    def latest_uuid(self) -> str:
        """Return the uuid of the scenario created last."""
        return str(self.http.get("/scenario", params={"limit": 1}).json()["items"][0]["scenario_uuid"])


@pytest.fixture(scope="module")
def running_roles(tmp_path_factory: pytest.TempPathFactory, servers: RestartableServers) -> Iterator[RunningRoles]:
    port, folder = free_port(), tmp_path_factory.mktemp("roles")
    commands = {
        "api": ["api", "--no-inbox", "--any-file", "--port", str(port)],
        "relay": ["relay"],
        "inbox": ["inbox"],
        "orchestrator": ["orchestrator"],
        "runner": ["runner", "--any-file", "--allow-source-network", "127.0.0.0/8"],
    }
    metrics_ports = {role: free_port() for role in commands if role != "api"}
    for role, metrics_port in metrics_ports.items():
        commands[role] += ["--metrics-port", str(metrics_port)]
    with ExitStack() as stack:
        roles = {
            role: stack.enter_context(running_command(folder, *arguments, variables=servers.variables))
            for role, arguments in commands.items()
        }
        running = RunningRoles(servers, roles, f"http://127.0.0.1:{port}", metrics_ports)
        wait_until(running.is_healthy, "the system is healthy", LIMIT_S)
        yield running
        running.http.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.constant_rate(tmp_path_factory.mktemp("clips") / "short.mp4", frames=20)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip that takes minutes to process."""
    return clips.constant_rate(tmp_path_factory.mktemp("clips") / "endless.mp4", frames=30_000)


@pytest.mark.long
def test_each_role_serves_its_metrics_on_its_metrics_port(running_roles: RunningRoles, clip: Path) -> None:
    assert running_roles.wait_until_inactive(running_roles.create_scenario(clip))["outcome"] == "completed"
    patterns_by_role = {
        "relay": [r"vidflow_relay_published_total [1-9]"],
        "inbox": [
            r'vidflow_inbox_messages_total\{verdict="stored"\} [1-9]', r'vidflow_inbox_lag_messages\{partition="0"\} 0\.0',
            r"vidflow_inbox_store_seconds_count [1-9]", r"vidflow_inbox_first_frame_seconds_count [1-9]",
        ],
        "orchestrator": [
            r"vidflow_orchestrator_leads 1\.0", r'vidflow_orchestrator_moves_total\{to="inactive"\} [1-9]',
            r'vidflow_orchestrator_ended_total\{outcome="completed"\} [1-9]', r"vidflow_orchestrator_tick_seconds_count [1-9]",
        ],
        "runner": [
            r"vidflow_runner_slots 2\.0", r'vidflow_runner_worker_ends_total\{reason="finished"\} [1-9]',
            r"vidflow_worker_frames_total [1-9]\d", r"vidflow_worker_decode_seconds_count [1-9]",
            r"vidflow_worker_inference_seconds_count [1-9]",
        ],
    }  # fmt: skip
    for role, patterns in patterns_by_role.items():
        for pattern in [*patterns, rf'vidflow_build_info\{{python="[^"]+",role="{role}",version=']:
            wait_until(
                lambda role=role, pattern=pattern: re.search(pattern, running_roles.metrics(role)) is not None,
                f"{role} has {pattern}", 10,
            )  # fmt: skip


CAMERAS = (
    "rtsp://admin:{secret}@127.0.0.1:9/live", "rtsp://127.0.0.1:9/user=admin_password={secret}_channel=1_stream=0.sdp?real_stream",
)  # fmt: skip
VIDEOS = (
    "http://admin:{secret}@{host}/v.mp4", "http://{host}/videostream.cgi?user=admin&loginpas={secret}", "http://{host}/v.mp4?jwt={secret}",
    "http://{host}/v.mp4?md5={secret}", "http://{host}/v.mp4#access_token={secret}", "http://{host}/file/bot123:{secret}/v.mp4",
    "http://{host}/v.mp4?unheard_of={secret}", "http://{host}/user=admin_password={secret}_channel=1",
    "http://{host}/live?stream={secret}", "http://{host}/v.mp4?channel=1#t={secret}",
)  # fmt: skip
REFUSED = (
    "ftp://admin:{secret}@{host}/v.mp4",
    "rtsp://admin:pa/{secret}@{host}/live",
    "http://admin:{secret}@:9/v.mp4",
)


@pytest.mark.long
def test_the_secrets_of_sources_are_shown_nowhere(running_roles: RunningRoles) -> None:
    secret = "Hunter2xHunter2x"  # noqa: S105 - searched for in everything that is shown
    shown: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyHandler) as server:
        start_thread("empty server", server.serve_forever, Stop())

        def request_scenario(source: str) -> str:
            body = {"source": source.format(secret=secret, host=f"127.0.0.1:{server.server_port}"), "model": "motion"}
            shown.append(running_roles.http.post("/scenario/init", json=body).text)
            return str(json.loads(shown[-1]).get("scenario_uuid"))

        assert [request_scenario(source) for source in REFUSED] == ["None"] * len(REFUSED)
        videos = [request_scenario(source) for source in VIDEOS]
        cameras = [request_scenario(source) for source in CAMERAS]
        errors = [running_roles.wait_until_inactive(uuid)["error"] for uuid in videos]
        for uuid in cameras:
            wait_until(
                lambda uuid=uuid: running_roles.scenario(uuid)["source_error"] is not None,
                "the camera is missed",
                LIMIT_S,
            )
            running_roles.roles["runner"].wait_for(f"source_lost scenario_uuid={uuid} .*127.0.0.1")
        server.shutdown()
    assert all("The server refused http://" in error["message"] for error in errors), errors
    for uuid in videos + cameras:
        shown += [running_roles.http.get(f"/scenario/{uuid}{path}").text for path in ("", "/history", "/gaps")]
        shown.append(running_roles.http.post(f"/scenario/{uuid}/shutdown").text)
    for uuid in cameras:
        assert running_roles.wait_until_inactive(uuid)["outcome"] == "stopped"  # they would keep their slots
    shown += [
        running_roles.http.get("/scenario", params={"limit": 100}).text,
        *(role.stderr for role in running_roles.roles.values()),
    ]
    assert [text for text in shown if "unter2x" in text] == []


class EmptyHandler(BaseHTTPRequestHandler):
    """A server without any files."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.long
@pytest.mark.fault
def test_roles_wait_for_a_database_that_is_away_and_log_it_once(running_roles: RunningRoles, clip: Path) -> None:
    affected = [running_roles.roles[role] for role in ("api", "relay", "inbox", "orchestrator")]
    process = running_roles.servers.postgres.process
    assert process is not None
    process.send_signal(signal.SIGINT)
    process.wait(20)
    wait_until(lambda: running_roles.http.get("/health/ready").status_code == 503, "the api is not ready")
    for role in affected:
        role.wait_for(" away server=PostgreSQL .*needs=waiting; start it, or set VIDFLOW_DATABASE_URL")
    running_roles.servers.postgres.start()
    wait_until(running_roles.is_healthy, "the system is healthy again", LIMIT_S)
    assert running_roles.wait_until_inactive(running_roles.create_scenario(clip))["outcome"] == "completed"
    for role in affected:
        role.wait_for(" back server=PostgreSQL")
        assert len(role.error_lines(" away | back ")) == 2, role.stderr
        assert len(role.error_lines("PostgreSQL|postgres")) <= 3, role.stderr


@pytest.mark.long
@pytest.mark.fault
def test_roles_wait_for_a_kafka_that_is_away_and_log_it_once(running_roles: RunningRoles, clip: Path) -> None:
    affected = [running_roles.roles[role] for role in ("relay", "inbox", "orchestrator", "runner")]
    process = running_roles.servers.kafka.process
    assert process is not None
    process.terminate()
    process.wait(20)
    for role in affected:
        role.wait_for(" away server=Kafka .*needs=waiting; start it, or set VIDFLOW_KAFKA")
    uuid = running_roles.create_scenario(clip)  # the api needs no Kafka
    running_roles.servers.kafka.start()
    for role in affected:
        role.wait_for(" back server=Kafka")
    assert running_roles.wait_until_inactive(uuid)["outcome"] == "completed"
    for role in affected:
        assert len(role.error_lines("server=Kafka")) == 2, role.stderr


@pytest.mark.long
def test_run_prints_the_same_frames_as_ndjson_json_and_csv_and_nothing_else_to_standard_output(
    running_roles: RunningRoles, shared: Path
) -> None:
    video = str(shared / "videos/vtest.avi")
    ends = {
        output: run_command("run", video, "--fps", "1", "--output", output, "--url", running_roles.url)
        for output in ("ndjson", "json", "csv")
    }
    assert {end.returncode for end in ends.values()} == {0}, [end.stderr for end in ends.values()]
    frames = [json.loads(line) for line in ends["ndjson"].stdout.splitlines()]
    assert [frame["frame_number"] for frame in frames] == list(range(80))
    assert set(frames[0]) == {"frame_number", "epoch", "time_s", "width", "height", "detections"}
    for frame in [*frames, *(array := json.loads(ends["json"].stdout))]:
        del frame["epoch"]  # each run has its own
    assert array == frames
    rows = list(csv.DictReader(io.StringIO(ends["csv"].stdout)))
    boxes = [(frame["frame_number"], *detection["box"]) for frame in frames for detection in frame["detections"]]
    assert [
        (int(row["frame_number"]), *(float(row[side]) for side in ("x1", "y1", "x2", "y2")))
        for row in rows
        if row["label"]
    ] == boxes
    assert {int(row["frame_number"]) for row in rows} == set(range(80))
    assert "completed: 80 frames" in ends["csv"].stderr


@pytest.mark.long
def test_run_with_a_bad_source_prints_the_error_and_ends_with_2(running_roles: RunningRoles, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    end = run_command("run", str(text), "--output", "ndjson", "--url", running_roles.url)
    assert (end.returncode, end.stdout) == (2, "")
    assert_says(end.stderr.splitlines()[-1], r"vidflow: Scenario \S+ failed: .*text.mp4 is not a video")


@pytest.mark.long
def test_run_at_a_url_prints_the_error_of_the_api(running_roles: RunningRoles, clip: Path) -> None:
    end = run_command("run", str(clip), "--model", "none", "--url", running_roles.url)
    assert (end.returncode, end.stdout) == (2, "")
    assert len(end.stderr.splitlines()) == 1
    assert_says(end.stderr, "vidflow: Unknown model 'none'. Available: yolox_nano, motion, ")


@pytest.mark.long
def test_ctrl_c_in_run_requests_a_shutdown_and_ends_with_130(
    running_roles: RunningRoles, endless: Path, tmp_path: Path
) -> None:
    with running_command(tmp_path, "run", str(endless), "--output", "ndjson", "--url", running_roles.url) as run:
        wait_until(lambda: "\n" in run.stdout, "the first frame is printed", LIMIT_S)
        assert run.stop(signal.SIGINT) == 130
    assert_says(run.stderr, "shutdown requested")
    assert running_roles.wait_until_inactive(running_roles.latest_uuid())["outcome"] == "stopped"
    frames = [json.loads(line) for line in run.stdout.splitlines()]
    assert [frame["frame_number"] for frame in frames] == list(range(len(frames)))


@pytest.mark.long
def test_run_with_a_closed_pipe_requests_a_shutdown_and_ends_with_141(
    running_roles: RunningRoles, endless: Path
) -> None:
    command = [sys.executable, "-m", "vidflow", "run", str(endless), "--output", "ndjson", "--url", running_roles.url]
    with subprocess.Popen(
        command, env=build_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        first_line = run.stdout.readline()
        run.stdout.close()
        stderr = run.stderr.read()
        assert run.wait(LIMIT_S) == 141
    assert json.loads(first_line)["frame_number"] == 0
    assert_says(stderr, "shutdown requested$")
    assert running_roles.wait_until_inactive(running_roles.latest_uuid())["outcome"] == "stopped"


@pytest.mark.long
@pytest.mark.fault
def test_run_continues_when_the_api_is_killed_and_restarted(
    running_roles: RunningRoles, shared: Path, tmp_path: Path
) -> None:
    video = str(shared / "videos/vtest.avi")
    with running_command(tmp_path, "run", video, "--fps", "5", "--output", "ndjson", "--url", running_roles.url) as run:
        wait_until(lambda: "\n" in run.stdout, "the first frame is printed", LIMIT_S)
        running_roles.roles["api"].stop(signal.SIGKILL)
        run.wait_for("trying again for up to 30 s")
        arguments = ["api", "--no-inbox", "--any-file", "--port", running_roles.url.rpartition(":")[2]]
        with running_command(tmp_path, *arguments, variables=running_roles.servers.variables):
            assert run.process.wait(2 * LIMIT_S) == 0, run.stderr
    assert [json.loads(line)["frame_number"] for line in run.stdout.splitlines()] == list(range(398))
    assert hides_internals(run.stderr)
    assert len(run.error_lines("trying again for up to 30 s")) == 1


@pytest.mark.long
def test_run_starts_its_own_vidflow_and_leaves_no_processes(clip: Path, tmp_path: Path) -> None:
    with running_command(tmp_path, "run", str(clip), "--output", "ndjson") as run:
        run.wait_for("scenario ")
        processes = descendants(run.process.pid)
        assert run.process.wait(LIMIT_S) == 0, run.stderr
    assert [json.loads(line)["frame_number"] for line in run.stdout.splitlines()] == list(range(20))
    assert run.stderr.splitlines()[-1] == "completed: 20 frames"
    assert len(processes) >= 7
    wait_until(lambda: not any(map(is_alive, processes)), "all of its processes are gone")


@pytest.mark.long
def test_run_shares_its_model_if_it_is_told_to(clip: Path, tmp_path: Path) -> None:
    variables = {"VIDFLOW_INFERENCE": "shared"}
    with running_command(tmp_path, "run", str(clip), "--output", "ndjson", variables=variables) as run:
        names: set[str] = set()

        def has_ended() -> bool:
            names.update(map(name_of, descendants(run.process.pid)))
            return not run.is_running()

        wait_until(has_ended, "the run has ended", LIMIT_S)
        assert run.process.returncode == 0, run.stderr
    assert "vidflow-infer" in names


@pytest.mark.long
@pytest.mark.parametrize("step", ["starting PostgreSQL", "starting Kafka", "starting orchestrator"])
def test_ctrl_c_in_run_while_its_vidflow_starts_stops_everything_with_130(
    clip: Path, tmp_path: Path, step: str
) -> None:
    with running_command(tmp_path, "run", str(clip), "--output", "ndjson") as run:
        run.wait_for(step)
        processes = descendants(run.process.pid)
        assert run.stop(signal.SIGINT, limit_s=LIMIT_S) == 130, run.stderr
    assert hides_internals(run.stderr)
    assert run.stderr.splitlines()[-1] == "cancelled before the scenario was created"
    assert run.stdout == ""
    wait_until(lambda: not any(map(is_alive, processes)), "all of its processes are gone")


def test_run_at_the_url_of_another_server_is_refused() -> None:
    with other_web_server() as url:
        end = run_command("run", A_FILE, "--url", url)
    assert (end.returncode, end.stdout) == (2, "")
    assert_says(end.stderr, f"vidflow: The server at {url} is not a vidflow of this version")


HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\nvidflow: forged"
ESCAPED = r"\x1b]0;title\x07\x9b2J\u202e\nvidflow: forged"


class Hostile(BaseHTTPRequestHandler):
    """Refuses every request with a message that tries to control the terminal."""

    def do_POST(self) -> None:
        body = json.dumps({"title": "no", "detail": f"{HOSTILE} http://h/?token=hidden", "code": HOSTILE}).encode()
        self.send_response(422)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_response_of_a_hostile_server_cannot_control_the_terminal(tmp_path: Path) -> None:
    video = clips.constant_rate(tmp_path / "short.mp4", frames=2)
    with HTTPServer(("127.0.0.1", 0), Hostile) as server:
        thread = start_thread("hostile", server.serve_forever, Stop())
        end = run_command("run", str(video), "--url", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert (end.returncode, end.stderr) == (2, f"vidflow: {ESCAPED} http://h/?token=***\n")


def test_a_usage_error_escapes_control_characters() -> None:
    for arguments in (["api", "--log-format", "\x1b[31mred"], ["\x1b[31mred"], ["api", "--\x1b[31mred"]):
        end = run_command(*arguments)
        assert end.returncode == 2
        assert r"\x1b[31mred" in end.stderr
        assert "\x1b" not in end.stderr


class Greeting(BaseHTTPRequestHandler):
    """Responds to every request with the same page."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>It works!</h1>")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def other_web_server() -> Iterator[str]:
    """Run a web server other than vidflow, and yield its URL."""
    with HTTPServer(("127.0.0.1", 0), Greeting) as server:
        thread = threading.Thread(target=server.serve_forever, name="other web server")
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
