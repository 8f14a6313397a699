"""The command line as people meet it: its help, its exit codes, what it says without its servers. Real processes."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import msgspec
import pytest
import typer
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
    running_command,
)
from tests.integration.delivery import remove_topics
from tests.integration.processes import descendants, is_alive
from tests.integration.server_owner import wait_until

from vidflow.cli.app import app
from vidflow.domain.messages import DEAD_LETTERS, PARTITIONS
from vidflow.domain.runner import default_memory_cap
from vidflow.infra.embedded.kafka import EmbeddedKafka
from vidflow.infra.embedded.postgres import EmbeddedPostgres
from vidflow.infra.kafka import admin, offsets, topics
from vidflow.infra.kafka.settings import KafkaSettings
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
    """A command line that ends by itself, with which exit code and which one line."""

    arguments: list[str]
    code: int
    says: str
    given: dict[str, str] = {}


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
    "restore of what is no backup": Refusal(["db", "restore", "/tmp", *DATABASE], 2, "/tmp holds no backup written by `vidflow db backup`"),
    "scenarios that go before their results": Refusal(
        ["orchestrator", *DATABASE, *KAFKA, "--keep-scenarios-days", "30"], 3, "30 needs --keep-results-days of at most 30"
    ),
    "api that lets other machines name models by path": Refusal(
        ["api", *DATABASE, *KAFKA, "--any-onnx", "--host", "192.0.2.1"], 3, "--any-onnx .*needs a loopback --host, not 192.0.2.1"
    ),
    "api without Kafka for its inbox": Refusal(["api", *DATABASE], 3, r"No Kafka is configured.*--no-inbox"),
    "relay without Kafka": Refusal(["relay", *DATABASE], 3, NO_KAFKA),
    "inbox without Kafka": Refusal(["inbox", *DATABASE], 3, NO_KAFKA),
    "orchestrator without Kafka": Refusal(["orchestrator", *DATABASE], 3, NO_KAFKA),
    "runner of a pool that no topic can be named after": Refusal(["runner", *KAFKA, "--pool", "a b"], 2, "Invalid pool name 'a b'"),
    "runner without Kafka": Refusal(["runner"], 3, NO_KAFKA),
    "topics without Kafka": Refusal(["topics", "create"], 3, NO_KAFKA),
    "outbox without a database": Refusal(["outbox", "list"], 3, NO_DATABASE),
    "outbox, the database away": Refusal(["outbox", "retry", "1", *DATABASE], 4, "PostgreSQL does not answer: "),
    "dlq without Kafka": Refusal(["dlq", "list"], 3, NO_KAFKA),
    "dlq, Kafka away": Refusal(["dlq", "list", *KAFKA], 4, "Kafka does not answer .*Start it, or set VIDFLOW_KAFKA"),
    "dlq, nothing named": Refusal(["dlq", "drop", *KAFKA], 2, "name the dead letters by their places .* or give --all"),
    "migrate, the database away": Refusal(["db", "migrate", *DATABASE], 4, "PostgreSQL does not answer: .*Start it, or set"),
    "status, the database away": Refusal(["db", "status", *DATABASE], 4, "PostgreSQL does not answer: .*Start it, or set"),
    "a fixed Kafka property": Refusal(
        ["relay", *DATABASE, *KAFKA], 3, "Kafka property acks cannot be set: .* unset VIDFLOW_KAFKA_ACKS", {"VIDFLOW_KAFKA_ACKS": "1"}
    ),
    "an unknown Kafka property": Refusal(
        ["topics", "create", *KAFKA], 3, 'No such configuration property: "no.such".*--kafka-properties', {"VIDFLOW_KAFKA_NO_SUCH": "1"}
    ),
    "no file of Kafka properties": Refusal(
        ["dlq", "list", *KAFKA, "--kafka-properties", "/no/such"], 3, "/no/such cannot be read .*--kafka-properties"
    ),
    "topics, no such pool": Refusal(["topics", "create", *KAFKA, "--pool", "a b"], 2, "Invalid pool name 'a b'. Use 1 to 200"),
    "topics, more in sync than there are": Refusal(
        ["topics", "create", *KAFKA, "--replication-factor", "2", "--min-insync-replicas", "3"], 3, "is more than --replication-factor 2"
    ),
    "topics, Kafka away": Refusal(["topics", "create", *KAFKA], 4, "Kafka does not answer .*Start it, or set VIDFLOW_KAFKA"),
    "a database's URL that is none": Refusal(["relay", "--database-url", f"db {SECRET}"], 3, "not a PostgreSQL URL"),
    "a database's URL with a broken password": Refusal(
        ["db", "status", "--database-url", f"postgresql://u:{SECRET}%@db/x"], 3, "cannot be parsed. Write postgresql://"
    ),
    "a database's URL with a port that is none": Refusal(
        ["db", "status", "--database-url", f"postgresql://u:{SECRET}@db:port/x"], 3, "cannot be parsed. Write postgresql://"
    ),
    "VIDEO_FPS nonsense": Refusal(["api", *DATABASE, *KAFKA], 3, r"VIDEO_FPS \(--video-fps\) is a number", {"VIDEO_FPS": "x"}),
    "run, no such file": Refusal(["run", "none.mp4"], 2, "none.mp4 is not a file; give a video file, a URL or one of sample:"),
    "run, no such sample": Refusal(["run", "sample:none"], 2, "no sample named none; there are sample:bikes"),
    "run, fps nonsense": Refusal(["run", A_FILE, "--fps", "fast"], 2, "a fraction such as 30000/1001, or all, not fast"),
    "run, fps no number": Refusal(["run", A_FILE, "--fps", "nan"], 2, "--fps is a number .* or all, not nan"),
    "run, fps negative": Refusal(["run", A_FILE, "--fps", "-1"], 2, "--fps is a number .* or all, not -1"),
    "run, unknown output": Refusal(["run", A_FILE, "--output", "yaml"], 2, "--output is one of table, ndjson, json, csv"),
    "run, unknown model": Refusal(["run", A_FILE, "--model", "none"], 2, "Unknown model 'none'. Available: motion, "),
    "run, unknown label": Refusal(["run", A_FILE, "--labels", "cat"], 2, "no label 'cat'. Available: motion"),
    "run, score nonsense": Refusal(["run", A_FILE, "--score", "7"], 2, "--score is a number from 0 to 1"),
    "run, nobody at the URL": Refusal(["run", A_FILE, "--url", "http://127.0.0.1:1"], 4, "Start one with: vidflow dev"),
    "run, a URL that is none": Refusal(["run", A_FILE, "--url", "http://h:port"], 2, "Write http://host:port"),
    "run, a URL without a host": Refusal(["run", A_FILE, "--url", "vidflow"], 2, "Write http://host:port"),
}  # fmt: skip

USAGE = {
    "an unknown command": Refusal(["dance"], 2, "No such command 'dance'"),
    "run without a video": Refusal(["run"], 2, "Missing argument"),
    "MAX_WORKERS nonsense": Refusal(["runner"], 2, "'--max-workers'.*MAX_WORKERS.*valid integer", {"MAX_WORKERS": "x"}),
    "no worker at all": Refusal(["runner", "--max-workers", "0"], 2, "--max-workers"),
    "a port that is none": Refusal(["api", "--port", "99999"], 2, "'--port'.*65535"),
    "a pool without a connection": Refusal(["api", "--pool-size", "0"], 2, "'--pool-size'"),
    "a log format that is none": Refusal(["relay", "--log-format", "xml"], 2, "'xml' is not one of 'text', 'json'"),
    "a group protocol that is none": Refusal(["inbox", "--group-protocol", "x"], 2, "not one of 'consumer', 'classic'"),
}


def commands() -> dict[str, Any]:
    """All commands by the words that are typed for them."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        found.update({f"{name} {inner}": one for inner, one in below.items()} if below else {name: command})
    return found


