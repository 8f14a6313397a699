"""Shell completion of values that depend on this machine."""

from __future__ import annotations

from pathlib import Path

import typer


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the models that start with `incomplete`, including those in the models folder."""
    from vidflow.infra.models.registry import list_models  # noqa: PLC0415 - only completion needs it

    models_dir = context.params.get("models_dir")
    names = [listed.name for listed in list_models(Path(models_dir) if models_dir else None)]
    return [name for name in names if name.startswith(incomplete)]
