"""The VIDEO argument of `vidflow run`: a file, a URL, a camera of this machine, or a sample from an installed package."""

from __future__ import annotations

from pathlib import Path

from vidflow.domain.errors import SourceError
from vidflow.domain.source_schemes import is_camera_name
from vidflow.infra.camera_devices import is_camera
from vidflow.infra.samples import PREFIX, find_sample, format_sample_names


def resolve_video(video: str) -> str:
    """Return the source to request.

    Raises SourceError if the file is missing or the sample unknown, MissingExtra if the samples are not installed.
    """
    if video.startswith(PREFIX):
        return str(find_sample(video))
    if "://" in video or is_camera_path(video):
        return video
    path = local_path(video).resolve()
    if not path.is_file():
        raise SourceError(
            f"{video} is not a file. Give a video file, a URL, a camera or one of {format_sample_names()}.",
            code="source_missing",
        )
    return str(path)


def is_camera_path(video: str) -> bool:
    """Return whether this is the absolute path of a camera, or the name of one that is not plugged in."""
    try:
        return video.startswith("/") and is_camera(Path(video).stat())
    except (OSError, ValueError):
        return is_camera_name(video)


def local_path(typed: str) -> Path:
    """Return a typed path, with `~` expanded if that home directory exists."""
    try:
        return Path(typed).expanduser()
    except RuntimeError:
        return Path(typed)
