"""Deliberate bugs in vidflow, for tests. The file name of a scenario's source selects its bug.

`install` writes a sitecustomize module, which every Python process with that folder in its PYTHONPATH imports at startup.
"""

from __future__ import annotations

from pathlib import Path

BUG_FRAME = 6
AT_OPEN, AT_READ, AT_FRAME = "bug-at-open", "bug-at-read", "bug-at-frame"
CRASH_AT_READ = "crash-at-read"

_SITECUSTOMIZE = f"""
import os
import signal
import sys

if "vidflow" in " ".join(sys.orig_argv) or "forkserver" in " ".join(sys.orig_argv):
    import av
    from vidflow.infra.video import frames
    from vidflow.roles.worker import infer

    real_open, real_detect, real_events = av.open, infer.detect, frames.Video.events

    def open(file, *arguments, **options):
        if {AT_OPEN!r} in str(file):
            raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
        return real_open(file, *arguments, **options)

    def detect(model, batch, deploy):
        if {AT_FRAME!r} in deploy.source and any(frame.number == {BUG_FRAME} for frame in batch.frames):
            raise AttributeError("'Frame' object has no attribute 'colour'")
        return real_detect(model, batch, deploy)

    def events(video):
        for number, event in enumerate(real_events(video)):
            if {AT_READ!r} in video.display_name and number == {BUG_FRAME}:
                raise IndexError("list index out of range")
            if {CRASH_AT_READ!r} in video.display_name and number == {BUG_FRAME}:
                os.kill(os.getpid(), signal.SIGSEGV)  # as a decoder would on a damaged picture
            yield event

    av.open, infer.detect, frames.Video.events = open, detect, events
"""


def install(folder: Path) -> dict[str, str]:
    """Write the bugs to the folder. Return the environment variables that give them to a process."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return {"PYTHONPATH": str(folder)}
