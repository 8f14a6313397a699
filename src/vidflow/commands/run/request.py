"""The request of `vidflow run`, validated as far as possible before anything is started."""

from __future__ import annotations

import msgspec

from vidflow.commands.run.model import locate_model
from vidflow.commands.run.source import resolve_video
from vidflow.contract import InitScenario, Parameters
from vidflow.domain.errors import ParameterError
from vidflow.domain.frame_rate import FRAME_RATE_FORMS, frame_rate_to_json, parse_frame_rate
from vidflow.infra.models import registry
from vidflow.settings import RunOptions


def build_request(options: RunOptions) -> InitScenario:
    """Return the request.

    Raises UserError for an invalid file, frame rate or parameter, MissingExtra for a sample that is not installed.
    """
    return InitScenario(
        source=resolve_video(options.video),
        model=locate_model(options.model),
        fps=_fps(options.fps),
        parameters=_parameters(options),
    )


def check_model(options: RunOptions) -> None:
    """Check the model for a vidflow that this command starts, which has the same models and libraries as this process.

    Raises ModelError, ParameterError, or MissingExtra with the command that installs it.
    """
    model = registry.resolve(locate_model(options.model), options.models_dir, any_onnx=True)
    registry.check_labels(model, _parameters(options).labels or ())
    registry.require_extra(model)


def check_labels_file(options: RunOptions) -> None:
    """Raise ParameterError if the vidflow that runs the model could not read a spec that is written for this run."""
    if options.labels_file is not None and (options.url or options.models_dir is not None):
        raise ParameterError(
            "--labels-file is only for a run without --url and --models-dir. Write a spec with vidflow models check "
            f"{options.model[:200]} --labels-file {options.labels_file[:200]} --write-spec, put it beside the file, and name it."
        )


def _fps(fps: str) -> float | str:
    try:
        return frame_rate_to_json(parse_frame_rate(fps))
    except ParameterError as error:
        raise ParameterError(f"Invalid --fps {fps[:80]!r}. Use {FRAME_RATE_FORMS}.") from error


def _parameters(options: RunOptions) -> Parameters:
    values = {"score_threshold": options.score_threshold, "labels": options.labels}
    try:
        return msgspec.convert(values, Parameters)
    except msgspec.ValidationError as error:
        raise ParameterError(
            f"Invalid --score or --labels: {error}. --score is a number from 0 to 1, --labels are names separated by commas."
        ) from error
