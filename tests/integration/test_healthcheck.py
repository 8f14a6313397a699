"""The health check of each role, with real processes: frozen ones, and one whose main loop hangs while its threads run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.integration.api_server import free_port
from tests.integration.cli_process import (
    CLOSED_DATABASE,
    CLOSED_KAFKA,
    RunningCommand,
    build_environment,
    running_command,
)
from tests.integration.server_owner import wait_until

from vidflow.infra.kafka import topics
from vidflow.infra.kafka.settings import KafkaSettings

ROLES = ("api", "relay", "inbox", "orchestrator", "runner")
LIMIT_S = "4"


def run_healthcheck(file: Path, limit_s: str = LIMIT_S) -> tuple[int, str]:
    """Return the exit code and the output of the check."""
    end = subprocess.run(
        [sys.executable, "-m", "vidflow.healthcheck", limit_s],
        env=build_environment({"VIDFLOW_HEALTH_FILE": str(file)}), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert end.stderr == ""
    return end.returncode, end.stdout


def is_healthy(file: Path) -> bool:
    return run_healthcheck(file) == (0, "")


@contextmanager
def role(folder: Path, name: str, *options: str, variables: Mapping[str, str]) -> Iterator[tuple[RunningCommand, Path]]:
    file = folder / f"{name}.health"
    port = ["--port", str(free_port()), "--no-inbox"] if name == "api" else []
    with running_command(
        folder, name, *port, *options, variables={**variables, "VIDFLOW_HEALTH_FILE": str(file)}
    ) as program:
        yield program, file


@pytest.mark.long
def test_each_role_is_unhealthy_only_while_it_is_frozen(
    tmp_path: Path, database_url: str, kafka_settings: KafkaSettings
) -> None:
    topics.create_topics(kafka_settings)
    variables = {"VIDFLOW_DATABASE_URL": database_url, "VIDFLOW_KAFKA": kafka_settings.bootstrap}
    with ExitStack() as running:
        roles = {name: running.enter_context(role(tmp_path, name, variables=variables)) for name in ROLES}
        for name, (_, file) in roles.items():
            wait_until(lambda file=file: is_healthy(file), f"{name} is healthy", 60)
        for program, _ in roles.values():
            program.process.send_signal(signal.SIGSTOP)
        try:
            for name, (_, file) in roles.items():
                wait_until(lambda file=file: not is_healthy(file), f"{name} is unhealthy", 20)
                wait_until(
                    lambda file=file: "has not run for" in run_healthcheck(file)[1],
                    f"the loop of {name} is found to hang",
                    20,
                )
        finally:
            for program, _ in roles.values():
                program.process.send_signal(signal.SIGCONT)
        for name, (_, file) in roles.items():
            wait_until(lambda file=file: is_healthy(file), f"{name} is healthy again", 20)


@pytest.mark.long
def test_roles_are_healthy_while_their_servers_are_away(tmp_path: Path) -> None:
    variables = {"VIDFLOW_DATABASE_URL": CLOSED_DATABASE, "VIDFLOW_KAFKA": CLOSED_KAFKA}
    with ExitStack() as running:
        roles = {name: running.enter_context(role(tmp_path, name, variables=variables)) for name in ROLES}
        for name, (program, file) in roles.items():
            program.wait_for("away")
            touched_s = file.stat().st_mtime
            wait_until(lambda file=file, s=touched_s: file.stat().st_mtime > s, f"the loop of {name} runs", 20)
            wait_until(lambda file=file: is_healthy(file), f"{name} is healthy", 20)


@pytest.mark.long
def test_a_role_is_unhealthy_while_its_main_loop_hangs_and_its_threads_run(
    tmp_path: Path, database_url: str, kafka_settings: KafkaSettings
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading\n"
        "if 'relay' in sys.orig_argv:\n"
        "    from vidflow.roles import relay\n"
        "    relay.Relay.step = lambda self: threading.Event().wait()\n"
    )
    variables = {
        "VIDFLOW_DATABASE_URL": database_url,
        "VIDFLOW_KAFKA": kafka_settings.bootstrap,
        "PYTHONPATH": str(tmp_path),
    }
    with role(tmp_path, "relay", variables=variables) as (program, file):
        wait_until(file.exists, "it starts")
        wait_until(lambda: "has not run for" in run_healthcheck(file)[1], "its loop is found to hang", 30)
        assert program.is_running()


def test_an_api_that_does_not_answer_is_unhealthy(tmp_path: Path) -> None:
    file = tmp_path / "api.health"
    file.write_text(f"http://127.0.0.1:{free_port()}/health/live")
    code, output = run_healthcheck(file)
    assert code == 1
    assert "/health/live does not answer" in output


def test_a_role_without_a_health_file_is_unhealthy(tmp_path: Path) -> None:
    assert run_healthcheck(tmp_path / "none")[1].endswith("the role has not started\n")
    end = subprocess.run(
        [sys.executable, "-m", "vidflow.healthcheck"],
        env=build_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (end.returncode, end.stdout) == (1, "unhealthy: VIDFLOW_HEALTH_FILE is not set\n")


def test_an_unwritable_health_file_ends_the_role_with_one_line(tmp_path: Path) -> None:
    variables = {"VIDFLOW_HEALTH_FILE": str(tmp_path / "none" / "health")}
    with running_command(
        tmp_path, "relay", "--database-url", CLOSED_DATABASE, "--kafka", CLOSED_KAFKA, variables=variables
    ) as relay:
        assert relay.process.wait(30) == 3
        assert "The health file " in relay.stderr
        assert relay.stderr.count("\n") == 1
