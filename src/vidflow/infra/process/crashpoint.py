"""Named places in the code where a fault test kills the process, as kill -9 does. An unarmed place costs one comparison."""

from __future__ import annotations

import os
import signal

_armed: dict[str, int] = {}


def arm(places: str) -> None:
    """Arm places: "relay.after_publish", or "relay.after_publish:3" to kill at the third pass. Separate them by commas."""
    for place in filter(None, places.split(",")):
        name, _, passes = place.partition(":")
        _armed[name] = int(passes or 1)


def disarm(prefix: str) -> str:
    """Disarm the places whose names start with `prefix`. Return them in the format of `arm`, for another process."""
    places = {name: passes for name, passes in _armed.items() if name.startswith(prefix)}
    for name in places:
        del _armed[name]
    return ",".join(f"{name}:{passes}" for name, passes in places.items())


def crashpoint(name: str) -> None:
    """Kill the process with SIGKILL if this place is armed and its last pass is reached."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
