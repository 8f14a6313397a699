"""The main job, end to end: a real video through every role, read back through the API, whatever is killed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.integration.server_owner import wait_until
from tests.integration.vidflow_process import DONE_LIMIT_S, VidflowClient, running_vidflow

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def vidflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VidflowClient]:
    with running_vidflow(tmp_path_factory.mktemp("main-job")) as vidflow:
        yield vidflow


def test_yolox_finds_the_two_bottles_and_the_same_boxes_at_every_run(vidflow: VidflowClient, shared: Path) -> None:
    uuids = [
        vidflow.create_scenario(shared / "videos/bottle-detection.mp4", str(shared / "models/yolox_nano.toml"), 1)
        for _ in range(2)
    ]
    assert [vidflow.wait_until_inactive(uuid)["outcome"] for uuid in uuids] == ["completed", "completed"]
    first, second = (vidflow.frames(uuid) for uuid in uuids)
    assert [frame["frame_number"] for frame in first] == list(range(40))
    assert first == second
    at_ten_s = [found["label"] for found in first[10]["detections"]]  # decoded frame 300
    assert at_ten_s.count("bottle") == 2


def test_motion_finds_walkers(vidflow: VidflowClient, shared: Path) -> None:
    uuid = vidflow.create_scenario(shared / "videos/vtest.avi", "motion", 2)
    assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
    frames = vidflow.frames(uuid)
    assert [frame["frame_number"] for frame in frames] == list(range(159))
    assert sum(bool(frame["detections"]) for frame in frames) > 120


@pytest.fixture(scope="module")
def undisturbed(vidflow: VidflowClient, shared: Path) -> list[dict[str, Any]]:
    """What a run sees in which nothing dies."""
    uuid = vidflow.create_scenario(shared / "videos/one-by-one-person.mp4", "motion", 5)
    assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
    return vidflow.frames(uuid)


@pytest.mark.parametrize("victim", ["api", "relay", "orchestrator", "inbox", "runner", "worker"])
def test_invariant_8_a_kill_of_one_process_during_a_run_loses_no_frame(
    vidflow: VidflowClient, shared: Path, undisturbed: list[dict[str, Any]], victim: str
) -> None:
    uuid = vidflow.create_scenario(shared / "videos/one-by-one-person.mp4", "motion", 5)
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "it is under way", DONE_LIMIT_S)
    vidflow.kill_workers() if victim == "worker" else vidflow.kill(victim)
    end = vidflow.wait_until_inactive(uuid)
    assert (end["outcome"], end["error"]) == ("completed", None)
    assert vidflow.frames(uuid) == undisturbed
    with psycopg.connect(vidflow.stack.database_url) as tables:
        waiting = tables.execute("SELECT count(*) FROM outbox WHERE published_at IS NULL").fetchone()
    assert waiting == (0,)


def test_a_shutdown_ends_a_run_as_stopped(vidflow: VidflowClient, shared: Path) -> None:
    uuid = vidflow.create_scenario(shared / "videos/one-by-one-person.mp4", "motion", "all")
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "it is under way", DONE_LIMIT_S)
    assert vidflow.http.post(f"/scenario/{uuid}/shutdown").status_code == 200
    end = vidflow.wait_until_inactive(uuid)
    assert end["outcome"] == "stopped"
    assert [frame["frame_number"] for frame in vidflow.frames(uuid)] == list(range(end["frames_stored"]))


def test_bad_sources_end_failed_with_a_code_and_stop_nothing_else(
    vidflow: VidflowClient, shared: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    bad = {
        "source_not_video": vidflow.create_scenario(text, "motion", "all"),
        "source_no_video_stream": vidflow.create_scenario(shared / "videos/audio-only.mp3", "motion", "all"),
    }
    good = vidflow.create_scenario(shared / "videos/rotated-90.mov", "motion", "all")
    for code, uuid in bad.items():
        end = vidflow.wait_until_inactive(uuid)
        assert (end["outcome"], end["error"]["code"]) == ("failed", code)
    assert vidflow.wait_until_inactive(good)["outcome"] == "completed"