def options(command: Any) -> dict[str, list[str]]:
    """Each option of a command that is more than a question for help, and its environment variables."""
    given = {one.opts[0]: one.envvar for one in command.params if one.opts[0].startswith("--")}
    return {name: [envvar] if isinstance(envvar, str) else list(envvar or []) for name, envvar in given.items()}


@pytest.fixture(scope="module")
def command_results() -> dict[str, CompletedProcess[str]]:
    """How all those command lines ended, and what each command's help says: run beside each other, since each takes a while."""
    helps = {f"{words} --help": Refusal([*words.split(), "--help"], 0, "") for words in commands()}
    all_of_them = {**REFUSALS, **USAGE, **helps}
    with ThreadPoolExecutor(4) as pool:
        runs = {
            name: pool.submit(run_command, *one.arguments, variables=one.given) for name, one in all_of_them.items()
        }
        return {name: run.result() for name, run in runs.items()}


def assert_says(text: str, pattern: str) -> None:
    """In whatever lines, boxes and colours."""
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    assert re.search(pattern, words), words
    assert hides_internals(text)


@pytest.mark.parametrize("words", commands())
def test_each_command_tells_every_option_with_its_environment_variable(
    words: str, command_results: dict[str, CompletedProcess[str]]
) -> None:
    told = command_results[f"{words} --help"]
    assert told.returncode == 0
    for option, variables in options(commands()[words]).items():
        own = "VIDFLOW_" + option.strip("-").upper().replace("-", "_")
        assert own in variables
        lines = [line for line in told.stdout.splitlines() if f" {option} " in line]
        assert any(all(variable in line for variable in variables) for line in lines), (option, told.stdout)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_done_ends_with_one_line_and_its_exit_code(
    name: str, command_results: dict[str, CompletedProcess[str]]
) -> None:
    end, wanted = command_results[name], REFUSALS[name]
    assert end.returncode == wanted.code, end.stderr
    assert [line[:9] for line in end.stderr.splitlines()] == ["vidflow: "], end.stderr
    assert_says(end.stderr, wanted.says)
    assert end.stdout == ""


