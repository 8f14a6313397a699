"""A vidflow with bugs of its own, for tests: a scenario meets the bug that its source's file name asks for.

`install` writes a sitecustomize module, which every Python with that folder in its PYTHONPATH imports at its start.
"""

from __future__ import annotations

from pathlib import Path

BUG_FRAME = 6
AT_OPEN, AT_READ, AT_FRAME = "bug-at-open", "bug-at-read", "bug-at-frame"

_SITECUSTOMIZE = f"""
import sys

if "vidflow" in " ".join(sys.orig_argv) or "forkserver" in " ".join(sys.orig_argv):
    import av
    from vidflow.infra.video import frames
    from vidflow.roles.worker import infer

    opens, sees, iterate = av.open, infer.detect, frames.Video.events

    def open(file, *arguments, **options):
        if {AT_OPEN!r} in str(file):
            raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
        return opens(file, *arguments, **options)

    def see(model, batch, deploy):
        if {AT_FRAME!r} in deploy.source and any(one.number == {BUG_FRAME} for one in batch.frames):
            raise AttributeError("'Frame' object has no attribute 'colour'")
        return sees(model, batch, deploy)

    def events(video):
        for number, event in enumerate(iterate(video)):
            if {AT_READ!r} in video.display_name and number == {BUG_FRAME}:
                raise IndexError("list index out of range")
            yield event

    av.open, infer.detect, frames.Video.events = open, see, events
"""


def install(folder: Path) -> dict[str, str]:
    """Write the bugs; return what a process needs in its environment to have them."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return {"PYTHONPATH": str(folder)}
