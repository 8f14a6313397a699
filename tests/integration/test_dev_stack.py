"""`vidflow dev`: all of vidflow as child processes, which start, keep running and stop together."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from tests.integration.processes import descendants, is_alive
from tests.integration.server_owner import wait_until

from vidflow.commands.dev import Stack
from vidflow.domain.errors import SetupError, VidflowError
from vidflow.infra.embedded.child_process import is_listening
from vidflow.infra.process.stopping import Stop
from vidflow.settings import DevOptions

READY_S = 110.0
ROLES = {"api", "runner", "orchestrator", "inbox", "relay"}
SERVERS = {"postgres", "kafka"}

pytestmark = pytest.mark.long


class RecordedStack:
    """A stack and its notifications."""

    def __init__(self, folder: Path) -> None:
        self.notifications: list[str] = []
        self.folder = folder
        self.stack = Stack(DevOptions(port=0, data_dir=folder), self.notifications.append, print, Stop())

    def pid(self, kind: str) -> int | None:
        pids = self.stack.pids()[kind]
        return pids[0] if pids else None

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.stack.port, timeout=5)
        try:
            connection.request("GET", "/health/system")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@pytest.fixture(scope="module")
def recorded_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedStack]:
    recorded = RecordedStack(tmp_path_factory.mktemp("dev"))
    try:
        recorded.stack.start()
        recorded.stack.wait_until_ready(READY_S)
        yield recorded
    finally:
        recorded.stack.stop()


@contextmanager
def running_dev(folder: Path, *options: str, output: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start the command `vidflow dev`, and yield its process once it is ready. `output` receives its lines until then."""
    command = [sys.executable, "-m", "vidflow", "dev", "--port", "0", "--data-dir", str(folder), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            output = [] if output is None else output
            for line in process.stderr:
                output.append(line)
                if "stop:" in line:
                    break
            assert "ready after" in "".join(output)
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(180)
def test_all_roles_and_both_servers_run_as_separate_processes(recorded_stack: RecordedStack) -> None:
    pids = recorded_stack.stack.pids()
    assert set(pids) == ROLES | SERVERS
    assert all(len(of_kind) == 1 for of_kind in pids.values())
    assert recorded_stack.is_ready()


def test_command_lines_show_the_role_and_no_password(recorded_stack: RecordedStack) -> None:
    for kind in ROLES:
        command = Path(f"/proc/{recorded_stack.pid(kind)}/cmdline").read_text().split("\0")
        assert command[1:5] == ["-P", "-m", "vidflow", kind]
        assert "postgresql://" not in " ".join(command)


def test_a_second_stack_on_the_same_folder_is_refused_and_the_first_keeps_running(
    recorded_stack: RecordedStack,
) -> None:
    second = RecordedStack(recorded_stack.folder)
    with pytest.raises(SetupError, match="Another vidflow"):
        second.stack.start()
    second.stack.stop()
    assert recorded_stack.is_ready()


def test_a_port_in_use_is_refused(recorded_stack: RecordedStack, tmp_path: Path) -> None:
    options = DevOptions(port=recorded_stack.stack.port, data_dir=tmp_path)
    stack = Stack(options, print, print, Stop())
    with pytest.raises(SetupError, match=f"Port {recorded_stack.stack.port} is in use"):
        stack.start()
    stack.stop()


@pytest.mark.fault
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", sorted(ROLES | SERVERS))
def test_a_killed_process_is_restarted_and_the_stack_is_ready_again(recorded_stack: RecordedStack, kind: str) -> None:
    url, database, kafka = recorded_stack.stack.url, recorded_stack.stack.database_url, recorded_stack.stack.kafka
    killed = recorded_stack.pid(kind)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: recorded_stack.pid(kind) not in {killed, None}, f"{kind} runs again", limit_s=60)
    wait_until(recorded_stack.is_ready, "the stack is ready again", limit_s=60)
    assert (recorded_stack.stack.url, recorded_stack.stack.database_url, recorded_stack.stack.kafka) == (
        url,
        database,
        kafka,
    )


@pytest.mark.timeout(180)
def test_a_role_with_an_invalid_setting_ends_the_start_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDFLOW_GRACE_S", "soon")
    recorded = RecordedStack(tmp_path)
    try:
        recorded.stack.start()
        with pytest.raises(SetupError, match=r"runner cannot start: .*grace-s"):
            recorded.stack.wait_until_ready(READY_S)
    finally:
        recorded.stack.stop()


@pytest.mark.timeout(180)
def test_ctrl_c_stops_everything_with_exit_code_0_and_postgresql_cleanly(tmp_path: Path) -> None:
    with running_dev(tmp_path) as process:
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stderr.splitlines()[-1].endswith("stopped")
    assert len(started) >= len(ROLES | SERVERS)
    # The runner's forkserver ends when its pipe is closed, which it notices only after its imports.
    wait_until(lambda: not any(map(is_alive, started)), "all of its processes are gone", limit_s=30)
    assert "received fast shutdown request" in (tmp_path / "postgres" / "postgres.log").read_text()


@pytest.mark.fault
@pytest.mark.timeout(180)
def test_no_process_remains_when_dev_itself_is_killed(tmp_path: Path) -> None:
    with running_dev(tmp_path) as process:
        started = descendants(process.pid)
        process.kill()
        wait_until(lambda: not any(map(is_alive, started)), "all of its processes are gone", limit_s=30)
    [port] = map(int, (tmp_path / "postgres" / "port").read_text().split())
    assert not is_listening(port)


@pytest.mark.timeout(180)
def test_a_stack_without_some_roles_is_ready_and_shows_how_to_start_them(tmp_path: Path) -> None:
    output: list[str] = []
    with (
        running_dev(tmp_path, "--runners", "0", "--orchestrators", "0", "--relays", "0", output=output),
        ExitStack() as started_roles,
    ):
        welcome = "".join(output)
        assert "not run here:   orchestrator, relay, runner" in welcome
        assert "starting orchestrator" not in welcome
        url = re.findall(r"ready after .* s: (http://\S+)", welcome)[0]
        assert httpx.get(f"{url}/health/ready").status_code == 200
        assert httpx.get(f"{url}/health/system").json()["missing"] == ["orchestrator", "relay", "runner"]

        commands = re.findall(r"  (?:orchestrator|relay|runner): +(.*)$", welcome, re.MULTILINE)
        assert len(commands) == 3
        assert not re.search(r":[^@/ ]+@", welcome)  # no password
        assert (tmp_path / "environment").stat().st_mode & 0o777 == 0o600
        for command in commands:
            program = command.replace("vidflow ", f"exec {sys.executable} -m vidflow ").strip("()")
            role = started_roles.enter_context(subprocess.Popen(["bash", "-c", program], stderr=subprocess.DEVNULL))
            started_roles.callback(role.kill)
        wait_until(lambda: httpx.get(f"{url}/health/system").status_code == 200, "the system is healthy", limit_s=60)


@pytest.mark.timeout(180)
def test_a_role_with_a_bug_ends_the_start_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import sys\nif 'relay' in sys.orig_argv:\n    import vidflow.cli.app\n    vidflow.cli.app.read_environment_variable = None\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    recorded = RecordedStack(tmp_path / "data")
    try:
        recorded.stack.start()
        with pytest.raises(VidflowError, match=r"relay ended 3 times in a row: Internal error in vidflow .*TypeError"):
            recorded.stack.wait_until_ready(READY_S)
    finally:
        recorded.stack.stop()
