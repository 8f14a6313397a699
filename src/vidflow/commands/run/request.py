"""What `vidflow run` asks the api for, checked as far as it can be before anything is started. It asks nobody."""

from __future__ import annotations

from typing import Any

import msgspec

from vidflow.commands.run.source import local_path, resolve_video
from vidflow.domain.errors import ParameterError
from vidflow.domain.frame_rate import FRAME_RATE_FORMS, frame_rate_to_json, parse_frame_rate
from vidflow.domain.messages import Parameters
from vidflow.infra.models import registry
from vidflow.settings import RunOptions


def build_body(options: RunOptions) -> dict[str, Any]:
    """The body of the request. Raises UserError for a file, a frame rate or a parameter that cannot be, MissingExtra for a sample."""
    return {
        "source": resolve_video(options.video),
        "model": _model(options.model),
        "fps": _fps(options.fps),
        "parameters": msgspec.to_builtins(_parameters(options)),
    }


def check_model(options: RunOptions) -> None:
    """For a vidflow of our own, which has the same models and libraries as this process.

    Raises ModelError, ParameterError, or MissingExtra with the command to type.
    """
    model = registry.resolve(_model(options.model), options.models_dir, any_onnx=True)
    registry.check_parameters(model, _parameters(options))
    registry.require_extra(model)


def _model(model: str) -> str:
    """A spec's or model's path in full, as the server needs it, whose working directory is another; a name as it is."""
    path = local_path(model)
    return str(path.resolve()) if path.is_file() and (path.suffix or "/" in model) else model


def _fps(fps: str) -> float | str:
    try:
        return frame_rate_to_json(parse_frame_rate(fps))
    except ParameterError as error:
        raise ParameterError(f"--fps is {FRAME_RATE_FORMS}, not {fps[:80]}") from error


def _parameters(options: RunOptions) -> Parameters:
    given = {"score_threshold": options.score_threshold, "labels": options.labels}
    try:
        return msgspec.convert(given, Parameters)
    except msgspec.ValidationError as error:
        raise ParameterError(f"--score is a number from 0 to 1, --labels a list of names: {error}") from error
