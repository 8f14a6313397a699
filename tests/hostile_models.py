"""An exported program that runs code when it is loaded, for tests that it never is. The code creates a marker file."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

SPEC = """
kind = "exported"
file = "evil.pt2"
sha256 = "{digest}"
labels = ["thing"]
[input]
size = [16, 32]
[output]
decoder = "yolox"
strides = [8]
"""


class _MarkerPayload:
    """Create the file `marker` when unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mknod, (str(self._marker),))


class _Plain(torch.nn.Module):
    def forward(self, image: Any) -> Any:
        return image * 2


def write_evil_program(folder: Path, marker: Path) -> Path:
    """Write `evil.pt2` and a valid spec with its digest into the folder. Return the path of the spec."""
    plain, evil = io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(_Plain(), (torch.zeros(1, 3, 16, 32),)), plain)
    torch.save(_MarkerPayload(marker), evil)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(folder / "evil.pt2", "w") as target:
        for entry in source.infolist():
            is_sample = entry.filename.endswith("sample_inputs/model.pt")
            target.writestr(entry.filename, evil.getvalue() if is_sample else source.read(entry))
    digest = hashlib.sha256((folder / "evil.pt2").read_bytes()).hexdigest()
    (folder / "evil.toml").write_text(SPEC.format(digest=digest))
    return folder / "evil.toml"
