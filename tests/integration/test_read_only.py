"""Every role on a read-only file system where only /tmp is writable, as in its container. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from tests import clips
from tests.integration.api_server import free_port
from tests.integration.cli_process import build_environment
from tests.integration.server_owner import wait_until

from vidflow import healthcheck
from vidflow.infra.kafka import topics
from vidflow.infra.kafka.settings import KafkaSettings

ROLES = ("api", "relay", "inbox", "orchestrator", "runner")
CONFINE = """
mount --make-rprivate / && mount --rbind / "$1" && mount -o remount,bind,ro "$1" &&
mount -t tmpfs -o size=64m tmpfs "$1/tmp" && mount --bind "$2" "$1/media" && mount -o remount,bind,ro "$1/media" || exit 99
root=$1; shift 2
chroot "$root" sh -c '! touch /usr/x /var/tmp/x /root/x 2>/dev/null' || exit 98
exec chroot "$root" "$@"
"""
"""Run a command on a read-only view of this file system. $1: the mount point of the view, $2: the folder mounted as /media."""


def can_confine() -> bool:
    if shutil.which("unshare") is None:
        return False
    end = subprocess.run(["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return end.returncode == 0


pytestmark = [pytest.mark.long, pytest.mark.skipif(not can_confine(), reason="this user may not mount")]


@contextmanager
def confined(
    folder: Path, media: Path, role: str, *options: str, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    root, error_file = folder / f"{role}.root", folder / f"{role}.err"
    root.mkdir()
    command = ["unshare", "-m", "bash", "-c", CONFINE, "bash", str(root), str(media)]
    command += [sys.executable, "-P", "-m", "vidflow", role, *options]
    environment = build_environment(variables)
    with error_file.open("wb") as stderr, subprocess.Popen(command, env=environment, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def test_every_role_works_and_a_scenario_completes(
    tmp_path: Path, database_url: str, kafka_settings: KafkaSettings
) -> None:
    topics.create_topics(kafka_settings)
    media = tmp_path / "media"
    media.mkdir()
    clips.constant_rate(media / "clip.mp4", frames=20)
    variables = {
        "VIDFLOW_DATABASE_URL": database_url,
        "VIDFLOW_KAFKA": kafka_settings.bootstrap,
        "VIDFLOW_MEDIA_ROOT": "/media",
        "VIDFLOW_HEALTH_FILE": "/tmp/vidflow.health",
        "HOME": "/nonexistent",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    port = free_port()
    options = {"api": ("--port", str(port), "--no-inbox")}
    with ExitStack() as running:
        roles = {
            name: running.enter_context(confined(tmp_path, media, name, *options.get(name, ()), variables=variables))
            for name in ROLES
        }
        for name, process in roles.items():
            health = Path(f"/proc/{process.pid}/root/tmp/vidflow.health")
            wait_until(
                lambda health=health, process=process: (
                    process.poll() is not None or healthcheck.find_problem(health, 5) is None
                ),
                f"{name} is healthy",
                60,
            )
            assert process.poll() is None, (tmp_path / f"{name}.err").read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            wait_until(lambda: client.get("/health/system").status_code == 200, "the system is healthy", 60)
            created = client.post("/scenario/init", json={"source": "clip.mp4", "model": "motion", "fps": "all"})
            assert created.status_code == 201, created.text
            scenario = f"/scenario/{created.json()['scenario_uuid']}"
            wait_until(lambda: client.get(scenario).json()["state"] == "inactive", "the scenario ends", 60)
            end = client.get(scenario).json()
        assert (end["outcome"], end["frames_stored"], end["error"]) == ("completed", 20, None)
        written = {path.name for path in Path(f"/proc/{roles['api'].pid}/root/tmp").iterdir()}
        assert written == {"vidflow.health"}
        for process in roles.values():
            os.kill(process.pid, signal.SIGTERM)
        assert [process.wait(30) for process in roles.values()] == [0] * len(ROLES)
