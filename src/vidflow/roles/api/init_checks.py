"""The checks of a new scenario that its types do not make: source, model, labels, frame rate and what excludes each other.

All faults are found, also of a body in which other fields have the wrong type.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

import msgspec
from litestar.plugins.problem_details import ProblemDetailsException

from vidflow.contract import FieldProblem, InitScenario, Parameters
from vidflow.domain.detections import find_label_fault
from vidflow.domain.errors import ModelError, ParameterError, SetupError, UserError, VidflowError
from vidflow.domain.frame_rate import FRAME_RATE_FORMS, parse_frame_rate
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle
from vidflow.roles.api import sources
from vidflow.roles.api.faults import fault, faults_problem
from vidflow.settings import ApiOptions


class CheckedScenario(msgspec.Struct, frozen=True):
    """What is stored of a request: the source as `validate_source` returns it, the model's digest, the rate (None: all frames)."""

    source: str
    model_sha256: str | None
    fps: Fraction | None


def check_request(request: InitScenario, options: ApiOptions) -> CheckedScenario:
    """Return what to store. Raises a 422 problem that lists all faults, SetupError if this server lacks a part."""
    checks = _Checks(options)
    checked = checks.check(request.source, request.model, request.fps, request.parameters)
    if checked is None:
        raise build_problem(checks.faults, options)
    return checked


def find_faults(values: Mapping[str, Any], options: ApiOptions) -> list[FieldProblem]:
    """Return the faults of those fields of a request that have the right type. Nothing is stored of it."""
    checks = _Checks(options)
    with suppress(VidflowError):  # a fault of the server, which the corrected request will meet
        checks.check(
            values.get("source"), values.get("model"), values.get("fps"), values.get("parameters", Parameters())
        )
    return checks.faults


def build_problem(faults: Sequence[FieldProblem], options: ApiOptions) -> ProblemDetailsException:
    """Return the problem of a request with these faults. It lists the registered models if an unknown one is named."""
    is_unknown = any(one.code == ModelError.default_code for one in faults)
    return faults_problem(422, "request_invalid", faults, registry.list_names(options.models_dir) if is_unknown else ())


class _Checks:
    """The checks of one request, and the faults that they find."""

    def __init__(self, options: ApiOptions) -> None:
        self.faults: list[FieldProblem] = []
        self._options = options

    def check(
        self, source: str | None, model: str | None, fps: float | str | None, parameters: Parameters
    ) -> CheckedScenario | None:
        """Check everything, and return what to store if there is no fault. None for what has the wrong type."""
        stored_source = None
        with self._collect("source"):
            stored_source = None if source is None else sources.validate_source(source, self._options)
        self._check_parameters(source, parameters)
        bundle = None if model is None else self._check_model(model, parameters)
        rate = self._check_fps(fps)
        if self.faults or stored_source is None or bundle is None:
            return None
        return CheckedScenario(stored_source, bundle.sha256, rate)

    def _check_parameters(self, source: str | None, parameters: Parameters) -> None:
        """Check the labels, and what not every source can have."""
        for number, label in enumerate(parameters.labels or ()):
            if (reason := find_label_fault(label)) is not None:
                message = f"Label {label!r} in parameters.labels {reason}. Use labels that the model has."
                self.faults.append(fault(f"parameters.labels[{number}]", message, ParameterError.default_code))
        if parameters.end_at is not None and parameters.end_at <= datetime.datetime.now(datetime.UTC):
            message = f"parameters.end_at {parameters.end_at.isoformat()} has passed. Give a time in the future."
            self.faults.append(fault("parameters.end_at", message, ParameterError.default_code))
        if source is None:
            return
        if parameters.follow:
            with self._collect("parameters.follow"):
                sources.require_followable(source, self._options)
        for name in ("end_at", "give_up_after_s"):
            if getattr(parameters, name) is not None:
                with self._collect(f"parameters.{name}"):
                    sources.require_no_file(source, self._options, name)
        if parameters.live is not None:
            with self._collect("parameters.live"):
                sources.check_live(source, self._options, live=parameters.live)

    def _check_model(self, model: str, parameters: Parameters) -> Bundle | None:
        """Return the model, checked for the requested labels as far as possible without loading it."""
        with self._collect("model"):
            bundle = registry.resolve(model, self._options.models_dir, any_onnx=self._options.any_onnx)
            with self._collect("parameters.labels"):
                registry.check_labels(bundle, parameters.labels or ())
            return bundle
        return None

    def _check_fps(self, fps: float | str | None) -> Fraction | None:
        if fps is None:
            return parse_default_fps(self._options)
        try:
            return parse_frame_rate(fps)
        except ParameterError as error:
            self.faults.append(fault("fps", error.message))
        return None

    @contextmanager
    def _collect(self, field: str) -> Iterator[None]:
        """Turn an error of the request in the block into a fault of this field."""
        try:
            yield
        except UserError as error:
            self.faults.append(fault(field, error.message, error.code))


def parse_default_fps(options: ApiOptions) -> Fraction | None:
    """Return the frame rate of scenarios that specify none. Raises SetupError if the setting is not a frame rate."""
    try:
        return parse_frame_rate(options.video_fps)
    except ParameterError as error:
        raise SetupError(
            f"Invalid VIDEO_FPS (--video-fps) {options.video_fps[:80]!r}. Use {FRAME_RATE_FORMS}."
        ) from error
