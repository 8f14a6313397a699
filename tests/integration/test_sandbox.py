"""What an attacker in a worker gets: a source takes over a real worker of a real runner, and tries what no worker needs."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import clips
from tests.integration import intruder
from tests.integration.processes import name_of
from tests.integration.runner_harness import ControlPlane, RunnerProcess, make_deploy, new_uuid, running_runner

from vidflow.domain.messages import EndReason
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.process.sandbox import find_missing
from vidflow.roles.inference.start import PROCESS_NAME

needs_all = pytest.mark.skipif(bool(find_missing()), reason=f"this system cannot confine workers: {find_missing()}")

OPTIONS = ("--any-file", "--device", "cpu")
FACTS = {
    "variables": "",
    "capabilities": "0",
    "core dump": "(0, 0)",
}
"""What the attacker sees of itself."""
NEEDS_LANDLOCK = {"read a private key", "read a video beside the source", "see the root folder on another thread"}
"""Attempts that nothing else refuses, of those that leave no trace."""
WITHOUT_A_CALL = """if True:
    import ctypes, errno, os, struct, sys
    libc = ctypes.CDLL(None)
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, struct.pack("@HP", len(steps), ctypes.addressof(buffer)), 0, 0) == 0
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a command on a system without one system call, whose number is the first argument."""
WITHOUT_LANDLOCK = (sys.executable, "-c", WITHOUT_A_CALL, "444")
"""Without landlock_create_ruleset, as on an old kernel."""
WITH_BROKEN_LANDLOCK = (sys.executable, "-c", WITHOUT_A_CALL, "446")
"""Without landlock_restrict_self only, which nobody notices before it is called."""

SECRETS = {
    "VIDFLOW_DATABASE_URL": "postgresql://vidflow:hunter2@127.0.0.1/vidflow",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "GOOGLE_APPLICATION_CREDENTIALS": "/hunter2.json",
    "AZURE_CLIENT_SECRET": "hunter2",
    "PGPASSWORD": "hunter2",
    "SECRET_KEY": "hunter2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sandbox")


@pytest.fixture(scope="module")
def targets(folder: Path) -> Iterator[dict[str, str]]:
    """What an attacker would like to read or reach, by the name of the attempt."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_text("a private key")
    (folder / "other.mp4").write_text("the video of somebody else")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / ".s.PGSQL.5432"))
    server.listen()
    with server:
        yield {
            "read a private key": str(home / ".ssh" / "id_ed25519"),
            "read a video beside the source": str(folder / "other.mp4"),
            "read passwords of the system": "/etc/shadow",
            "connect to a database": str(folder / ".s.PGSQL.5432"),
        }


@pytest.fixture(scope="module")
def environment(folder: Path, targets: dict[str, str]) -> dict[str, str]:
    return {**SECRETS, "HOME": str(folder / "home"), **intruder.install(folder / "code", targets)}


def attack(control_plane: ControlPlane, runner: RunnerProcess, folder: Path, model: str = "motion") -> dict[str, str]:
    """Let the source take over a worker of this runner. Return what came of each attempt."""
    source = clips.constant_rate(folder / intruder.SOURCE, frames=5)
    uuid = new_uuid()
    control_plane.send_command(runner.wait_for_id(control_plane), make_deploy(uuid, source, model))
    end = control_plane.wait_for_end_marker(uuid)
    assert (end.reason, len(control_plane.frames(uuid))) == (EndReason.FINISHED, 5), runner.log
    labels = [detection.label for frame in control_plane.frames(uuid) for detection in frame.detections]
    return dict(label.split(": ", 1) if ": " in label else (label.rstrip(": "), "") for label in labels if ":" in label)


def check_facts(outcomes: dict[str, str]) -> None:
    """Check what the attacker sees of itself."""
    assert {name: outcomes[name] for name in FACTS} == FACTS


def successes(outcomes: dict[str, str]) -> dict[str, str]:
    return {name: outcome for name, outcome in outcomes.items() if outcome != intruder.REFUSED and name not in FACTS}


@needs_all
def test_an_attacker_in_a_worker_is_refused_everything_that_no_worker_needs(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str]
) -> None:
    with running_runner(kafka_settings, folder, *OPTIONS, "--sandbox", "require", environment=environment) as runner:
        outcomes = attack(control_plane, runner, folder)
        log = runner.log
    check_facts(outcomes)
    assert len(outcomes) > 35
    assert successes(outcomes) == {}
    assert "sandbox=landlock,seccomp" in log


@needs_all
def test_an_attacker_in_a_worker_that_shares_a_model_gets_no_more_than_servers_that_let_its_user_in(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str]
) -> None:
    options = (*OPTIONS, "--inference", "shared", "--sandbox", "require")
    with running_runner(kafka_settings, folder, *options, environment=environment) as runner:
        outcomes = attack(control_plane, runner, folder, "yolox_nano")
        [inference] = [pid for pid in runner.workers() if name_of(pid) == PROCESS_NAME]
        status = Path(f"/proc/{inference}/status").read_text().split()
        check_facts(outcomes)
        assert successes(outcomes) == {"connect to a database": "got None"}
        assert [status[status.index(name) + 1] for name in ("NoNewPrivs:", "Seccomp:")] == ["1", "2"]