@pytest.mark.parametrize("name", USAGE)
def test_a_command_line_that_is_none_ends_with_exit_code_2(
    name: str, command_results: dict[str, CompletedProcess[str]]
) -> None:
    end, wanted = command_results[name], USAGE[name]
    assert end.returncode == wanted.code, end.stderr
    assert_says(end.stderr, wanted.says)
    assert end.stdout == ""


def test_the_version_is_told() -> None:
    end = run_command("--version")
    assert (end.returncode, end.stderr) == (0, "")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", end.stdout)


def test_a_port_in_use_is_said_in_one_line() -> None:
    with RefusingServer() as taken:
        end = run_command("api", *DATABASE, "--no-inbox", "--port", str(taken.port))
    assert end.returncode == 3
    assert_says(end.stderr, rf"cannot listen at 127.0.0.1:{taken.port} \(.*\); choose another --port")


def test_a_password_that_is_refused_is_said_in_one_line(database_url: str) -> None:
    wrong = re.sub(r"(?<=vidflow):[^@]*@", f":{SECRET}@", database_url)
    for command in (["relay", *KAFKA], ["db", "status"], ["db", "migrate"]):
        end = run_command(*command, "--database-url", wrong)
        assert end.returncode == 3, end.stderr
        assert len(end.stderr.splitlines()) == 1
        assert_says(
            end.stderr, "PostgreSQL rejected the connection of VIDFLOW_DATABASE_URL .*password authentication failed"
        )


def test_status_tells_what_is_applied_and_ends_with_0(database_url: str) -> None:
    end = run_command("db", "status", "--database-url", database_url)
    assert (end.returncode, end.stderr) == (0, "")
    assert re.fullmatch(r"(applied  \d{4}_\S+\n)+", end.stdout)


def test_the_outbox_s_refused_messages_are_listed_retried_and_dropped(database_url: str) -> None:
    with connect(database_url, name="test") as tables:
        tables.execute("TRUNCATE outbox RESTART IDENTITY")
        outbox.add_messages(
            tables, [outbox.OutboxMessage(topic="t", key="k", kind="deploy", epoch=1, payload=b"x") for _ in range(2)]
        )
        outbox.set_aside(tables, 1, "too large")
    database = ["--database-url", database_url]
    assert re.fullmatch(
        r"1  \S+ \S+  t  k  deploy, epoch 1, 1 bytes: too large\n", run_command("outbox", "list", *database).stdout
    )
    assert run_command("outbox", "retry", "1", *database).stdout == "sent again: 1 of 1\n"
    assert run_command("outbox", "list", *database).stdout == "no message is set aside\n"
    assert run_command("outbox", "drop", "2", *database).stdout == "deleted: 0 of 1\n"


