"""Commands for models."""

from __future__ import annotations

import typer

from vidflow.cli.options import ModelArgument, ModelsDir

models = typer.Typer(help="List the models of this machine and show what they are.")


@models.command("list")
def list_models(models_dir: ModelsDir = None) -> None:
    """List the models. Each has its kind, the extra that it needs, and the error if it cannot be used."""
    from vidflow.commands.models import describe_models  # noqa: PLC0415

    for line in describe_models(models_dir):
        typer.echo(line)


@models.command("show")
def show_model(name: ModelArgument, models_dir: ModelsDir = None) -> None:
    """Show a model. Lists its files with their digests, its license, labels, input, output and thresholds."""
    from vidflow.commands.models import describe_model  # noqa: PLC0415

    for line in describe_model(name, models_dir):
        typer.echo(line)
