"""The main job, end to end: a real video through every role, read back through the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
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


@pytest.fixture(scope="module")
def vidflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vidflow]:
    stack = Stack(DevOptions(port=0, data_dir=tmp_path_factory.mktemp("main-job")), print, print, Stop())
    try:
        stack.start()
        stack.wait_until_ready(READY_S)
        yield Vidflow(stack)
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


def test_a_shutdown_ends_a_run_as_stopped(vidflow: Vidflow, shared: Path) -> None:
    uuid = vidflow.init(shared / "videos/one-by-one-person.mp4", "motion", "all")
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "it is under way", DONE_S)
    assert vidflow.http.post(f"/scenario/{uuid}/shutdown").status_code == 200
    end = vidflow.ended(uuid)
    assert end["outcome"] == "stopped"
    assert [frame["frame_number"] for frame in vidflow.frames(uuid)] == list(range(end["frames_stored"]))
