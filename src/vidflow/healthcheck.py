"""Health check for containers: `python -m vidflow.healthcheck`.

It exits with 0 if the role that writes VIDFLOW_HEALTH_FILE is alive, otherwise with 1 and a line that says why. A role is alive
if its main loop ran recently; the api must also answer /health/live. An unavailable server makes no role unhealthy, since a
restart of the role would not help. Only the standard library is imported, to keep the check cheap.
"""

from __future__ import annotations

import http.client
import os
import sys
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

MAX_LOOP_AGE_S: Final = 30.0
"""An iteration that waits for an unresponsive server may take this long."""
REQUEST_TIMEOUT_S: Final = 3.0


def main() -> None:
    """Check the file named by VIDFLOW_HEALTH_FILE. The optional argument is the limit in seconds, 30 by default."""
    limit_s = float(sys.argv[1]) if len(sys.argv) > 1 else MAX_LOOP_AGE_S
    name = os.environ.get("VIDFLOW_HEALTH_FILE")
    problem = find_problem(Path(name), limit_s) if name else "VIDFLOW_HEALTH_FILE is not set"
    if problem is not None:
        print(f"unhealthy: {problem}")  # noqa: T201
        sys.exit(1)


def find_problem(path: Path, limit_s: float) -> str | None:
    """Return why the role that writes `path` is not alive, or None if it is."""
    try:
        age_s = time.time() - path.stat().st_mtime
        url = path.read_text()
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): the role has not started"
    if age_s > limit_s:
        return f"the role's main loop has not run for {age_s:.0f} s"
    return _check_url(url) if url else None


def _check_url(url: str) -> str | None:
    parts = urlsplit(url)
    # http.client ignores proxy settings, unlike urllib.request.
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{url} does not answer ({error})"
    finally:
        connection.close()
    return None if status == http.client.OK else f"{url} answers {status}"


if __name__ == "__main__":
    main()
