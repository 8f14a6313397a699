"""The command `vidflow models check`: report how an ONNX model is recognised, run it on a picture, and measure its speed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import msgspec

from vidflow.commands.run.labelled_model import recognise_with_labels, temporary_spec, write_spec
from vidflow.commands.run.model import locate_model
from vidflow.commands.run.source import local_path, resolve_video
from vidflow.domain.detections import Detection
from vidflow.domain.device import AUTO, Device
from vidflow.domain.errors import ParameterError
from vidflow.domain.escaping import escape_unprintable
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.onnx_metadata import Graph, read_graph
from vidflow.infra.models.recognition import Recognition, describe_reason, describe_tensors, find_picture
from vidflow.infra.models.spec import ONNX
from vidflow.infra.samples import PREFIX

NAME_CHARACTERS: Final = 18
MAX_SHOWN_LABELS: Final = 10
MIN_SCALE_OF_BYTES: Final = 0.1
"""Pixels of type uint8 that are scaled by less become 0 to 25: hardly any model is meant so."""


class CheckOptions(msgspec.Struct, frozen=True):
    """Options of `vidflow models check`. `image`: a picture or video to run on (None: a generated picture)."""

    model: str
    image: str | None = None
    labels_file: str | None = None
    write_spec: bool = False
    models_dir: Path | None = None
    device: Device = AUTO


def check_model(options: CheckOptions) -> Iterator[str]:
    """Yield the lines of the report. Raises ModelError, SourceError, InferenceError, ParameterError or SetupError."""
    given = None if options.labels_file is None else recognise_with_labels(options.model, options.labels_file)
    with nullcontext(options.model) if given is None else temporary_spec(options.model, given) as name:
        models_dir = options.models_dir if given is None else None
        bundle = registry.resolve(locate_model(name), models_dir, any_onnx=True, keep_weights=True)
        registry.require_extra(bundle)
        yield from map(escape_unprintable, _report(options, bundle, given or bundle.recognition))


def _report(options: CheckOptions, bundle: Bundle, recognition: Recognition | None) -> Iterator[str]:
    if bundle.kind != ONNX:
        raise ParameterError(
            f"Model {options.model[:200]!r} is of kind {bundle.kind!r}; only ONNX models can be checked. To see what it is: "
            f"vidflow models show {options.model[:200]}"
        )
    graph = read_graph(io.BytesIO(bundle.require_weights()), Path(bundle.origin))
    yield f"{options.model}: {recognition.family if recognition is not None else 'has a spec'}"
    yield _line("inputs", describe_tensors(graph.inputs))
    yield _line("outputs", describe_tensors(graph.outputs))
    yield from _describe_choices(recognition) if recognition is not None else _describe_spec(bundle)
    yield from _find_warnings(bundle, graph)
    yield from _run(options, bundle)
    if options.write_spec:
        yield from _write_spec(options, bundle, recognition)
    from vidflow.commands.check.pictures import generate_picture  # noqa: PLC0415 - needs an extra that has been checked
    from vidflow.commands.check.speed import describe_speeds  # noqa: PLC0415

    for speed in describe_speeds(bundle, generate_picture(), options.device):
        yield _line("speed", speed)


def _line(name: str, text: str) -> str:
    return f"{name:<{NAME_CHARACTERS}}  {text}"


def _describe_choices(recognition: Recognition) -> Iterator[str]:
    for choice in recognition.choices:
        is_list = choice.key == "labels" and not isinstance(choice.value, str)
        value = _describe_labels(recognition.spec.labels) if is_list else str(choice.value)
        yield _line(choice.key, f"{value} ({describe_reason(choice)})")


def _describe_spec(bundle: Bundle) -> Iterator[str]:
    yield _line("labels", _describe_labels(bundle.labels))
    for name, section in zip(("input", "output"), bundle.spec.tensor_specs(), strict=True):
        for key, value in msgspec.to_builtins(section).items():
            if value is not None:
                yield _line(f"{name}.{key}", str(value))


def _describe_labels(labels: Sequence[str] | str | None) -> str:
    shown = ", ".join((labels or ())[:MAX_SHOWN_LABELS])
    return f"{len(labels or ())}: {shown}{', ...' if len(labels or ()) > MAX_SHOWN_LABELS else ''}"


def _find_warnings(bundle: Bundle, graph: Graph) -> Iterator[str]:
    picture = find_picture(graph)
    inputs, _ = bundle.spec.tensor_specs()
    scale = inputs.normalisation().scale
    if picture is not None and picture.dtype == "uint8" and scale < MIN_SCALE_OF_BYTES:
        yield _line(
            "warning",
            f"the input is uint8, and the spec multiplies pixels by {scale:.4g}, so that nearly all become 0. Set normalise = "
            "'none' in [input].",
        )


def _run(options: CheckOptions, bundle: Bundle) -> Iterator[str]:
    """Run the model on one picture, list what it finds, and draw it if the picture is the user's."""
    from vidflow.commands.check.drawing import draw_detections  # noqa: PLC0415
    from vidflow.commands.check.pictures import generate_picture, read_picture, write_png  # noqa: PLC0415

    path = None if options.image is None else resolve_video(options.image)
    picture = generate_picture() if path is None else read_picture(path)
    model = registry.load(bundle, device=options.device)
    [found] = model.infer([picture])
    yield _line("device", str(model.device))
    yield _line(
        "frame", f"{options.image or 'generated'}, {picture.width} x {picture.height}; detections: {len(found)}"
    )
    if path is None or options.image is None:
        return
    for number, detection in enumerate(found, 1):
        yield _line(str(number), _describe_detection(detection))
    folder = Path.cwd() if options.image.startswith(PREFIX) else Path(path).parent
    target = folder / f"{Path(path).stem}.detections.png"
    write_png(target, draw_detections(picture, found))
    yield _line("picture", f"{target}, with the numbers above")


def _describe_detection(detection: Detection) -> str:
    box = ", ".join(f"{value:.0f}" for value in detection.box)
    return f"{detection.label} {detection.score:.2f} ({box})"


def _write_spec(options: CheckOptions, bundle: Bundle, recognition: Recognition | None) -> Iterator[str]:
    if recognition is None:
        raise ParameterError(f"{options.model[:200]} has a spec, which --write-spec does not replace. Edit it instead.")
    path = local_path(options.model)
    for written in write_spec(path.with_suffix(".toml"), recognition, path.name, bundle.weights_sha256):
        yield _line("written", str(written))
