"""The command `vidflow bench`: check the request, measure, and print the report."""

from __future__ import annotations

import sys

from vidflow.commands.bench.measure import measure
from vidflow.commands.bench.protocol import BenchTask
from vidflow.commands.bench.report import build_report, format_json, format_text
from vidflow.commands.run.model import locate_model
from vidflow.commands.run.source import is_camera_path, resolve_video
from vidflow.domain.errors import SourceError
from vidflow.domain.frame_rate import parse_frame_rate
from vidflow.domain.redaction import redact
from vidflow.infra.models import registry
from vidflow.infra.process.pipes import discard_output
from vidflow.infra.process.stopping import exit_on_signals
from vidflow.infra.telemetry.logs import safe_line
from vidflow.settings import BenchOptions


def run(options: BenchOptions) -> None:
    """Measure how many streams this machine can carry, and print it.

    Raises UserError for an invalid source, model or rate, MissingExtra for what is not installed, VidflowError if a process dies.
    """
    parse_frame_rate(options.fps)
    task = BenchTask(
        _resolve_source(options.source),
        locate_model(options.model),
        options.fps,
        options.models_dir,
        device=options.device,
    )
    registry.require_extra(registry.resolve(task.model, options.models_dir, any_onnx=True))
    exit_on_signals()
    figures = measure(task, options.seconds, _print_progress)
    report = build_report(options.source, options.model, options.fps, figures)
    lines = [format_json(report)] if options.output == "json" else format_text(report)
    try:
        print("\n".join(lines), flush=True)  # noqa: T201 - the output of the command
    except BrokenPipeError:
        discard_output(sys.stdout)


def _resolve_source(source: str) -> str:
    """Return the path of a file or sample. Anything else has a speed of its own."""
    if "://" in source or is_camera_path(source):
        raise SourceError(
            f"{redact(source)[:200]} is not the path of a file. A network or a camera has a speed of its own: record a clip of it, and"
            " give the path of the clip.",
            code="source_not_video",
        )
    return resolve_video(source)


def _print_progress(line: str) -> None:
    print(safe_line(line), file=sys.stderr, flush=True)  # noqa: T201
