"""What a client may name as a source, checked at the door. The runner checks it again before it opens it.

A local path never leads out of the media root, neither by `..` nor by a link, unless every file is allowed; and without a
media root and that permission there are no local files at all.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vidflow.domain.errors import SourceError
from vidflow.infra.telemetry.logs import redact
from vidflow.settings import ApiOptions

SCHEMES: Final = ("http", "https", "rtsp", "rtsps")
_URL: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def validate_source(source: str, options: ApiOptions) -> str:
    """The source as it is to be stored: a URL as it is, a file under the media root relative to it, any other file absolute.

    Raises SourceError: source_invalid, source_forbidden, source_missing or source_not_video.
    """
    if _CONTROL.search(source):
        raise SourceError("source: there is a control character in it; name a file or a URL")
    if _URL.match(source):
        return _validate_url(source)
    if options.media_root is not None and not (options.any_file and _is_outside(source, options.media_root)):
        return str(_resolve_under(options.media_root, source))
    if not options.any_file:
        raise SourceError(
            "source: this server takes no local files; give a URL, or have it started with --media-root",
            code="source_forbidden",
        )
    if not Path(source).is_absolute():
        raise SourceError(f"source: {source} is not an absolute path; begin it with /", code="source_forbidden")
    return str(_resolve_file(Path(source), source))


def redact_source(source: str) -> str:
    """Return a stored source as anyone may see it: a URL without its secrets, a path as it is."""
    return redact(source) if _URL.match(source) else source


def _validate_url(source: str) -> str:
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port  # a port that is none raises here
    except ValueError:  # its text repeats what it took for the port, which may be a part of a password
        raise SourceError(
            "source: this is no URL; check its host and port, and write %2F, %3F and %23 for / ? and # in a password"
        ) from None
    if parts.scheme.lower() not in SCHEMES:
        raise SourceError(
            f"source: a URL begins with one of {', '.join(SCHEMES)}, not with {parts.scheme}", code="source_forbidden"
        )
    if not host or re.search(r"\s", source):
        raise SourceError("source: this URL names no host, or has a space in it; write %20 for a space")
    return source


def _is_outside(source: str, root: Path) -> bool:
    """Whether an absolute path leads somewhere else by its words alone."""
    path = Path(os.path.normpath(source))
    return path.is_absolute() and not (path.is_relative_to(root.absolute()) or path.is_relative_to(root.resolve()))


def _resolve_under(root: Path, source: str) -> Path:
    """The file's path relative to the media root. What lies outside is refused before it is looked at: nobody learns what is there."""
    refused = SourceError(
        f"source: {source} leads out of the server's media root; name a file under it", code="source_forbidden"
    )
    try:
        home = root.resolve(strict=True)
        path = root.absolute() / source
        if _is_outside(str(path), root) or not path.resolve().is_relative_to(home):
            raise refused
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"source: there is no file {source}; check its name", code="source_missing") from error
    return _resolve_file(path, source).relative_to(home)


def _resolve_file(path: Path, source: str) -> Path:
    """The real path of a file that can be read and has something in it."""
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except PermissionError as error:
        raise SourceError(
            f"source: the server may not read {source}; change its rights", code="source_forbidden"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"source: there is no file {source}; check its name", code="source_missing") from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"source: {source} is not a file; name the video itself", code="source_not_video")
    if not os.access(real, os.R_OK):
        raise SourceError(f"source: the server may not read {source}; change its rights", code="source_forbidden")
    if status.st_size == 0:
        raise SourceError(f"source: {source} is empty; copy it again", code="source_not_video")
    return real