@needs_all
def test_without_landlock_workers_are_confined_by_the_rest_and_the_log_says_so(
    control_plane: ControlPlane,
    kafka_settings: KafkaSettings,
    folder: Path,
    environment: dict[str, str],
    targets: dict[str, str],
) -> None:
    harmless = intruder.install(folder / "harmless without landlock", targets, harmless=True)
    variables = {**environment, **harmless}
    with running_runner(kafka_settings, folder, *OPTIONS, environment=variables, launcher=WITHOUT_LANDLOCK) as runner:
        outcomes = attack(control_plane, runner, folder)
        log = runner.log
    assert "workers_less_confined does=runs workers without landlock missing=landlock: needs Linux 5.13" in log
    assert "sandbox=seccomp" in log
    outcomes.pop("read passwords of the system")  # which root may
    check_facts(outcomes)
    assert successes(outcomes).keys() == NEEDS_LANDLOCK


@needs_all
def test_a_runner_that_requires_what_the_system_lacks_does_not_start(
    kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str]
) -> None:
    with running_runner(
        kafka_settings,
        folder,
        "--sandbox",
        "require",
        environment=environment,
        launcher=WITHOUT_LANDLOCK,
    ) as runner:
        assert runner.process.wait(30) == 3
        assert "--sandbox require: this system cannot confine workers (landlock: needs Linux 5.13" in runner.log


@needs_all
def test_a_worker_that_cannot_be_confined_as_far_as_the_system_claims_opens_nothing(
    control_plane: ControlPlane, kafka_settings: KafkaSettings, folder: Path, environment: dict[str, str]
) -> None:
    source = clips.constant_rate(folder / "plain.mp4", frames=5)
    uuid = new_uuid()
    with running_runner(
        kafka_settings, folder, *OPTIONS, environment=environment, launcher=WITH_BROKEN_LANDLOCK
    ) as runner:
        runner_id = runner.wait_for_id(control_plane)
        control_plane.send_command(runner_id, make_deploy(uuid, source))
        entry = control_plane.wait_until_ended(runner_id, uuid)
    assert entry.error is not None
    assert (entry.error.code, entry.fatal, control_plane.results_of(uuid)) == ("sandbox_failed", False, [])


def test_without_a_sandbox_the_same_attacker_gets_what_the_runner_may(
    control_plane: ControlPlane,
    kafka_settings: KafkaSettings,
    folder: Path,
    targets: dict[str, str],
    environment: dict[str, str],
) -> None:
    """This shows that the tests above can fail."""
    harmless = intruder.install(folder / "harmless", targets, harmless=True)
    variables = {**environment, **harmless}
    with running_runner(kafka_settings, folder, *OPTIONS, "--sandbox", "off", environment=variables) as runner:
        outcomes = attack(control_plane, runner, folder)
        log = runner.log
    assert outcomes["read a private key"] == "got b'a private key'"
    assert outcomes["connect to a database"] == "got None"
    assert outcomes["start a process by the forkserver"].removeprefix("got ").isdecimal()
    assert "AWS_SECRET_ACCESS_KEY" in outcomes["variables"]
    assert "workers_unconfined" in log


@needs_all
@pytest.mark.parametrize(("camera", "outcome"), [(False, "refused"), (True, "opened")])
def test_only_a_process_that_reads_a_camera_may_use_a_device(camera: bool, outcome: str) -> None:
    program = f"""if True:
        import os
        from vidflow.domain.sandbox import plan_permissions
        from vidflow.infra.process.installation import find_installation
        from vidflow.infra.process.sandbox import confine
        confine(plan_permissions(find_installation(), files=[], models_dir=None, network=True, camera={camera}), [])
        try:
            os.open("/dev/zero", os.O_RDWR)
        except PermissionError:
            print("refused")
        else:
            print("opened")
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == outcome


def test_a_confined_process_has_no_descriptors_but_its_own() -> None:
    program = """if True:
        import os, socket
        from vidflow.domain.sandbox import plan_permissions
        from vidflow.infra.process.installation import find_installation
        from vidflow.infra.process.sandbox import confine
        (kept, _), inherited = os.pipe(), socket.socketpair()
        confine(plan_permissions(find_installation(), files=[], models_dir=None, network=True), [kept])
        is_open = [number for number in range(100) if os.path.exists(f"/proc/self/fd/{number}")]
        print(is_open == [0, 1, 2, kept])
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


@needs_all
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_confined_process_has_the_libraries_of_its_model_and_needs_no_preloaded_ones() -> None:
    program = """if True:
        from vidflow.domain.sandbox import plan_permissions
        from vidflow.infra.models import registry
        from vidflow.infra.process.installation import find_installation
        from vidflow.infra.process.sandbox import confine
        use = registry.find_use("ssd300_vgg16")
        registry.import_libraries(use)
        confine(plan_permissions(find_installation(), files=[], models_dir=None, network=False), [])
        import torch, torchvision
        net = torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
        print(len(net.eval()([torch.zeros(3, 64, 64)])))
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "1\n"


def test_a_process_with_several_threads_is_not_confined() -> None:
    program = """if True:
        import threading
        from vidflow.domain.sandbox import plan_permissions
        from vidflow.infra.process.installation import find_installation
        from vidflow.infra.process.sandbox import confine
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        try:
            confine(plan_permissions(find_installation(), files=[], models_dir=None, network=False), [])
        except OSError as error:
            print(error.strerror)
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("it has several threads already")
