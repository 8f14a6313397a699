"""onnxruntime collects no telemetry: it is imported in one place only, which disables it first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vidflow

SOURCES = Path(vidflow.__file__).parent
OUR_IMPORT = SOURCES / "infra/models/ort.py"
_SWITCHES = {"ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "TF_BUILD", "XDG_CACHE_HOME"}
"""Environment variables that disable telemetry or move its files. The tests remove them, so that only the code decides."""


def test_onnxruntime_is_imported_in_one_place_only() -> None:
    imports = re.compile(r"^\s*(import|from)\s+onnxruntime\b|import_module\(.onnxruntime", re.MULTILINE)
    importers = [path for path in SOURCES.rglob("*.py") if imports.search(path.read_text())]
    assert importers == [OUR_IMPORT]


@pytest.mark.parametrize(
    "module", ["vidflow.infra.models.ort", "vidflow.infra.models.onnx", "vidflow.roles.worker.preload"]
)
def test_importing_onnxruntime_through_ort_writes_nothing_to_the_home_folder(module: str, tmp_path: Path) -> None:
    assert _files_written_by(f"import {module}, onnxruntime", tmp_path) == []


def test_importing_onnxruntime_directly_writes_a_device_id(tmp_path: Path) -> None:
    """Show that the test above can fail with this version of onnxruntime."""
    written = _files_written_by("import onnxruntime; onnxruntime.disable_telemetry_events()", tmp_path)
    if not written:
        pytest.skip("this onnxruntime has no telemetry")
    assert "deviceid" in {path.name for path in written}


def _files_written_by(program: str, home: Path) -> list[Path]:
    """Run Python statements with an empty home folder. Return the files in it afterwards."""
    inherited = {name: value for name, value in os.environ.items() if name not in _SWITCHES}
    subprocess.run([sys.executable, "-c", program], env=inherited | {"HOME": str(home)}, check=True, timeout=60)
    return [path for path in home.rglob("*") if path.is_file()]
