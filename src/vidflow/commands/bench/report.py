"""The report of `vidflow bench`, as text for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from vidflow.commands.bench.measure import Figures
from vidflow.domain.capacity import CapacityLimit, Level
from vidflow.domain.escaping import escape_json, escape_unprintable
from vidflow.domain.frame_rate import ALL_FRAMES, frame_rate_to_json, parse_frame_rate

LEFT_OUT: Final = (
    "sending the results to Kafka and storing them in PostgreSQL, and these servers if they run on this machine",
    "a network that the video comes over",
    "headroom for scenes with more to detect and for other programs",
)
_USUAL_SIZES: Final = {(1280, 720): "720p", (1920, 1080): "1080p", (3840, 2160): "2160p"}
_WIDTH: Final = 26


class BenchReport(msgspec.Struct, frozen=True):
    """The figures with the question that they answer. In JSON, `fps` is a number, a fraction or "all"."""

    video: str
    model: str
    fps: float | str
    figures: Figures
    left_out: tuple[str, ...] = LEFT_OUT


def build_report(video: str, model: str, fps: str, figures: Figures) -> BenchReport:
    """Return the report on a video, as the user named it, at a rate (see `parse_frame_rate`)."""
    return BenchReport(video, model, frame_rate_to_json(parse_frame_rate(fps)), figures)


def format_json(report: BenchReport) -> str:
    """Return the report as one line of JSON."""
    return escape_json(msgspec.json.encode(report).decode())


def format_text(report: BenchReport) -> Iterator[str]:
    """Yield the lines of the report."""
    figures = report.figures
    source, machine = figures.source, figures.machine
    rate = "" if source.source_fps is None else f", {source.source_fps:g} fps"
    device = "" if source.device is None else f" on {source.device}"
    yield escape_unprintable(
        f"{report.video}: {source.width}x{source.height}, {source.codec}{rate}; model {report.model}{device}"
    )
    yield f"this machine: {_count(machine.cores, 'core')}, {machine.memory_bytes / 1024**3:.1f} GiB of memory"
    yield ""
    yield _row(
        "decoding", f"{figures.decoded_per_s:.0f} frames/s, {figures.decode_speed:.1f} times as fast as the video plays"
    )
    yield _row("converting a picture", f"{figures.conversion_s * 1000:.2f} ms")
    threads = f", {figures.inferred_per_s_by_threads:.1f} with {machine.cores} threads" if machine.cores > 1 else ""
    at_once = f", {figures.inferred_per_s_at_once:.1f} in {figures.at_once} at once" if figures.at_once > 1 else ""
    yield _row("inference", f"{figures.inferred_per_s:.1f} frames/s in one process of one thread{threads}{at_once}")
    yield _row("memory of a worker", f"{figures.worker_bytes / 1024**2:.0f} MiB")
    yield _row("a lone worker", _describe_level(figures.lone_worker, machine.cores)[1])
    for level in figures.levels:
        yield _row(*_describe_level(level, machine.cores))
    yield ""
    yield _conclude(report)
    yield from _explain(report)
    yield "Not included:"
    for each in report.left_out:
        yield f"- {each}"


def _row(name: str, value: str) -> str:
    return f"{name:<{_WIDTH}}{value}"


def _describe_level(level: Level, cores: int) -> tuple[str, str]:
    name = "one whole worker" if level.workers == 1 else f"{level.workers} at once"
    return name, f"{level.speed:.2f} s of video a second, on {level.cores_used:.1f} of {_count(cores, 'core')}"


def _conclude(report: BenchReport) -> str:
    capacity = report.figures.capacity
    stream = f"{_describe_size(report)} at {_describe_rate(report)} with {escape_unprintable(report.model)}"
    if capacity.streams == 0:
        return f"This machine cannot carry a stream of {stream}."
    return f"This machine can carry about {_count(capacity.streams, 'stream')} of {stream}."


def _explain(report: BenchReport) -> Iterator[str]:
    figures = report.figures
    capacity = figures.capacity
    match capacity.limit:
        case CapacityLimit.DECODING:
            yield "One worker decodes this video more slowly than it plays. Use a smaller picture or a lower frame rate of the camera."
        case CapacityLimit.WORKER:
            yield "One worker processes this video more slowly than it plays. Use a lower --fps, a smaller model or a smaller picture."
        case CapacityLimit.CORES:
            yield f"The cores are the limit. The memory is enough for {_count(capacity.streams_by_memory, 'worker')}."
        case CapacityLimit.OTHER:
            yield (
                "The workers could not use the cores: other programs, a CPU quota or a graphics card is the limit."
                f" The memory is enough for {_count(capacity.streams_by_memory, 'worker')}."
            )
        case CapacityLimit.MEMORY:
            yield f"The memory is the limit. The speed is enough for {_count(capacity.streams_by_speed, 'stream')}."


def _describe_size(report: BenchReport) -> str:
    size = (report.figures.source.width, report.figures.source.height)
    return _USUAL_SIZES.get(size, f"{size[0]}x{size[1]}")


def _describe_rate(report: BenchReport) -> str:
    return "all frames" if report.fps == ALL_FRAMES else f"{report.fps} fps"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
