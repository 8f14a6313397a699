"""Validation of the sources that clients name. The runner checks a source again before it opens it.

Local files must lie under the media root; neither `..` nor a link leads out of it. Other local files, and the sample clips of
the extra `demo`, need --any-file. Cameras that are connected to a runner's machine need --allow-device; this machine may have none.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vidflow.domain.errors import ParameterError, SourceError
from vidflow.domain.redaction import redact
from vidflow.domain.source_schemes import SCHEMES, is_always_live, is_camera_name, lower_scheme
from vidflow.infra import samples
from vidflow.infra.confinement import OutsideFolder, is_written_inside, resolve_inside
from vidflow.settings import ApiOptions

_URL: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def validate_source(source: str, options: ApiOptions) -> str:
    """Return the source to store.

    This is a URL with its scheme in lower case, an allowed device unchanged,
    a file under the media root relative to it, any other file or a sample absolute.
    Raises SourceError with the code source_invalid, source_forbidden, source_missing or source_not_video, or MissingExtra for a
    sample that is not installed.
    """
    if _CONTROL.search(source):
        raise SourceError("The source contains a control character. Give a file or a URL.")
    if _URL.match(source):
        return _validate_url(source)
    if source in options.devices:
        return source
    if is_camera_name(source):
        raise SourceError(
            f"Source {source} is a camera that this server does not allow. The operator can allow it for the api and the runners"
            f" (--allow-device {source}).",
            code="source_forbidden",
        )
    if options.any_file and source.startswith(samples.PREFIX):
        return str(samples.find_sample(source))
    is_absolute, root = Path(source).is_absolute(), options.media_root
    if root is not None and not (options.any_file and is_absolute and not is_written_inside(root, source)):
        return str(_resolve_file(root, source).relative_to(root.resolve()))
    if not options.any_file:
        raise SourceError(
            "This server accepts no local files. Give a URL, or ask the operator to set --media-root.",
            code="source_forbidden",
        )
    if not is_absolute:
        raise SourceError(f"Source {source} is not an absolute path. Begin it with /.", code="source_forbidden")
    return str(_resolve_file(Path("/"), source))


def require_followable(source: str, options: ApiOptions) -> None:
    """Raise ParameterError if the source is no local file, since only such a file can be followed while it grows."""
    if not _is_file(source, options):
        raise ParameterError('Only local files can be followed. Leave out "follow" for a URL or a camera.')


def require_no_file(source: str, options: ApiOptions, parameter: str) -> None:
    """Raise ParameterError if the source is a local file, for a parameter that only a live source can have."""
    if _is_file(source, options):
        raise ParameterError(
            f'parameters.{parameter} applies to live sources only. Use "duration_s" to end a file early.'
        )


def check_live(source: str, options: ApiOptions, *, live: bool | None) -> None:
    """Raise ParameterError if the source cannot be read as live, or not as anything else (None: as the source shows)."""
    if live and _is_file(source, options):
        raise ParameterError('A local file is not live. Leave out "live"; "follow" reads a growing file on.')
    if live is False and (is_always_live(source) or source in options.devices):
        raise ParameterError('This source is always live. Leave out "live".')


def redact_source(source: str) -> str:
    """Return a stored source without secrets: a URL redacted, a path unchanged."""
    return redact(source) if _URL.match(source) else source


def _is_file(source: str, options: ApiOptions) -> bool:
    return not _URL.match(source) and source not in options.devices


def _validate_url(source: str) -> str:
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port  # .port raises ValueError if it is invalid
    except ValueError:  # not chained: its text repeats the supposed port, which may be part of a password
        raise SourceError(
            "The source is not a valid URL. Check its host and port, and write %2F, %3F and %23 for / ? and # in a password."
        ) from None
    if parts.scheme.lower() not in SCHEMES:
        raise SourceError(
            f"Unsupported URL scheme {parts.scheme!r} in the source. Use one of {', '.join(SCHEMES)}.",
            code="source_forbidden",
        )
    if not host or re.search(r"\s", source):
        raise SourceError("The URL of the source has no host, or contains a space. Write %20 for a space.")
    if parts.scheme.lower() == "udp" and port is None:
        raise SourceError("The URL of the source has no port. Write udp://ADDRESS:PORT.")
    if parts.scheme.lower() in {"rtmp", "rtmps"} and not parts.path.strip("/"):
        raise SourceError("The URL of the source names no stream. Write rtmp://HOST/APP/STREAM.")
    return lower_scheme(source)


def _resolve_file(folder: Path, source: str) -> Path:
    """Return the real path of a regular file in the folder that is readable and not empty."""
    try:
        real = resolve_inside(folder, source)
        status = real.stat()
    except OutsideFolder as error:
        raise SourceError(
            f"Source {source} is outside the server's media root. Name a file under it.", code="source_forbidden"
        ) from error
    except PermissionError as error:
        raise SourceError(
            f"The server may not read source {source}. Change the file's permissions.", code="source_forbidden"
        ) from error
    except OSError as error:
        raise SourceError(f"Source {source} not found. Check its name.", code="source_missing") from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(
            f"Source {source} is not a regular file. Name the video file itself; a camera needs --allow-device.",
            code="source_not_video",
        )
    if not os.access(real, os.R_OK):
        raise SourceError(
            f"The server may not read source {source}. Change the file's permissions.", code="source_forbidden"
        )
    if status.st_size == 0:
        raise SourceError(f"Source {source} is empty. Copy it again.", code="source_not_video")
    return real
