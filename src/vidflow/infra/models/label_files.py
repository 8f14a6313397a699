"""Label files: UTF-8 text with one label per line, in the order of the class index. `coco80` and `coco91` are built in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vidflow.infra.models import files
from vidflow.infra.models.spec import spec_error, validate_labels

BUILT_IN_FOLDER: Final = Path(__file__).with_name("builtin")
"""Files that are part of vidflow: the default model and lists of labels."""
BUILT_IN_LABELS: Final = {name: BUILT_IN_FOLDER / f"{name}.names" for name in ("coco80", "coco91")}
"""Values of `labels` in a spec that are lists of labels rather than files. `coco91` has COCO's own numbers, of which 11 are unused
and 0 is the background."""
_EDGES: Final = " \t"
"""Removed from the ends of a line. Other spaces belong to the label."""


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the labels in the file at a real path. Raises ModelError."""
    return parse_labels(files.read_file(path, files.MAX_LABELS_BYTES), path.name)


def parse_labels(content: bytes, origin: str) -> tuple[str, ...]:
    """Return the labels in the content of a file. A byte order mark and empty lines at the end are ignored.

    Raises ModelError (model_spec_invalid), which names `origin`.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise spec_error(origin, "not UTF-8 text") from error
    lines = [line.strip(_EDGES) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return validate_labels(lines, origin)
