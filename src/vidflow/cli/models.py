"""Commands for models."""

from __future__ import annotations

import typer

from vidflow.cli.options import CheckedImage, DeviceName, LabelsFile, ModelArgument, ModelsDir, WriteSpec
from vidflow.domain.device import parse_device

models = typer.Typer(help="List, show and check the models of this machine.")


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


@models.command("check")
def check_model(
    name: ModelArgument, image: CheckedImage = None, labels_file: LabelsFile = None, write_spec: WriteSpec = False,
    models_dir: ModelsDir = None, device: DeviceName = "auto",
) -> None:  # fmt: skip
    """Check an ONNX model. Shows how it is recognised and why, what it finds in a picture, and its speed."""
    from vidflow.commands.check import CheckOptions, check_model  # noqa: PLC0415

    for line in check_model(CheckOptions(name, image, labels_file, write_spec, models_dir, parse_device(device))):
        typer.echo(line)
