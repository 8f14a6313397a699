"""What `vidflow run` prints of hostile labels and of a hostile server's answers."""

from __future__ import annotations

import csv
import io
import json

import msgspec
import pytest

from vidflow.commands.run.output import WRITERS

LABEL = "car\x1b]0;x\x07\x9b2J\u202e\nforged"
FRAME = {
    "frame_number": 0, "time_s": 0.0, "width": 8, "height": 8,
    "detections": [{"label": LABEL, "score": 0.5, "box": [0.0, 0.0, 8.0, 8.0]}],
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(output: str, raw: bytes, out: io.StringIO | None = None) -> str:
    out = out or Terminal()
    WRITERS[output](iter([msgspec.Raw(raw)]), out)
    return out.getvalue()


@pytest.mark.parametrize("output", WRITERS)
def test_a_label_drives_no_terminal_and_forges_no_line(output: str) -> None:
    said = printed(output, json.dumps(FRAME, ensure_ascii=False).encode())
    assert "forged" in said
    assert all(line.isprintable() and not line.startswith("forged") for line in said.split("\n"))


@pytest.mark.parametrize("output", ["json", "ndjson"])
def test_json_keeps_the_label_as_it_is(output: str) -> None:
    said = printed(output, json.dumps(FRAME, ensure_ascii=False).encode())
    frame = json.loads(said)
    assert (frame[0] if output == "json" else frame) == FRAME


def test_a_file_of_csv_keeps_the_label_as_it_is() -> None:
    said = printed("csv", json.dumps(FRAME, ensure_ascii=False).encode(), io.StringIO())
    assert next(iter(csv.DictReader(io.StringIO(said, newline=""))))["label"] == LABEL


def test_an_answer_with_raw_line_breaks_stays_one_line() -> None:
    assert printed("ndjson", b'{"a":\n1}\xff').count("\n") == 1
