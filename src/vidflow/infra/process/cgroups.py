"""The limits of this process's cgroups, in version 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")


def list_limit_files(controller: str, v1_name: str, v2_name: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the paths of the files with a controller's limit, of this process's cgroups and of their parents. They may not exist.

    In a container the path of a cgroup may be the host's. Then only the top folder exists, which is the container's cgroup.
    """
    membership = proc / "self" / "cgroup"
    if not membership.exists():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = cgroups, v2_name
        elif controller in controllers.split(","):
            top, name = cgroups / controller, v1_name
        else:
            continue
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            yield top / folder / name
