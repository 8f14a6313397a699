"""The report of `vidflow bench`: what it concludes, in words."""

from __future__ import annotations

import json

import msgspec
import pytest

from vidflow.commands.bench.measure import Figures
from vidflow.commands.bench.protocol import Ready
from vidflow.commands.bench.report import build_report, format_json, format_text
from vidflow.domain.capacity import Capacity, CapacityLimit, Level, Machine

FIGURES = Figures(
    source=Ready(1280, 720, "h264", 25.0),
    machine=Machine(2, 4 * 1024**3),
    decoded_per_s=402.4,
    decode_speed=16.1,
    conversion_s=0.00083,
    inferred_per_s=55.04,
    inferred_per_s_by_threads=90.06,
    at_once=2,
    inferred_per_s_at_once=101.96,
    lone_worker=Level(1, 5.5, 1.7),
    levels=(Level(1, 4.1, 1.0), Level(2, 7.96, 1.98)),
    worker_bytes=150 * 1024**2,
    capacity=Capacity(7, CapacityLimit.CORES, 7, 21),
)


def concluding(capacity: Capacity, fps: str = "5", model: str = "yolox_nano") -> str:
    figures = msgspec.structs.replace(FIGURES, capacity=capacity)
    return "\n".join(format_text(build_report("clip.mp4", model, fps, figures)))


def test_the_text_has_every_figure_and_the_conclusion() -> None:
    assert list(format_text(build_report("clip.mp4", "yolox_nano", "5", FIGURES))) == [
        "clip.mp4: 1280x720, h264, 25 fps; model yolox_nano",
        "this machine: 2 cores, 4.0 GiB of memory",
        "",
        "decoding                  402 frames/s, 16.1 times as fast as the video plays",
        "converting a picture      0.83 ms",
        "inference                 55.0 frames/s in one process of one thread, 90.1 with 2 threads, 102.0 in 2 at once",
        "memory of a worker        150 MiB",
        "a lone worker             5.50 s of video a second, on 1.7 of 2 cores",
        "one whole worker          4.10 s of video a second, on 1.0 of 2 cores",
        "2 at once                 7.96 s of video a second, on 2.0 of 2 cores",
        "",
        "This machine can carry about 7 streams of 720p at 5 fps with yolox_nano.",
        "The cores are the limit. The memory is enough for 21 workers.",
        "Not included:",
        "- sending the results to Kafka and storing them in PostgreSQL, and these servers if they run on this machine",
        "- a network that the video comes over",
        "- headroom for scenes with more to detect and for other programs",
    ]


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (
            Capacity(1, CapacityLimit.CORES, 1, 1),
            "can carry about 1 stream of 720p at 5 fps with yolox_nano.\nThe cores are the limit. The memory is enough for 1 worker.",
        ),
        (
            Capacity(3, CapacityLimit.MEMORY, 7, 3),
            "about 3 streams of 720p at 5 fps with yolox_nano.\nThe memory is the limit. The speed is enough for 7 streams.",
        ),
        (Capacity(4, CapacityLimit.OTHER, 4, 21), "could not use the cores: other programs, a CPU quota or a graphics card is the limit."),
        (
            Capacity(0, CapacityLimit.WORKER, 0, 21),
            "cannot carry a stream of 720p at 5 fps with yolox_nano.\nOne worker processes this video more slowly than it plays.",
        ),
        (
            Capacity(0, CapacityLimit.DECODING, 0, 21),
            "cannot carry a stream of 720p at 5 fps with yolox_nano.\nOne worker decodes this video more slowly than it plays.",
        ),
        (Capacity(0, CapacityLimit.MEMORY, 7, 0), "cannot carry a stream of 720p at 5 fps with yolox_nano.\nThe memory is the limit."),
    ],
)  # fmt: skip
def test_the_conclusion_names_the_number_of_streams_and_the_limit(capacity: Capacity, expected: str) -> None:
    assert expected in concluding(capacity)


def test_every_limit_is_explained() -> None:
    endings = {concluding(Capacity(2, limit, 2, 2)).partition(" with ")[2] for limit in CapacityLimit}
    assert len(endings) == len(CapacityLimit)


@pytest.mark.parametrize(
    ("fps", "expected"), [("all", "at all frames"), ("30000/1001", "at 30000/1001 fps"), ("2.50", "at 2.5 fps")]
)
def test_the_rate_is_written_as_it_was_meant(fps: str, expected: str) -> None:
    assert f"7 streams of 720p {expected} with" in concluding(FIGURES.capacity, fps)


def test_names_cannot_control_the_terminal() -> None:
    assert "\x1b" not in concluding(FIGURES.capacity, model="a\x1b[2Jb")
    assert "\x1b" not in format_json(build_report("a\x1b.mp4", "m", "5", FIGURES))


def test_the_json_has_the_same_figures() -> None:
    report = json.loads(format_json(build_report("clip.mp4", "yolox_nano", "29.97", FIGURES)))
    assert (report["video"], report["model"], report["fps"]) == ("clip.mp4", "yolox_nano", 29.97)
    assert report["figures"]["capacity"] == {
        "streams": 7,
        "limit": "cores",
        "streams_by_speed": 7,
        "streams_by_memory": 21,
    }
    assert report["figures"]["levels"][1] == {"workers": 2, "speed": 7.96, "cores_used": 1.98}
    assert len(report["left_out"]) == 3
