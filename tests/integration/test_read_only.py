"""Every role on a read-only root file system with /tmp as its only place to write, as its container has it. Needs root."""

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
"""Runs a command on a read-only view of this file system. $1: where to mount it, $2: the folder that it sees as /media."""


def may_confine() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return tried.returncode == 0


pytestmark = [pytest.mark.long, pytest.mark.skipif(not may_confine(), reason="this user may not mount")]


@contextmanager
def confined(
    folder: Path, media: Path, role: str, *options: str, given: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    root, said = folder / f"{role}.root", folder / f"{role}.err"
    root.mkdir()
    command = ["unshare", "-m", "bash", "-c", CONFINE, "bash", str(root), str(media)]
    command += [sys.executable, "-P", "-m", "vidflow", role, *options]
    with said.open("wb") as stderr, subprocess.Popen(command, env=build_environment(given), stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def test_every_role_works_and_a_runner_s_scenario_ends_whole(
    tmp_path: Path, database_url: str, kafka_settings: KafkaSettings
) -> None:
    topics.create_topics(kafka_settings)
    media = tmp_path / "media"
    media.mkdir()
    clips.constant_rate(media / "clip.mp4", frames=20)
    given = {
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
            name: running.enter_context(confined(tmp_path, media, name, *options.get(name, ()), given=given))
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
            wait_until(lambda: client.get("/health/system").status_code == 200, "a scenario could run", 60)
            made = client.post("/scenario/init", json={"source": "clip.mp4", "model": "motion", "fps": "all"})
            assert made.status_code == 201, made.text
            scenario = f"/scenario/{made.json()['scenario_uuid']}"
            wait_until(lambda: client.get(scenario).json()["state"] == "inactive", "it ends", 60)
            end = client.get(scenario).json()
        assert (end["outcome"], end["frames_stored"], end["error"]) == ("completed", 20, None)
        written = {path.name for path in Path(f"/proc/{roles['api'].pid}/root/tmp").iterdir()}
        assert written == {"vidflow.health"}
        for process in roles.values():
            os.kill(process.pid, signal.SIGTERM)
        assert [process.wait(30) for process in roles.values()] == [0] * len(ROLES)
