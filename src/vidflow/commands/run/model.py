"""The models that a command line names."""

from __future__ import annotations

from vidflow.commands.run.source import local_path


def locate_model(model: str) -> str:
    """Return the absolute path of a spec or model file, since the server's working directory differs, or a name unchanged.

    A file that is a link keeps its name, which says what it is.
    """
    path = local_path(model)
    return str(path.parent.resolve() / path.name) if path.is_file() and (path.suffix or "/" in model) else model
