"""The main job end to end: real videos pass through every role and are read through the API, even if processes are killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.integration.server_owner import wait_until
from tests.integration.vidflow_process import DONE_LIMIT_S, VidflowClient, running_vidflow

pytestmark = [pytest.mark.long, pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def vidflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VidflowClient]:
    with running_vidflow(tmp_path_factory.mktemp("main-job")) as vidflow:
        yield vidflow


def test_yolox_finds_two_bottles_and_the_same_boxes_in_every_run(vidflow: VidflowClient, shared: Path) -> None:
    uuids = [
        vidflow.create_scenario(shared / "videos/bottle-detection.mp4", str(shared / "models/yolox_nano.toml"), 1)
        for _ in range(2)
    ]
    assert [vidflow.wait_until_inactive(uuid)["outcome"] for uuid in uuids] == ["completed", "completed"]
    first, second = (vidflow.frames(uuid) for uuid in uuids)
    assert [frame["frame_number"] for frame in first] == list(range(40))
    assert first == second
    labels = [detection["label"] for detection in first[10]["detections"]]  # at 10 s, decoded frame 300
    assert labels.count("bottle") == 2


def test_motion_finds_walkers(vidflow: VidflowClient, shared: Path) -> None:
    uuid = vidflow.create_scenario(shared / "videos/vtest.avi", "motion", 2)
    assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
    frames = vidflow.frames(uuid)
    assert [frame["frame_number"] for frame in frames] == list(range(159))
    assert sum(bool(frame["detections"]) for frame in frames) > 120


@pytest.fixture(scope="module")
def expected_frames(vidflow: VidflowClient, shared: Path) -> list[dict[str, Any]]:
    """The frames of a run in which no process is killed."""
    uuid = vidflow.create_scenario(shared / "videos/one-by-one-person.mp4", "motion", 5)
    assert vidflow.wait_until_inactive(uuid)["outcome"] == "completed"
    return vidflow.frames(uuid)


@pytest.mark.parametrize("victim", ["api", "relay", "orchestrator", "inbox", "runner", "worker"])
def test_invariant_8_a_kill_of_one_process_during_a_run_loses_no_frame(
    vidflow: VidflowClient, shared: Path, expected_frames: list[dict[str, Any]], victim: str
) -> None:
    uuid = vidflow.create_scenario(shared / "videos/one-by-one-person.mp4", "motion", 5)
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "frames are stored", DONE_LIMIT_S)
    vidflow.kill_workers() if victim == "worker" else vidflow.kill(victim)
    scenario = vidflow.wait_until_inactive(uuid)
    assert (scenario["outcome"], scenario["error"]) == ("completed", None)
    assert vidflow.frames(uuid) == expected_frames
    with psycopg.connect(vidflow.stack.database_url) as connection:
        unpublished = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert unpublished == (0,)


def test_a_shutdown_ends_a_run_as_stopped(vidflow: VidflowClient, shared: Path) -> None:
    uuid = vidflow.create_scenario(shared / "videos/one-by-one-person.mp4", "motion", "all")
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "frames are stored", DONE_LIMIT_S)
    assert vidflow.http.post(f"/scenario/{uuid}/shutdown").status_code == 200
    scenario = vidflow.wait_until_inactive(uuid)
    assert scenario["outcome"] == "stopped"
    assert [frame["frame_number"] for frame in vidflow.frames(uuid)] == list(range(scenario["frames_stored"]))


def test_bad_sources_fail_with_an_error_code_and_do_not_affect_other_scenarios(
    vidflow: VidflowClient, shared: Path, tmp_path: Path
) -> None:
    text_file = tmp_path / "text.mp4"
    text_file.write_text("not a video")
    bad = {
        "source_not_video": vidflow.create_scenario(text_file, "motion", "all"),
        "source_no_video_stream": vidflow.create_scenario(shared / "videos/audio-only.mp3", "motion", "all"),
    }
    good = vidflow.create_scenario(shared / "videos/rotated-90.mov", "motion", "all")
    for code, uuid in bad.items():
        scenario = vidflow.wait_until_inactive(uuid)
        assert (scenario["outcome"], scenario["error"]["code"]) == ("failed", code)
    assert vidflow.wait_until_inactive(good)["outcome"] == "completed"
