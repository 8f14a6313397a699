"""`vidflow dev`: a whole vidflow as child processes, that comes up, stays up and goes down as one."""

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
    """A stack and what it said."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.folder = folder
        self.stack = Stack(DevOptions(port=0, data_dir=folder), self.said.append, print, Stop())

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
    running = RecordedStack(tmp_path_factory.mktemp("dev"))
    try:
        running.stack.start()
        running.stack.wait_until_ready(READY_S)
        yield running
    finally:
        running.stack.stop()


@contextmanager
def running_dev(folder: Path, *options: str, said: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """`vidflow dev` as people start it, once it says that it is ready. `said` takes its lines until then."""
    command = [sys.executable, "-m", "vidflow", "dev", "--port", "0", "--data-dir", str(folder), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = [] if said is None else said
            for line in process.stderr:
                said.append(line)
                if "stop:" in line:
                    break
            assert "ready after" in "".join(said)
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(180)
def test_all_roles_and_both_servers_run_as_processes_of_their_own(recorded_stack: RecordedStack) -> None:
    pids = recorded_stack.stack.pids()
    assert set(pids) == ROLES | SERVERS
    assert all(len(of_kind) == 1 for of_kind in pids.values())
    assert recorded_stack.is_ready()


def test_each_role_can_be_told_by_its_command_line_which_holds_no_password(recorded_stack: RecordedStack) -> None:
    for kind in ROLES:
        command = Path(f"/proc/{recorded_stack.pid(kind)}/cmdline").read_text().split("\0")
        assert command[1:5] == ["-P", "-m", "vidflow", kind]
        assert "postgresql://" not in " ".join(command)


def test_a_second_vidflow_on_the_same_folder_is_refused_and_the_first_goes_on(recorded_stack: RecordedStack) -> None:
    second = RecordedStack(recorded_stack.folder)
    with pytest.raises(SetupError, match="Another vidflow"):
        second.stack.start()
    second.stack.stop()
    assert recorded_stack.is_ready()


def test_a_port_in_use_is_refused_in_one_line(recorded_stack: RecordedStack, tmp_path: Path) -> None:
    taken = DevOptions(port=recorded_stack.stack.port, data_dir=tmp_path)
    stack = Stack(taken, print, print, Stop())
    with pytest.raises(SetupError, match=rf"port {recorded_stack.stack.port} is in use"):
        stack.start()
    stack.stop()


@pytest.mark.fault
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", sorted(ROLES | SERVERS))
def test_whatever_is_killed_comes_back_where_it_was_and_all_is_ready_again(
    recorded_stack: RecordedStack, kind: str
) -> None:
    url, database, kafka = recorded_stack.stack.url, recorded_stack.stack.database_url, recorded_stack.stack.kafka
    killed = recorded_stack.pid(kind)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: recorded_stack.pid(kind) not in {killed, None}, f"{kind} runs again", limit_s=60)
    wait_until(recorded_stack.is_ready, "all is ready again", limit_s=60)
    assert (recorded_stack.stack.url, recorded_stack.stack.database_url, recorded_stack.stack.kafka) == (
        url,
        database,
        kafka,
    )


@pytest.mark.timeout(180)
def test_a_role_whose_setting_is_nonsense_ends_the_start_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDFLOW_GRACE_S", "soon")
    running = RecordedStack(tmp_path)
    try:
        running.stack.start()
        with pytest.raises(SetupError, match=r"runner cannot start: .*grace-s"):
            running.stack.wait_until_ready(READY_S)
    finally:
        running.stack.stop()


@pytest.mark.timeout(180)
def test_ctrl_c_ends_all_with_exit_code_0_and_the_data_serve_the_next_start(tmp_path: Path) -> None:
    with running_dev(tmp_path) as process:
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.splitlines()[-1].endswith("stopped")
    assert len(started) >= len(ROLES | SERVERS)
    # The runner's forkserver ends at the end of a pipe, which it sees once it has imported what it was about to.
    wait_until(lambda: not any(map(is_alive, started)), "all of its processes are gone", limit_s=30)
    assert "received fast shutdown request" in (tmp_path / "postgres" / "postgres.log").read_text()


@pytest.mark.fault
@pytest.mark.timeout(180)
def test_when_dev_itself_is_killed_nothing_stays_behind(tmp_path: Path) -> None:
    with running_dev(tmp_path) as process:
        started = descendants(process.pid)
        process.kill()
        wait_until(lambda: not any(map(is_alive, started)), "all of its processes are gone", limit_s=30)
    [port] = map(int, (tmp_path / "postgres" / "port").read_text().split())
    assert not is_listening(port)


@pytest.mark.timeout(180)
def test_a_stack_without_some_roles_is_ready_and_says_how_to_add_them(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        running_dev(tmp_path, "--runners", "0", "--orchestrators", "0", "--relays", "0", said=said),
        ExitStack() as added,
    ):
        welcome = "".join(said)
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
            role = added.enter_context(subprocess.Popen(["bash", "-c", program], stderr=subprocess.DEVNULL))
            added.callback(role.kill)
        wait_until(lambda: httpx.get(f"{url}/health/system").status_code == 200, "all runs", limit_s=60)


@pytest.mark.timeout(180)
def test_a_role_with_a_bug_ends_the_start_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import sys\nif 'relay' in sys.orig_argv:\n    import vidflow.cli.app\n    vidflow.cli.app.read_environment_variable = None\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    running = RecordedStack(tmp_path / "data")
    try:
        running.stack.start()
        with pytest.raises(VidflowError, match=r"relay ended 3 times in a row: Internal error in vidflow .*TypeError"):
            running.stack.wait_until_ready(READY_S)
    finally:
        running.stack.stop()
