"""`vidflow bench` measures real models on real videos, and ends its processes."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from tests import clips
from tests.integration import faulty_models
from tests.integration.cli_process import LIMIT_S, hides_internals, run_command, running_command
from tests.integration.processes import descendants, is_alive
from tests.integration.server_owner import wait_until

SHORT = ("--seconds", "2")


@pytest.fixture(scope="module")
def hd_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a moving square in 720p at 25 frames per second."""
    path = tmp_path_factory.mktemp("clips") / "hd.mp4"
    pictures = (clips.moving_square(index, 1280, 720) for index in range(50))
    return clips.write(path, pictures, [40 * index for index in range(50)])


def test_the_text_says_how_many_streams_the_machine_can_carry(hd_clip: Path) -> None:
    end = run_command("bench", "--model", "motion", "--source", str(hd_clip), *SHORT)
    assert end.returncode == 0, end.stderr
    assert re.search(r"(can carry about \d+ streams?|cannot carry a stream) of 720p at 5 fps with motion\.", end.stdout)
    first_words = [line.partition("  ")[0] for line in end.stdout.splitlines()]
    assert {"decoding", "converting a picture", "inference", "memory of a worker", "one whole worker"} <= {*first_words}
    assert "Kafka" in end.stdout.partition("Not included:")[2]
    assert end.stderr.splitlines()[:2] == ["loading the model", "measuring decoding and inference"]


def test_the_json_has_what_the_estimate_follows_from(hd_clip: Path) -> None:
    end = run_command("bench", "--source", str(hd_clip), "--fps", "10", "--output", "json", "--device", "cpu", *SHORT)
    assert end.returncode == 0, end.stderr
    report = json.loads(end.stdout)
    figures = report["figures"]
    assert (report["model"], report["fps"], report["video"]) == ("yolox_nano", 10, str(hd_clip))
    source = {"type": "ready", "width": 1280, "height": 720, "codec": "h264", "source_fps": 25.0, "device": "cpu"}
    assert figures["source"] == source
    speeds = [level["speed"] for level in figures["levels"]]
    assert [level["workers"] for level in figures["levels"]][:1] == [1]
    assert min(*speeds, figures["decode_speed"], figures["conversion_s"], figures["inferred_per_s"]) > 0
    assert figures["decode_speed"] == pytest.approx(figures["decoded_per_s"] / 25, rel=0.1)
    assert figures["worker_bytes"] > 30 * 1024**2
    assert figures["capacity"]["streams"] == min(
        max(1, int(max(speeds))) if figures["lone_worker"]["speed"] >= 1 else 0,
        int(figures["machine"]["memory_bytes"] * 0.8 / figures["worker_bytes"]),
    )


def test_a_stream_that_is_too_much_for_the_machine_is_said_in_words(tmp_path: Path) -> None:
    """A thousand frames a second are too many for one core and this model."""
    path = tmp_path / "fast.mkv"
    clips.write(path, (clips.moving_square(index) for index in range(100)), range(100))
    end = run_command("bench", "--source", str(path), "--fps", "all", *SHORT)
    assert end.returncode == 0, end.stderr
    assert "This machine cannot carry a stream of 96x64 at all frames with yolox_nano.\n" in end.stdout
    pattern = r"One worker (processes|decodes) this video more slowly than it plays\. Use a |could not use the cores"
    assert re.search(pattern, end.stdout), end.stdout


def test_a_file_that_is_not_a_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("no video\n" * 100)
    end = run_command("bench", "--source", str(path), *SHORT)
    assert (end.returncode, end.stdout) == (2, "")
    assert f"vidflow: {path}" in end.stderr.splitlines()[-1]
    assert hides_internals(end.stderr)


def test_a_video_that_says_nothing_of_its_length_needs_two_frames(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "still.h264", [clips.plain(0)], [0], format_name="h264")
    end = run_command("bench", "--model", "motion", "--source", str(path), "--fps", "0.01", *SHORT)
    assert (end.returncode, end.stdout) == (2, "")
    assert "The video is too short for this --fps: only its first frame is kept." in end.stderr


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("inference_error", 2, "inference failed on this picture"),
        ("segfault", 1, r"A measuring process died \(exit code -11"),
        ("load_failure", 2, "load_failure"),
    ],
)
def test_the_failure_of_a_model_is_reported(tmp_path: Path, model: str, code: int, message: str) -> None:
    (tmp_path / "models").mkdir()
    variables = faulty_models.install(tmp_path / "models")
    clip = clips.constant_rate(tmp_path / "clip.mp4", 20)
    end = run_command("bench", "--model", model, "--source", str(clip), "--fps", "all", *SHORT, variables=variables)
    assert end.returncode == code, end.stderr
    assert re.search(message, end.stderr)
    assert end.stdout == ""


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_bench_that_is_ended_leaves_no_processes(tmp_path: Path, hd_clip: Path, stop_signal: signal.Signals) -> None:
    arguments = ["bench", "--model", "motion", "--source", str(hd_clip), "--seconds", "600"]
    with running_command(tmp_path, *arguments) as bench:
        bench.wait_for("measuring decoding")
        processes = descendants(bench.process.pid)
        code = bench.stop(stop_signal, limit_s=LIMIT_S)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[stop_signal]
    assert len(processes) >= 2
    assert hides_internals(bench.stderr)
    wait_until(lambda: not any(map(is_alive, processes)), "all of its processes are gone")
