"""The VIDEO argument of `vidflow run`: a file, a URL, or a sample from an installed package."""

from __future__ import annotations

from pathlib import Path

from vidflow.domain.errors import SourceError
from vidflow.infra.samples import PREFIX, find_sample, format_sample_names


def resolve_video(video: str) -> str:
    """Return the source to request.

    Raises SourceError if the file is missing or the sample unknown, MissingExtra if the samples are not installed.
    """
    if video.startswith(PREFIX):
        return str(find_sample(video))
    if "://" in video:
        return video
    path = local_path(video).resolve()
    if not path.is_file():
        raise SourceError(
            f"{video} is not a file. Give a video file, a URL or one of {format_sample_names()}.", code="source_missing"
        )
    return str(path)


def local_path(typed: str) -> Path:
    """Return a typed path, with `~` expanded if that home directory exists."""
    try:
        return Path(typed).expanduser()
    except RuntimeError:
        return Path(typed)
