"""Output of `vidflow run` for hostile labels and hostile responses."""

from __future__ import annotations

import csv
import io
import json
from typing import get_args

import msgspec
import pytest

from vidflow.commands.run.output import WRITERS
from vidflow.settings import OutputFormat

LABEL = "car\x1b]0;x\x07\x9b2J\u202e\nforged"
FRAME = {
    "frame_number": 0, "epoch": 1, "time_s": 0.0, "width": 8, "height": 8,
    "detections": [{"label": LABEL, "score": 0.5, "box": [0.0, 0.0, 8.0, 8.0]}],
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(output: OutputFormat, raw: bytes, out: io.StringIO | None = None) -> str:
    out = out or Terminal()
    WRITERS[output](iter([msgspec.Raw(raw)]), out)
    return out.getvalue()


def test_each_format_has_a_writer() -> None:
    assert set(WRITERS) == set(get_args(OutputFormat))


@pytest.mark.parametrize("output", WRITERS)
def test_a_hostile_label_is_escaped_in_every_format(output: OutputFormat) -> None:
    text = printed(output, json.dumps(FRAME, ensure_ascii=False).encode())
    assert "forged" in text
    assert all(line.isprintable() and not line.startswith("forged") for line in text.split("\n"))


@pytest.mark.parametrize("output", ["json", "ndjson"])
def test_json_keeps_the_label_unchanged(output: OutputFormat) -> None:
    text = printed(output, json.dumps(FRAME, ensure_ascii=False).encode())
    frame = json.loads(text)
    assert (frame[0] if output == "json" else frame) == FRAME


def test_a_csv_file_keeps_the_label_unchanged() -> None:
    text = printed("csv", json.dumps(FRAME, ensure_ascii=False).encode(), io.StringIO())
    assert next(iter(csv.DictReader(io.StringIO(text, newline=""))))["label"] == LABEL


def test_a_response_with_raw_line_breaks_stays_one_line() -> None:
    assert printed("ndjson", b'{"a":\n1}\xff').count("\n") == 1


SHAPES = {
    "keypoints": [[1.0, 2.25, 0.75], [0.0, 5.0, 0.0]],
    "corners": [[-1.5, 0.0], [5.0, 0.0], [5.0, 5.0], [-1.5, 5.0]],
    "mask": {"size": [1000, 50], "counts": "hj6`n1hg:aQNfVG0iPO0a\\i0"},
}
SHAPED = FRAME | {"detections": [{"label": "person", "score": 0.5, "box": [0.0, 1.0, 8.0, 9.0]} | SHAPES]}


@pytest.mark.parametrize("output", WRITERS)
def test_detections_with_keypoints_corners_and_masks_are_printed_in_every_format(output: OutputFormat) -> None:
    text = printed(output, json.dumps(SHAPED).encode(), io.StringIO())
    if output in {"json", "ndjson"}:
        assert json.loads(text) in ([SHAPED], SHAPED)
    elif output == "csv":
        (row,) = csv.DictReader(io.StringIO(text, newline=""))
        assert (row["label"], row["x1"], row["y2"]) == ("person", "0.0", "9.0")
    else:
        assert "1 person (0.50)" in text
