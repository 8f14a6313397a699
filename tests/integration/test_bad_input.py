"""Invariant 9: bad input fails alone, with an error that says what to do, and blocks nothing else.

A complete vidflow gets bad input through every interface while other scenarios run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests import clips
from tests.integration.cli_process import build_environment
from tests.integration.delivery import limited_message_size, read_topic
from tests.integration.runner_harness import ControlPlane, make_deploy, new_uuid
from tests.integration.server_owner import wait_until
from tests.integration.vidflow_process import DONE_LIMIT_S, VidflowClient, running_vidflow

from vidflow.domain.errors import format_install_hint
from vidflow.domain.messages import DeadLetter, End, EndReason, Entry, Ping, Report, Shutdown, Start, StopWork, encode
from vidflow.domain.topics import DEAD_LETTERS, INIT_SCENARIO, RESULTS, RUNNER_EVENTS, commands_topic
from vidflow.infra.kafka import clients
from vidflow.infra.kafka.clients import Headers
from vidflow.infra.kafka.settings import KafkaSettings
from vidflow.infra.kafka.topics import PARTITIONS

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

COMMANDS = commands_topic("default")
UNKNOWN_UUID = "01999999-0000-7000-8000-000000000000"
GARBAGE = [
    None,
    b"",
    b"\xff\xfe\x00",
    b"{",
    b"[]",
    b'"start"',
    b"{}",
    b'{"type":"dance"}',
    b"[" * 100_000,
    b"\x00" * 500_000,
]
WRONG = {
    INIT_SCENARIO: [b'{"type":"start"}', b'{"type":"start","scenario_uuid":7}', encode(StopWork(UNKNOWN_UUID, 1))],
    COMMANDS: [b'{"type":"deploy"}', b'{"type":"stop","scenario_uuid":"x","epoch":-1}', encode(Start(UNKNOWN_UUID))],
    RUNNER_EVENTS: [b'{"type":"report"}', b'{"type":"report","runner":"\\u0000","entries":7}', encode(Ping("r"))],
    RESULTS: [b'{"type":"frame"}', b'{"type":"end","scenario_uuid":"x","epoch":1}', encode(Start(UNKNOWN_UUID))],
}
"""JSON that does not belong to the topic, in addition to GARBAGE."""
UNKNOWN = {
    INIT_SCENARIO: [encode(Start(UNKNOWN_UUID)), encode(Shutdown(UNKNOWN_UUID))],
    COMMANDS: [encode(StopWork(UNKNOWN_UUID, 2**53 - 1))],
    RUNNER_EVENTS: [
        encode(Report("nobody", "default", 1, 0, 0, draining=False, entries=(Entry(UNKNOWN_UUID, 1),))),
        encode(Report("nobody", "default", 2, 0, 0, draining=True)),
    ],
    RESULTS: [encode(End(UNKNOWN_UUID, 1, 5, EndReason.FINISHED))],
}
"""Valid messages about a scenario and a runner that do not exist."""


@pytest.fixture(scope="module")
def vidflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VidflowClient]:
    with running_vidflow(tmp_path_factory.mktemp("bad-input"), max_workers=3) as vidflow:
        yield vidflow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def good(folder: Path) -> Path:
    return clips.constant_rate(folder / "good.mp4", frames=20)


@pytest.fixture(scope="module")
def long(folder: Path) -> Path:
    """A clip long enough that a test can act while it is processed."""
    return clips.constant_rate(folder / "long.mp4", frames=4000)


def process_ids(vidflow: VidflowClient) -> dict[str, list[int]]:
    return {kind: sorted(pids) for kind, pids in vidflow.stack.pids().items()}


def runner_of(vidflow: VidflowClient, uuid: str) -> bytes:
    wait_until(lambda: vidflow.scenario(uuid)["runner"] is not None, "it is deployed", DONE_LIMIT_S)
    return str(vidflow.scenario(uuid)["runner"]).encode()


@pytest.mark.parametrize("topic", [INIT_SCENARIO, COMMANDS, RUNNER_EVENTS, RESULTS])
def test_invalid_messages_stop_nothing_and_a_scenario_beside_them_completes(
    vidflow: VidflowClient, long: Path, topic: str
) -> None:
    """They are sent to every partition of the topic, with the key and headers of the running scenario."""
    processes = process_ids(vidflow)
    uuid = vidflow.create_scenario(long, "motion", "all")
    runner = runner_of(vidflow, uuid)
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "it is being processed", DONE_LIMIT_S)
    start = len(read_topic(vidflow.stack.kafka, DEAD_LETTERS))
    invalid = [*GARBAGE, *WRONG[topic]]
    send_messages(vidflow, topic, [*invalid, *UNKNOWN[topic]], uuid, [(clients.RUNNER_HEADER, runner)])
    assert vidflow.scenario(uuid)["frames_stored"] < 4000, "the messages arrived too late to test anything"
    end = vidflow.wait_until_inactive(uuid)
    assert (end["outcome"], end["error"], end["frames_stored"]) == ("completed", None, 4000)
    assert [frame["frame_number"] for frame in vidflow.frames(uuid)] == list(range(4000))
    assert process_ids(vidflow) == processes
    if topic == RESULTS:
        expected = sorted((value or b"") for value in invalid * PARTITIONS[topic])
        letters = dead_letters(vidflow, start, count=len(expected))
        assert sorted(letter.value or b"" for letter in letters) == expected
        assert all(letter.topic == RESULTS and letter.error for letter in letters)


def send_messages(vidflow: VidflowClient, topic: str, values: list[Any], key: str, headers: Headers) -> None:
    producer = clients.create_producer(vidflow.stack.kafka, client_id="test")
    for partition in range(PARTITIONS[topic]):
        for value in values:
            producer.produce(topic, value, key=key, headers=headers, partition=partition)
    assert producer.flush(20) == 0


def dead_letters(vidflow: VidflowClient, start: int, count: int) -> list[DeadLetter]:
    """Wait for `count` dead letters after the first `start`, and return them."""

    def read() -> list[DeadLetter]:
        messages = read_topic(vidflow.stack.kafka, DEAD_LETTERS)[start:]
        return [msgspec.json.decode(message.value() or b"", type=DeadLetter) for message in messages]

    wait_until(lambda: len(read()) >= count, f"{count} dead letters", DONE_LIMIT_S)
    return read()


def test_many_invalid_results_that_no_worker_sent_do_not_stop_the_inbox(vidflow: VidflowClient, good: Path) -> None:
    processes = process_ids(vidflow)
    send_messages(vidflow, RESULTS, [b"noise"] * 200, "key", [])
    assert vidflow.wait_until_inactive(vidflow.create_scenario(good, "motion", "all"))["outcome"] == "completed"
    assert process_ids(vidflow) == processes


def write_bad_sources(folder: Path, good: Path) -> dict[str, Path]:
    """Write files that the api accepts. Return them by the code with which their scenarios must fail, and their name."""
    text = folder / "text.mp4"
    text.write_text("not a video")
    playlist = folder / "playlist.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{good}\n")
    wide = clips.write(
        folder / "wide.mkv", [np.zeros((2, 70_000, 3), np.uint8)], [0], codec="ffv1", pixel_format="bgr0"
    )
    sources = {
        "no_frames": [clips.no_packet(folder / "empty.mp4")],
        "source_not_video": [text, playlist, clips.write_truncated(good, folder / "truncated.mp4")],
        "source_no_video_stream": [clips.cover_picture(folder / "sound.mp3")],
        "source_too_large": [wide],
    }
    return {f"{code} {path.name}": path for code, paths in sources.items() for path in paths}


def test_each_bad_source_fails_alone_with_its_code_and_a_helpful_message(
    vidflow: VidflowClient, folder: Path, good: Path, long: Path
) -> None:
    other = vidflow.create_scenario(long, "motion", "all")
    uuids = {
        name: vidflow.create_scenario(path, "motion", "all") for name, path in write_bad_sources(folder, good).items()
    }
    for name, uuid in uuids.items():
        code, _, file = name.partition(" ")
        end = vidflow.wait_until_inactive(uuid)
        assert (end["outcome"], end["error"]["code"], end["attempt"]) == ("failed", code, 0), end
        assert file in end["error"]["message"]
        assert len(end["error"]["message"].split()) > 8, "the message must say what to do"
        assert end["frames_stored"] == 0
    assert vidflow.wait_until_inactive(other)["outcome"] == "completed"


def test_a_truncated_recording_completes_with_a_gap(vidflow: VidflowClient, folder: Path) -> None:
    complete = clips.constant_rate(folder / "complete.mkv", frames=200)
    uuid = vidflow.create_scenario(clips.write_truncated(complete, folder / "cut.mkv"), "motion", "all")
    end = vidflow.wait_until_inactive(uuid)
    assert end["outcome"] == "completed"
    assert 50 < end["frames_stored"] < 200
    [gap] = vidflow.get(f"/scenario/{uuid}/gaps")["items"]
    assert (gap["reason"], gap["after_frame"]) == ("truncated", end["frames_stored"] - 1)


def assert_refused(vidflow: VidflowClient, **body: Any) -> tuple[int, str]:
    response = vidflow.http.post("/scenario/init", json={"source": "http://camera.example/v", "model": "motion"} | body)
    problem = response.json()
    assert len(problem["detail"].split()) > 4, problem
    return response.status_code, problem["code"]


def test_the_api_refuses_what_it_can_check_itself(vidflow: VidflowClient, folder: Path) -> None:
    empty = folder / "nothing.mp4"
    empty.touch()
    count = len(vidflow.get("/scenario", limit="1000")["items"])
    assert assert_refused(vidflow, source=str(folder)) == (422, "source_not_video")
    assert assert_refused(vidflow, source=str(empty)) == (422, "source_not_video")
    assert assert_refused(vidflow, source=str(folder / "none.mp4")) == (422, "source_missing")
    assert assert_refused(vidflow, source="/dev/zero") == (422, "source_not_video")
    assert assert_refused(vidflow, source="ftp://host/video.mp4") == (422, "source_forbidden")
    assert assert_refused(vidflow, model="none") == (422, "model_unknown")
    assert assert_refused(vidflow, model=str(folder / "none.onnx"))[0] == 422
    assert assert_refused(vidflow, fps="fast") == (422, "request_invalid")
    assert assert_refused(vidflow, fps=0) == (422, "request_invalid")
    assert assert_refused(vidflow, parameters={"score_threshold": 7}) == (422, "request_invalid")
    assert assert_refused(vidflow, parameters={"labels": ["cat"]}) == (422, "parameter_invalid")
    for path in (
        f"/scenario/{UNKNOWN_UUID}",
        f"/scenario/{UNKNOWN_UUID}/history",
        f"/prediction?scenario_uuid={UNKNOWN_UUID}",
    ):
        assert vidflow.http.get(path).status_code == 404
    assert vidflow.http.post(f"/scenario/{UNKNOWN_UUID}/shutdown").status_code == 404
    assert vidflow.http.get("/scenario/nonsense").status_code in {400, 404}
    assert len(vidflow.get("/scenario", limit="1000")["items"]) == count


def test_a_file_removed_before_its_deployment_fails_alone(
    vidflow: VidflowClient, folder: Path, good: Path, long: Path
) -> None:
    other = vidflow.create_scenario(long, "motion", "all")
    gone = Path(shutil.copy(good, folder / "gone.mp4"))
    with vidflow.frozen("orchestrator"):
        uuid = vidflow.create_scenario(gone, "motion", "all")
        gone.unlink()
    end = vidflow.wait_until_inactive(uuid)
    assert (end["outcome"], end["error"]["code"]) == ("failed", "source_missing")
    assert "Check that the file exists on the runner's machine" in end["error"]["message"]
    assert vidflow.wait_until_inactive(other)["outcome"] == "completed"


def test_a_file_that_changes_between_two_attempts_fails_and_keeps_its_results(
    vidflow: VidflowClient, folder: Path, good: Path, long: Path
) -> None:
    changing = Path(shutil.copy(long, folder / "changing.mp4"))
    uuid = vidflow.create_scenario(changing, "motion", "all")
    wait_until(lambda: vidflow.scenario(uuid)["frames_stored"] > 5, "it is being processed", DONE_LIMIT_S)
    another = Path(shutil.copy(good, folder / "another.mp4"))
    another.replace(changing)  # the worker still has the old file open
    vidflow.kill_workers()
    end = vidflow.wait_until_inactive(uuid)
    assert (end["outcome"], end["error"]["code"]) == ("failed", "source_changed")
    assert "Start a new scenario for the new file" in end["error"]["message"]
    assert [frame["frame_number"] for frame in vidflow.frames(uuid)] == list(range(end["frames_stored"]))
    assert 5 < end["frames_stored"] < 4000
    assert vidflow.wait_until_inactive(vidflow.create_scenario(good, "motion", "all"))["outcome"] == "completed"


def test_a_damaged_model_file_fails_its_scenario_alone(vidflow: VidflowClient, folder: Path, good: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"\x08\x07garbage" * 100)
    spec = folder / "broken.toml"
    spec.write_text(SPEC)
    uuid = vidflow.create_scenario(good, str(spec), "all")
    end = vidflow.wait_until_inactive(uuid)
    assert (end["outcome"], end["error"]["code"].split("_")[0]) == ("failed", "model"), end
    assert "broken.onnx" in end["error"]["message"] or "broken.toml" in end["error"]["message"]
    assert vidflow.wait_until_inactive(vidflow.create_scenario(good, "motion", "all"))["outcome"] == "completed"


def test_a_deploy_that_kafka_refuses_fails_its_scenario_alone(vidflow: VidflowClient, good: Path) -> None:
    with limited_message_size(vidflow.stack.kafka, commands_topic("default"), 200):  # less than any deploy
        uuid = vidflow.create_scenario(good, "motion", "all")
        end = vidflow.wait_until_inactive(uuid)
    assert (end["outcome"], end["error"]["code"]) == ("failed", "deploy_refused")
    assert "raise max.message.bytes of the pool's topic" in end["error"]["message"]
    assert vidflow.wait_until_inactive(vidflow.create_scenario(good, "motion", "all"))["outcome"] == "completed"


SPEC = """
kind = "onnx"
file = "broken.onnx"
task = "detection"
labels = ["thing"]

