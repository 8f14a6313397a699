"""`python -m vidflow.healthcheck`: ends with 0 if the role that writes VIDFLOW_HEALTH_FILE is alive, else with 1 and one line.

For a container's health check. A role is alive if its main loop has turned lately; the api must also answer /health/live. A
server that is away makes no role unhealthy: a restart would not bring it back. Standard library only, to be cheap.
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
"""A loop that waits for a server that does not answer may take this long for a turn."""
REQUEST_TIMEOUT_S: Final = 3.0


def main() -> None:
    """Check the file named by VIDFLOW_HEALTH_FILE. The only argument is the limit in seconds, 30 by default."""
    limit_s = float(sys.argv[1]) if len(sys.argv) > 1 else MAX_LOOP_AGE_S
    name = os.environ.get("VIDFLOW_HEALTH_FILE")
    problem = find_problem(Path(name), limit_s) if name else "VIDFLOW_HEALTH_FILE is not set"
    if problem is not None:
        print(f"unhealthy: {problem}")  # noqa: T201
        sys.exit(1)


def find_problem(path: Path, limit_s: float) -> str | None:
    """Return why the role that writes `path` is not alive, None if it is."""
    try:
        age_s = time.time() - path.stat().st_mtime
        url = path.read_text()
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): the role has not started"
    if age_s > limit_s:
        return f"the role's main loop has not turned for {age_s:.0f} s"
    return _check_url(url) if url else None


def _check_url(url: str) -> str | None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=REQUEST_TIMEOUT_S
    )  # never by a proxy
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
