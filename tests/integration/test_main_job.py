"""The main job, end to end: a real video through every role, read back through the API, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.integration.embedded import wait_until

from vidflow.infra.stopping import Stop
from vidflow.roles.dev import Stack
from vidflow.settings import DevOptions

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
READY_S = 110.0
DONE_S = 150.0


class Vidflow:
    """A running vidflow as its clients see it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.http = httpx.Client(base_url=stack.url, timeout=20)

    def init(self, source: Path, model: str, fps: float | str, **more: Any) -> str:
        answer = self.http.post("/scenario/init", json={"source": str(source), "model": model, "fps": fps, **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["scenario_uuid"])

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Asks again while the api is away, as any client of a service that may be killed does."""
        answers: list[httpx.Response] = []

        def answered() -> bool:
            try:
                answers.append(self.http.get(path, params=query))
            except httpx.TransportError:
                return False
            return answers[-1].status_code == 200

        wait_until(answered, f"GET {path} is answered", DONE_S)
        return dict(answers[-1].json())

    def scenario(self, uuid: str) -> dict[str, Any]:
        return self.get(f"/scenario/{uuid}")

    def ended(self, uuid: str) -> dict[str, Any]:
        wait_until(lambda: self.scenario(uuid)["state"] == "inactive", f"{uuid} ends", DONE_S)
        return self.scenario(uuid)

    def frames(self, uuid: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while True:
            page = self.get("/prediction", scenario_uuid=uuid, limit="100", **after)
            items += page["items"]
            if page["complete"] or not page["items"]:
                assert page["complete"]
                return items
            after = {"after": page["next"]}

    def kill(self, kind: str) -> None:
        os.kill(self.stack.pids()[kind][0], signal.SIGKILL)

    def kill_a_worker(self) -> None:
        runner = self.stack.pids()["runner"][0]
        workers = [pid for pid in descendants(runner) if "forkserver" in command_of(pid)]
        os.kill(max(workers), signal.SIGKILL)


def descendants(pid: int) -> set[int]:
    direct = {int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()}
    return direct.union(*(descendants(child) for child in direct))


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.fixture(scope="module")
def vidflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vidflow]:
    stack = Stack(DevOptions(port=0, data_dir=tmp_path_factory.mktemp("main-job")), print, print, Stop())
    try:
        stack.start()
        stack.wait_until_ready(READY_S)
        running = Vidflow(stack)
        with running.http:
            yield running
    finally:
        stack.stop()


def test_yolox_finds_the_two_bottles_and_the_same_boxes_at_every_run(vidflow: Vidflow, shared: Path) -> None:
    uuids = [
        vidflow.init(shared / "videos/bottle-detection.mp4", str(shared / "models/yolox_nano.toml"), 1)
        for _ in range(2)
    ]
    assert [vidflow.ended(uuid)["outcome"] for uuid in uuids] == ["completed", "completed"]
    first, second = (vidflow.frames(uuid) for uuid in uuids)
    assert [frame["frame_number"] for frame in first] == list(range(40))
    assert first == second
    at_ten_s = [found["label"] for found in first[10]["detections"]]  # decoded frame 300
    assert at_ten_s.count("bottle") == 2


def test_motion_finds_walkers(vidflow: Vidflow, shared: Path) -> None:
    uuid = vidflow.init(shared / "videos/vtest.avi", "motion", 2)
    assert vidflow.ended(uuid)["outcome"] == "completed"
    frames = vidflow.frames(uuid)
    assert [frame["frame_number"] for frame in frames] == list(range(159))
    assert sum(bool(frame["detections"]) for frame in frames) > 120


@pytest.fixture(scope="module")
def undisturbed(vidflow: Vidflow, shared: Path) -> list[dict[str, Any]]:
    """What a run sees in which nothing dies."""
    uuid = vidflow.init(shared / "videos/one-by-one-person.mp4", "motion", 5)
    assert vidflow.ended(uuid)["outcome"] == "completed"
    return vidflow.frames(uuid)


@pytest.mark.parametrize("victim", ["api", "relay", "orchestrator", "worker"])
def test_invariant_8_a_kill_of_one_process_during_a_run_loses_no_frame(
    vidflow: Vidflow, shared: Path, undisturbed: list[dict[str, Any]], victim: str
) -> None:
    uuid = vidflow.init(shared / "videos/one-by-one-person.mp4", "motion", 5)
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "it is under way", DONE_S)
    vidflow.kill_a_worker() if victim == "worker" else vidflow.kill(victim)
    end = vidflow.ended(uuid)
    assert (end["outcome"], end["error"]) == ("completed", None)
    assert vidflow.frames(uuid) == undisturbed
    with psycopg.connect(vidflow.stack.database_url) as tables:
        waiting = tables.execute("SELECT count(*) FROM outbox WHERE published_at IS NULL").fetchone()
    assert waiting == (0,)


def test_a_shutdown_ends_a_run_as_stopped(vidflow: Vidflow, shared: Path) -> None:
    uuid = vidflow.init(shared / "videos/one-by-one-person.mp4", "motion", "all")
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "it is under way", DONE_S)
    assert vidflow.http.post(f"/scenario/{uuid}/shutdown").status_code == 200
    end = vidflow.ended(uuid)
    assert end["outcome"] == "stopped"
    assert [frame["frame_number"] for frame in vidflow.frames(uuid)] == list(range(end["frames_stored"]))


def test_bad_sources_end_failed_with_a_code_and_stop_nothing_else(
    vidflow: Vidflow, shared: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    bad = {
        "source_not_video": vidflow.init(text, "motion", "all"),
        "source_no_video_stream": vidflow.init(shared / "videos/audio-only.mp3", "motion", "all"),
    }
    good = vidflow.init(shared / "videos/rotated-90.mov", "motion", "all")
    for code, uuid in bad.items():
        end = vidflow.ended(uuid)
        assert (end["outcome"], end["error"]["code"]) == ("failed", code)
    assert vidflow.ended(good)["outcome"] == "completed"
