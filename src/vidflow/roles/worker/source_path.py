"""Decide whether this runner may open a source, by its name. Imports none of the heavy libraries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from vidflow.domain.errors import SourceError
from vidflow.domain.redaction import redact
from vidflow.domain.source_schemes import SCHEMES, find_scheme, is_camera_name
from vidflow.infra.confinement import OutsideFolder, resolve_inside

_URL: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def resolve_source(source: str, media_root: Path | None, *, any_file: bool) -> str:
    """Return the source to open: a URL with one of SCHEMES, a path inside `media_root`, or with `any_file` any absolute path.

    Repeats the check of the api with links resolved: commands in Kafka may come from anywhere, and a file may have been replaced
    by a link since. Raises SourceError (source_forbidden, source_missing).
    """
    if find_scheme(source) in SCHEMES:
        return source
    if is_camera_name(source):
        raise build_camera_refusal(source)
    if _URL.match(source) or "\0" in source:
        raise SourceError(
            f"Unsupported source {redact(source)[:200]!r}. Use a path, or a URL with one of {', '.join(SCHEMES)}.",
            code="source_forbidden",
        )
    if media_root is not None:
        try:
            return str(resolve_inside(media_root, source))
        except OutsideFolder:
            pass  # allowed only with `any_file`
        except OSError as error:
            raise SourceError(
                f"Source {redact(source)[:200]} not found in this runner's media root. Check that the runner has the same files as"
                " the api.",
                code="source_missing",
            ) from error
    if any_file and Path(source).is_absolute():
        return source
    raise SourceError(
        f"Source {redact(source)[:200]} is outside this runner's media root (VIDFLOW_MEDIA_ROOT). Move the file there.",
        code="source_forbidden",
    )


def build_camera_refusal(source: str) -> SourceError:
    """Return the error to raise for a camera that the operator has not named."""
    return SourceError(
        f"{redact(source)[:200]} is not a camera that this runner allows. Start it with --allow-device, or choose a pool whose runners"
        " have the camera.",
        code="source_forbidden",
    )
