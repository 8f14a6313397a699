"""The commands `vidflow models`: list and show. They read the models' files and load no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from vidflow.commands.run.model import locate_model
from vidflow.domain.escaping import escape_unprintable
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle

NAME_CHARACTERS: Final = 40


def describe_models(models_dir: Path | None) -> Iterator[str]:
    """Yield a line for each model of this machine: its name, its kind, and whether it can be used."""
    for listed in registry.list_models(models_dir):
        state = listed.error or _describe_needs(listed.needs)
        yield escape_unprintable(f"{listed.name:<{NAME_CHARACTERS}}  {listed.kind:<11}  {state}".rstrip())


def describe_model(model: str, models_dir: Path | None) -> Iterator[str]:
    """Yield the lines that describe a model, given by its name or path. Raises ModelError."""
    bundle = registry.resolve(locate_model(model), models_dir, any_onnx=True)
    for name, value in _properties(bundle).items():
        if value is not None:
            yield escape_unprintable(f"{name:<12}  {value}")


def _properties(bundle: Bundle) -> dict[str, str | None]:
    """Return what there is to say about a model, by name. None: the model has no such property."""
    spec = bundle.spec
    return {
        "name": bundle.name,
        "kind": bundle.kind,
        "task": spec.task,
        "needs": _describe_needs(bundle.needs) or None,
        "recognised": bundle.recognition.family if bundle.recognition is not None else None,
        "license": spec.license,
        "spec": str(bundle.path) if bundle.path else None,
        "file": f"{bundle.weights_path}, sha256 {bundle.weights_sha256}" if bundle.weights_path else None,
        "sha256": bundle.sha256 and f"{bundle.sha256} (of the spec, the labels and the file together)",
        "labels": f"{len(bundle.labels)}: {', '.join(bundle.labels)}" if bundle.labels else "known once it is loaded",
        "architecture": spec.architecture,
        "weights": spec.weights,
        "input": _describe_section(spec.input),
        "output": _describe_section(spec.output),
        "thresholds": _describe_section(spec.thresholds),
        "options": _describe_section(spec.options or None),
    }


def _describe_section(section: object) -> str | None:
    """Return the entries of a section of a spec that have a value, defaults included."""
    if section is None:
        return None
    values = msgspec.to_builtins(section)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _describe_needs(extra: str | None) -> str:
    if extra is None:
        return ""
    missing = registry.missing_libraries(extra)
    return f"extra {extra}, not installed: {', '.join(missing)}" if missing else f"extra {extra}, installed"
