"""Named places at which a fault test kills the process as kill -9 would. Without a test they cost one comparison.

Armed by `arm("relay.after_publish")` or `arm("relay.after_publish:3")` (the third time it is reached).
"""

from __future__ import annotations

import os
import signal

_armed: dict[str, int] = {}


def arm(places: str) -> None:
    """Arms places, comma-separated, each with the number of passes after which it kills (default 1)."""
    for place in filter(None, places.split(",")):
        name, _, passes = place.partition(":")
        _armed[name] = int(passes or 1)


def disarm(prefix: str) -> str:
    """Disarms the places whose names begin so and returns them, to be armed in another process."""
    places = {name: passes for name, passes in _armed.items() if name.startswith(prefix)}
    for name in places:
        del _armed[name]
    return ",".join(f"{name}:{passes}" for name, passes in places.items())


def crashpoint(name: str) -> None:
    """A place where the process may be killed."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