[input]
size = [64, 64]

[output]
decoder = "yolox"
strides = [8, 16, 32]
"""


TORCH_MODEL = "ssdlite320_mobilenet_v3_large"
NEEDS_TORCH = f"Model '{TORCH_MODEL}' needs torch, torchvision. {format_install_hint('torch')}."


@pytest.fixture(scope="module")
def environment_without_torch(folder: Path) -> dict[str, str]:
    """The environment of a Python with this one's packages except torch. With -S it finds no others."""
    packages = folder / "site-packages"
    packages.mkdir()
    for package in Path(np.__file__).parents[1].iterdir():
        if not package.name.startswith(("torch", "__pycache__")):
            (packages / package.name).symlink_to(package)
    return build_environment({"PYTHONPATH": f"{Path(__file__).parents[2] / 'src'}:{packages}"})


def test_run_with_a_model_whose_extra_is_missing_says_how_to_install_it(
    environment_without_torch: dict[str, str], good: Path
) -> None:
    command = [sys.executable, "-S", "-P", "-m", "vidflow", "run", str(good), "--model", TORCH_MODEL]
    end = subprocess.run(
        command, env=environment_without_torch, capture_output=True, text=True, timeout=60, check=False
    )
    assert (end.returncode, end.stdout, end.stderr) == (3, "", f"vidflow: {NEEDS_TORCH}\n")


def test_a_runner_without_the_extra_of_a_model_reports_a_retryable_error(
    environment_without_torch: dict[str, str], good: Path, kafka_settings: KafkaSettings
) -> None:
    control_plane = ControlPlane(kafka_settings)
    command = [sys.executable, "-S", "-P", "-m", "vidflow", "runner", "--kafka", kafka_settings.bootstrap, "--any-file"]
    with subprocess.Popen(command, env=environment_without_torch) as runner:
        try:
            control_plane.wait_until(lambda: control_plane.reports, "it reports")
            uuid, name = new_uuid(), control_plane.reports[0].runner
            control_plane.send_command(name, make_deploy(uuid, good, TORCH_MODEL))
            entry = control_plane.wait_until_ended(name, uuid)
        finally:
            runner.kill()
            control_plane.close()
    assert entry.error is not None
    assert (entry.error.code, entry.error.message, entry.fatal) == ("extra_missing", NEEDS_TORCH, False)
