"""How `vidflow run` prints what was seen: one writer a format, fed with frames in their order. Standard output only."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, TextIO

import msgspec

from vidflow.domain.detections import FrameResult
from vidflow.domain.errors import ParameterError
from vidflow.domain.escaping import escape_json, escape_unprintable

Writer = Callable[[Iterator[msgspec.Raw], TextIO], None]


def find_writer(output: str) -> Writer:
    """The writer of a format. Raises ParameterError for one that there is not."""
    if output not in WRITERS:
        raise ParameterError(f"--output is one of {', '.join(WRITERS)}, not {output}")
    return WRITERS[output]


def write_ndjson(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """One object a line, each as soon as it is there."""
    for frame in frames:
        out.write(_json(frame) + "\n")
        out.flush()


def write_json(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """One array of all objects."""
    separator = "[\n"
    for frame in frames:
        out.write(separator + _json(frame))
        separator = ",\n"
    out.write("[]\n" if separator == "[\n" else "\n]\n")


def write_csv(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """One row a detection; a frame without any has a row too, with the detection's columns empty."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["frame_number", "time_s", "width", "height", "label", "score", "x1", "y1", "x2", "y2"])
    label_of = escape_unprintable if out.isatty() else str  # a file gets each label as it is
    for frame in _decode_frames(frames):
        start = [frame.frame_number, frame.time_s, frame.width, frame.height]
        for detection in frame.detections:
            rows.writerow([*start, label_of(detection.label), detection.score, *detection.box])
        if not frame.detections:
            rows.writerow([*start, "", "", "", "", "", ""])


def write_table(frames: Iterator[msgspec.Raw], out: TextIO) -> None:
    """For people: a line a frame, with the best score of each label, and a sum at the end."""
    out.write(f"{'frame':>7}  {'time':>9}  seen\n")
    total: Counter[str] = Counter()
    count = 0
    for frame in _decode_frames(frames):
        total.update(detection.label for detection in frame.detections)
        count += 1
        out.write(f"{frame.frame_number:>7}  {frame.time_s:>8.2f}s  {escape_unprintable(_summarize(frame))}\n")
    summary = ", ".join(f"{number} {label}" for label, number in total.most_common()) or "nothing"
    out.write(escape_unprintable(f"{count} frames; seen in all: {summary}") + "\n")


def _summarize(frame: FrameResult) -> str:
    scores: dict[str, list[float]] = {}
    for detection in frame.detections:
        scores.setdefault(detection.label, []).append(detection.score)
    return ", ".join(f"{len(found)} {label} ({max(found):.2f})" for label, found in scores.items()) or "-"


def _json(frame: msgspec.Raw) -> str:
    """The server's JSON in one line, its unprintable characters as escapes."""
    return escape_json(bytes(frame).decode(errors="replace"))


def _decode_frames(frames: Iterator[msgspec.Raw]) -> Iterator[FrameResult]:
    decoder = msgspec.json.Decoder(FrameResult)
    return (decoder.decode(frame) for frame in frames)


WRITERS: Final[dict[str, Writer]] = {"table": write_table, "ndjson": write_ndjson, "json": write_json, "csv": write_csv}