@pytest.mark.parametrize("role", ["api", "relay", "inbox", "orchestrator"])
def test_a_role_without_its_database_says_once_what_it_needs_and_waits(tmp_path: Path, role: str) -> None:
    with RefusingServer() as nobody:
        database = ["--database-url", f"postgresql://vidflow:{SECRET}@127.0.0.1:{nobody.port}/vidflow"]
        with running_command(
            tmp_path, role, *database, *KAFKA, *(["--port", str(free_port())] if role == "api" else [])
        ) as waiting:
            waiting.wait_for("away")
            calls = nobody.connections
            wait_until(lambda: nobody.connections >= calls + 3, "it tries again and again")
            [line] = [line for line in waiting.stderr.splitlines() if "listening" not in line]
            assert_says(
                line,
                r"server=PostgreSQL .*waiting; start it, or set VIDFLOW_DATABASE_URL; `vidflow dev` starts its own",
            )
            assert waiting.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("role", ["relay", "inbox", "orchestrator", "runner"])
def test_a_role_without_kafka_says_once_what_it_needs_and_waits(tmp_path: Path, role: str, database_url: str) -> None:
    with RefusingServer() as nobody:
        database = [] if role == "runner" else ["--database-url", database_url]
        with running_command(tmp_path, role, *database, "--kafka", f"127.0.0.1:{nobody.port}") as waiting:
            waiting.wait_for("away")
            calls = nobody.connections
            wait_until(lambda: nobody.connections >= calls + 10, "it tries again and again")
            [line] = [line for line in waiting.stderr.splitlines() if " info " not in line]
            assert_says(line, r"server=Kafka .*waiting; start it, or set VIDFLOW_KAFKA; `vidflow dev` starts its own")
            assert waiting.stop() == 0


def test_a_role_that_finds_kafka_without_its_topics_says_what_to_type(
    tmp_path: Path, database_url: str, kafka_settings: KafkaSettings
) -> None:
    remove_topics(kafka_settings)
    with running_command(
        tmp_path, "inbox", "--database-url", database_url, "--kafka", kafka_settings.bootstrap
    ) as waiting:
        waiting.wait_for("topic_missing .*vidflow topics create")
        end = run_command("topics", "create", "--kafka", kafka_settings.bootstrap)
        assert (end.returncode, end.stderr) == (0, "")
        assert end.stdout.startswith("made ")
        waiting.wait_for("back server=Kafka")
        assert waiting.stop() == 0
    assert run_command("topics", "create", "--kafka", kafka_settings.bootstrap).stdout == "all topics were there\n"


def test_a_topic_that_is_there_is_given_the_settings_that_vidflow_needs(kafka_settings: KafkaSettings) -> None:
    remove_topics(kafka_settings)
    client = admin.create_admin(kafka_settings)
    [made] = client.create_topics([NewTopic(DEAD_LETTERS, 1, 1)]).values()
    made.result()
    end = run_command("topics", "create", "--kafka", kafka_settings.bootstrap)
    assert (end.returncode, end.stderr) == (0, "")
    assert_says(
        end.stdout,
        r"set of dead_letters: message.timestamp.type=LogAppendTime \(was CreateTime\), cleanup.policy=compact \(was delete\)",
    )
    assert run_command("topics", "create", "--kafka", kafka_settings.bootstrap).stdout == "all topics were there\n"


def test_a_pools_topic_is_made_like_the_default_pools_and_topics_with_less_than_asked_are_reported(
    kafka_settings: KafkaSettings,
) -> None:
    remove_topics(kafka_settings, [*PARTITIONS, "to_deploy.gpu", "to_deploy.a_b"])
    client = admin.create_admin(kafka_settings)
    [made] = client.create_topics([NewTopic(DEAD_LETTERS, 1, 1)]).values()
    made.result()
    create = ["topics", "create", "--kafka", kafka_settings.bootstrap]
    end = run_command(
        *create, "--pool", "gpu", "--pool", "a_b", "--replication-factor", "1", "--min-insync-replicas", "1"
    )
    assert (end.returncode, end.stderr) == (0, "")
    assert_says(end.stdout, r"made .*to_deploy\.gpu, to_deploy\.a_b")
    for topic in ("to_deploy.gpu", "to_deploy.a_b"):
        assert len(offsets.read_partitions(client, topic)) == PARTITIONS["to_deploy.default"]
    end = run_command(*create, "--pool", "gpu", "--replication-factor", "2", "--min-insync-replicas", "2")
    assert (end.returncode, end.stdout) == (0, "all topics were there\n")
    assert_says(
        end.stderr,
        r"dead_letters has less than it should: 1 replicas instead of 2 .*min.insync.replicas=1 instead of 2",
    )
    assert_says(end.stderr, "to_deploy.gpu has less than it should")
    remove_topics(kafka_settings, ["results"])
    end = run_command(*create, "--replication-factor", "2")
    assert end.returncode == 3
    assert_says(end.stderr, "vidflow: Kafka refuses to create topic results: .*[Rr]eplication")
    end = run_command(*create, "--pool", "a.b")
    assert end.returncode == 3
    assert_says(end.stderr, "vidflow: Kafka refuses to create topic to_deploy.a.b: .*collides")
    remove_topics(kafka_settings, ["to_deploy.gpu", "to_deploy.a_b"])


