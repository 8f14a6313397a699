"""The output formats of `vidflow run`: one writer per format, which takes the frames in order."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TextIO

import msgspec

from vidflow.contract import FrameResult
from vidflow.domain.escaping import escape_json, escape_unprintable
from vidflow.settings import OutputFormat

Writer = Callable[[Iterator[msgspec.Raw], TextIO], None]


def write_ndjson(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """Write one JSON object per line, each frame as soon as it arrives."""
    for frame in frames:
        out.write(_json(frame) + "\n")
        out.flush()


def write_json(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """Write all frames as one JSON array, in whole lines: on a terminal, the progress appears between them."""
    last: str | None = None
    for frame in frames:
        out.write("[\n" if last is None else f"{last},\n")
        last = _json(frame)
    out.write("[]\n" if last is None else f"{last}\n]\n")


def write_csv(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """Write a row per detection. A frame without detections has one row with these columns empty."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(
        [
            "frame_number",
            "time_s",
            "width",
            "height",
            "label",
            "score",
            "x1",
            "y1",
            "x2",
            "y2",
            "captured_at",
            "captured_by",
        ]
    )
    label_of = escape_unprintable if out.isatty() else str  # a file gets the unchanged labels
    for frame in _decode_frames(frames):
        start = [frame.frame_number, frame.time_s, frame.width, frame.height]
        end = [
            frame.captured_at.isoformat(timespec="microseconds") if frame.captured_at else "",
            frame.captured_by or "",
        ]
        for detection in frame.detections:
            rows.writerow([*start, label_of(detection.label), detection.score, *detection.box, *end])
        if not frame.detections:
            rows.writerow([*start, "", "", "", "", "", "", *end])


def write_table(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """Write a table for people: a line per frame with the best score of each label, and totals at the end."""
    out.write(f"{'frame':>7}  {'time':>9}  detections\n")
    total: Counter[str] = Counter()
    count = 0
    for frame in _decode_frames(frames):
        total.update(detection.label for detection in frame.detections)
        count += 1
        out.write(f"{frame.frame_number:>7}  {frame.time_s:>8.2f}s  {escape_unprintable(_summarize(frame))}\n")
    summary = ", ".join(f"{number} {label}" for label, number in total.most_common()) or "nothing"
    out.write(escape_unprintable(f"{count} frames; total: {summary}") + "\n")


def _summarize(frame: FrameResult) -> str:
    scores: dict[str, list[float]] = {}
    for detection in frame.detections:
        scores.setdefault(detection.label, []).append(detection.score)
    return ", ".join(f"{len(values)} {label} ({max(values):.2f})" for label, values in scores.items()) or "-"


def _json(frame: msgspec.Raw) -> str:
    """Return the server's JSON on one line, with unprintable characters escaped."""
    return escape_json(bytes(frame).decode(errors="replace"))


def _decode_frames(frames: Iterator[msgspec.Raw]) -> Iterator[FrameResult]:
    decoder = msgspec.json.Decoder(FrameResult)
    return (decoder.decode(frame) for frame in frames)


WRITERS: Final[Mapping[OutputFormat, Writer]] = {
    "table": write_table, "ndjson": write_ndjson, "json": write_json, "csv": write_csv,
}  # fmt: skip