def test_video_fps_is_what_a_scenario_has_that_names_no_rate(tmp_path: Path, database_url: str) -> None:
    port = free_port()
    given = {
        "VIDEO_FPS": "3",
        "VIDFLOW_DATABASE_URL": database_url,
        "VIDFLOW_INBOX": "false",
        "VIDFLOW_PORT": str(port),
    }
    with (
        running_command(tmp_path, "api", variables=given) as api,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        wait_until(lambda: is_ready(client), "it is ready")
        answer = client.post("/scenario/init", json={"source": SOURCE_URL, "model": "motion"})
        assert (answer.status_code, answer.json()["fps"]) == (201, 3)
        assert api.stop() == 0


@pytest.mark.long
def test_max_workers_is_how_many_slots_a_runner_has(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    topics.create_topics(kafka_settings)
    given = {"MAX_WORKERS": "7", "VIDFLOW_KAFKA": kafka_settings.bootstrap}
    with running_command(tmp_path, "runner", variables=given) as runner:
        cap = default_memory_cap(available_bytes(), 7)
        runner.wait_for(f"runner_ready .*slots=7 worker_memory_bytes={cap}")
        assert runner.stop() == 0


class RestartableServers:
    """A PostgreSQL and a Kafka of a test's own, that can be stopped and started again."""

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
    """One of each role at work on these servers, and a client of the api."""

    def __init__(
        self, servers: RestartableServers, roles: dict[str, RunningCommand], url: str, metrics_ports: dict[str, int]
    ) -> None:
        self.servers = servers
        self.roles = roles
        self.metrics_ports = metrics_ports
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=10)

    def at_work(self) -> bool:
        try:
            return self.http.get("/health/system").status_code == 200
        except httpx.TransportError:
            return False

    def create_scenario(self, source: Path, **more: Any) -> str:
        answer = self.http.post("/scenario/init", json={"source": str(source), "model": "motion", "fps": "all", **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["scenario_uuid"])

    def wait_until_inactive(self, uuid: str) -> dict[str, Any]:
        wait_until(lambda: self.scenario(uuid)["state"] == "inactive", f"{uuid} ends", LIMIT_S)
        return self.scenario(uuid)

    def scenario(self, uuid: str) -> dict[str, Any]:
        return dict(self.http.get(f"/scenario/{uuid}").json())

    def metrics(self, role: str) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_ports[role]}/metrics").text

    def newest(self) -> str:
        """The uuid of the scenario that was asked for last."""
        return str(self.http.get("/scenario", params={"limit": 1}).json()["items"][0]["scenario_uuid"])


@pytest.fixture(scope="module")
def running_roles(tmp_path_factory: pytest.TempPathFactory, servers: RestartableServers) -> Iterator[RunningRoles]:
    port, folder = free_port(), tmp_path_factory.mktemp("whole")
    commands = {
        "api": ["api", "--no-inbox", "--any-file", "--port", str(port)],
        "relay": ["relay"],
        "inbox": ["inbox"],
        "orchestrator": ["orchestrator"],
        "runner": ["runner", "--any-file"],
    }
    metrics_ports = {role: free_port() for role in commands if role != "api"}
    for role, own in metrics_ports.items():
        commands[role] += ["--metrics-port", str(own)]
    with ExitStack() as stack:
        roles = {
            role: stack.enter_context(running_command(folder, *words, variables=servers.variables))
            for role, words in commands.items()
        }
        whole = RunningRoles(servers, roles, f"http://127.0.0.1:{port}", metrics_ports)
        wait_until(whole.at_work, "all are at work", LIMIT_S)
        yield whole
        whole.http.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.constant_rate(tmp_path_factory.mktemp("clips") / "short.mp4", frames=20)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Minutes of work."""
    return clips.constant_rate(tmp_path_factory.mktemp("clips") / "endless.mp4", frames=30_000)


@pytest.mark.long
def test_each_role_tells_its_metrics_on_the_port_that_it_is_given(running_roles: RunningRoles, clip: Path) -> None:
    assert running_roles.wait_until_inactive(running_roles.create_scenario(clip))["outcome"] == "completed"
    told = {
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
    for role, patterns in told.items():
        for pattern in [*patterns, rf'vidflow_build_info\{{python="[^"]+",role="{role}",version=']:
            wait_until(
                lambda role=role, pattern=pattern: re.search(pattern, running_roles.metrics(role)) is not None,
                f"{role} has {pattern}", 10,
            )  # fmt: skip


CAMERAS = (
    "rtsp://admin:{secret}@127.0.0.1:9/live", "rtsp://127.0.0.1:9/user=admin_password={secret}_channel=1_stream=0.sdp?real_stream",
)  # fmt: skip
VIDEOS = (
    "http://admin:{secret}@{at}/v.mp4", "http://{at}/videostream.cgi?user=admin&loginpas={secret}", "http://{at}/v.mp4?jwt={secret}",
    "http://{at}/v.mp4?md5={secret}", "http://{at}/v.mp4#access_token={secret}", "http://{at}/file/bot123:{secret}/v.mp4",
    "http://{at}/v.mp4?unheard_of={secret}", "http://{at}/user=admin_password={secret}_channel=1",
)  # fmt: skip
REFUSED = ("ftp://admin:{secret}@{at}/v.mp4", "rtsp://admin:pa/{secret}@{at}/live", "http://admin:{secret}@:9/v.mp4")


@pytest.mark.long
def test_the_secrets_of_sources_are_shown_nowhere(running_roles: RunningRoles) -> None:
    secret = "Hunter2xHunter2x"  # noqa: S105 - looked for in all that is shown
    shown: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyHandler) as server:
        start_thread("nothing is here", server.serve_forever, Stop())

        def asked_for(source: str) -> str:
            body = {"source": source.format(secret=secret, at=f"127.0.0.1:{server.server_port}"), "model": "motion"}
            shown.append(running_roles.http.post("/scenario/init", json=body).text)
            return str(json.loads(shown[-1]).get("scenario_uuid"))

        assert [asked_for(source) for source in REFUSED] == ["None"] * len(REFUSED)
        videos, cameras = [asked_for(source) for source in VIDEOS], [asked_for(source) for source in CAMERAS]
        errors = [running_roles.wait_until_inactive(uuid)["error"] for uuid in videos]
        for uuid in cameras:
            running_roles.roles["runner"].wait_for(f"worker_ended scenario_uuid={uuid} .*127.0.0.1")
        server.shutdown()
    assert all("The server refused http://" in error["message"] for error in errors), errors
    for uuid in videos + cameras:
        shown += [running_roles.http.get(f"/scenario/{uuid}{path}").text for path in ("", "/history", "/gaps")]
        shown.append(running_roles.http.post(f"/scenario/{uuid}/shutdown").text)
    shown += [
        running_roles.http.get("/scenario", params={"limit": 100}).text,
        *(role.stderr for role in running_roles.roles.values()),
    ]
    assert [text for text in shown if "unter2x" in text] == []


class EmptyHandler(BaseHTTPRequestHandler):
    """A server without a single file."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.long
@pytest.mark.fault
def test_roles_whose_database_goes_away_wait_for_it_and_say_so_once(running_roles: RunningRoles, clip: Path) -> None:
    concerned = [running_roles.roles[role] for role in ("api", "relay", "inbox", "orchestrator")]
    process = running_roles.servers.postgres.process
    assert process is not None
    process.send_signal(signal.SIGINT)
    process.wait(20)
    wait_until(lambda: running_roles.http.get("/health/ready").status_code == 503, "the api is not ready")
    for role in concerned:
        role.wait_for(" away server=PostgreSQL .*needs=waiting; start it, or set VIDFLOW_DATABASE_URL")
    running_roles.servers.postgres.start()
    wait_until(running_roles.at_work, "all are at work again", LIMIT_S)
    assert running_roles.wait_until_inactive(running_roles.create_scenario(clip))["outcome"] == "completed"
    for role in concerned:
        role.wait_for(" back server=PostgreSQL")
        assert len(role.error_lines(" away | back ")) == 2, role.stderr
        assert len(role.error_lines("PostgreSQL|postgres")) <= 3, role.stderr


@pytest.mark.long
@pytest.mark.fault
def test_roles_whose_kafka_goes_away_wait_for_it_and_say_so_once(running_roles: RunningRoles, clip: Path) -> None:
    concerned = [running_roles.roles[role] for role in ("relay", "inbox", "orchestrator", "runner")]
    process = running_roles.servers.kafka.process
    assert process is not None
    process.terminate()
    process.wait(20)
    for role in concerned:
        role.wait_for(" away server=Kafka .*needs=waiting; start it, or set VIDFLOW_KAFKA")
    uuid = running_roles.create_scenario(clip)  # the api needs no Kafka
    running_roles.servers.kafka.start()
    for role in concerned:
        role.wait_for(" back server=Kafka")
    assert running_roles.wait_until_inactive(uuid)["outcome"] == "completed"
    for role in concerned:
        assert len(role.error_lines("server=Kafka")) == 2, role.stderr


@pytest.mark.long
def test_run_prints_the_same_frames_as_ndjson_json_and_csv_and_nothing_else_on_standard_output(
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
    assert set(frames[0]) == {"frame_number", "time_s", "width", "height", "detections"}
    assert json.loads(ends["json"].stdout) == frames
    rows = list(csv.DictReader(io.StringIO(ends["csv"].stdout)))
    boxes = [(frame["frame_number"], *found["box"]) for frame in frames for found in frame["detections"]]
    assert [
        (int(row["frame_number"]), *(float(row[side]) for side in ("x1", "y1", "x2", "y2")))
        for row in rows
        if row["label"]
    ] == boxes
    assert {int(row["frame_number"]) for row in rows} == set(range(80))
    assert "completed: 80 frames" in ends["csv"].stderr


@pytest.mark.long
def test_run_on_a_source_that_fails_says_why_and_ends_with_2(running_roles: RunningRoles, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    end = run_command("run", str(text), "--output", "ndjson", "--url", running_roles.url)
    assert (end.returncode, end.stdout) == (2, "")
    assert_says(end.stderr.splitlines()[-1], r"vidflow: scenario \S+ failed: .*text.mp4 is not a video")


@pytest.mark.long
def test_run_at_a_url_is_refused_as_the_api_refuses(running_roles: RunningRoles, clip: Path) -> None:
    end = run_command("run", str(clip), "--model", "none", "--url", running_roles.url)
    assert (end.returncode, end.stdout) == (2, "")
    assert len(end.stderr.splitlines()) == 1
    assert_says(end.stderr, "vidflow: Unknown model 'none'. Available: motion, ")


@pytest.mark.long
def test_ctrl_c_of_run_asks_for_a_shutdown_and_ends_with_130(
    running_roles: RunningRoles, endless: Path, tmp_path: Path
) -> None:
    with running_command(tmp_path, "run", str(endless), "--output", "ndjson", "--url", running_roles.url) as run:
        wait_until(lambda: "\n" in run.stdout, "the first frame is printed", LIMIT_S)
        assert run.stop(signal.SIGINT) == 130
    assert_says(run.stderr, "shutdown requested")
    assert running_roles.wait_until_inactive(running_roles.newest())["outcome"] == "stopped"
    frames = [json.loads(line) for line in run.stdout.splitlines()]
    assert [frame["frame_number"] for frame in frames] == list(range(len(frames)))


@pytest.mark.long
def test_a_run_whose_reader_has_gone_asks_for_a_shutdown_and_ends_with_141(
    running_roles: RunningRoles, endless: Path
) -> None:
    command = [sys.executable, "-m", "vidflow", "run", str(endless), "--output", "ndjson", "--url", running_roles.url]
    with subprocess.Popen(
        command, env=build_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        first = run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(LIMIT_S) == 141
    assert json.loads(first)["frame_number"] == 0
    assert_says(said, "shutdown requested$")
    assert running_roles.wait_until_inactive(running_roles.newest())["outcome"] == "stopped"


@pytest.mark.long
@pytest.mark.fault
def test_a_run_goes_on_when_the_api_is_killed_and_comes_back(
    running_roles: RunningRoles, shared: Path, tmp_path: Path
) -> None:
    video = str(shared / "videos/vtest.avi")
    with running_command(tmp_path, "run", video, "--fps", "5", "--output", "ndjson", "--url", running_roles.url) as run:
        wait_until(lambda: "\n" in run.stdout, "the first frame is printed", LIMIT_S)
        running_roles.roles["api"].stop(signal.SIGKILL)
        run.wait_for("waiting for its return")
        words = ["api", "--no-inbox", "--any-file", "--port", running_roles.url.rpartition(":")[2]]
        with running_command(tmp_path, *words, variables=running_roles.servers.variables):
            assert run.process.wait(2 * LIMIT_S) == 0, run.stderr
    assert [json.loads(line)["frame_number"] for line in run.stdout.splitlines()] == list(range(398))
    assert hides_internals(run.stderr)
    assert len(run.error_lines("waiting for its return")) == 1


@pytest.mark.long
def test_run_starts_a_vidflow_of_its_own_and_leaves_no_process_behind(clip: Path, tmp_path: Path) -> None:
    with running_command(tmp_path, "run", str(clip), "--output", "ndjson") as run:
        run.wait_for("scenario ")
        own = descendants(run.process.pid)
        assert run.process.wait(LIMIT_S) == 0, run.stderr
    assert [json.loads(line)["frame_number"] for line in run.stdout.splitlines()] == list(range(20))
    assert run.stderr.splitlines()[-1] == "completed: 20 frames"
    assert len(own) >= 7
    wait_until(lambda: not any(map(is_alive, own)), "all of its processes are gone")


@pytest.mark.long
@pytest.mark.parametrize("step", ["starting PostgreSQL", "starting Kafka", "starting orchestrator"])
def test_ctrl_c_of_run_while_its_vidflow_starts_ends_all_with_130(clip: Path, tmp_path: Path, step: str) -> None:
    with running_command(tmp_path, "run", str(clip), "--output", "ndjson") as run:
        run.wait_for(step)
        own = descendants(run.process.pid)
        assert run.stop(signal.SIGINT, limit_s=LIMIT_S) == 130, run.stderr
    assert hides_internals(run.stderr)
    assert run.stderr.splitlines()[-1] == "given up before the video was asked for"
    assert run.stdout == ""
    wait_until(lambda: not any(map(is_alive, own)), "all of its processes are gone")


def test_run_at_the_url_of_something_else_says_so() -> None:
    with something_else() as url:
        end = run_command("run", A_FILE, "--url", url)
    assert (end.returncode, end.stdout) == (2, "")
    assert_says(end.stderr, f"vidflow: The server at {url} is not a vidflow of this version")


HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\nvidflow: forged"
ESCAPED = r"\x1b]0;title\x07\x9b2J\u202e\nvidflow: forged"


class Hostile(BaseHTTPRequestHandler):
    """Refuses everything, in words that are meant for the terminal."""

    def do_POST(self) -> None:
        body = json.dumps({"title": "no", "detail": f"{HOSTILE} http://h/?token=hidden", "code": HOSTILE}).encode()
        self.send_response(422)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_what_a_hostile_server_answers_drives_no_terminal(tmp_path: Path) -> None:
    video = clips.constant_rate(tmp_path / "short.mp4", frames=2)
    with HTTPServer(("127.0.0.1", 0), Hostile) as server:
        thread = start_thread("hostile", server.serve_forever, Stop())
        end = run_command("run", str(video), "--url", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert (end.returncode, end.stderr) == (2, f"vidflow: {ESCAPED} http://h/?token=***\n")


def test_a_usage_error_repeats_a_value_without_what_drives_a_terminal() -> None:
    for words in (["api", "--log-format", "\x1b[31mred"], ["\x1b[31mred"], ["api", "--\x1b[31mred"]):
        end = run_command(*words)
        assert end.returncode == 2
        assert r"\x1b[31mred" in end.stderr
        assert "\x1b" not in end.stderr


class Greeting(BaseHTTPRequestHandler):
    """Answers everything with the same page."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>It works!</h1>")

    def log_message(self, *_: object) -> None:
        """A test's output has no use for it."""


@contextmanager
def something_else() -> Iterator[str]:
    """The URL of a web server that is no vidflow."""
    with HTTPServer(("127.0.0.1", 0), Greeting) as server:
        thread = threading.Thread(target=server.serve_forever, name="something else")
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
