"""Build the bodies of responses from rows, field by field: without secrets, with times in UTC.

A column that a SELECT adds, drops or renames changes no response.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from vidflow import contract
from vidflow.domain import messages
from vidflow.domain.errors import ErrorInfo
from vidflow.domain.frame_rate import frame_rate_to_json, parse_frame_rate
from vidflow.domain.redaction import redact
from vidflow.domain.waiting import WaitingFor, find_waiting_for
from vidflow.domain.warnings import ScenarioWarning, describe_warning
from vidflow.infra.models.registry import ModelListing
from vidflow.infra.postgres.gaps import GapRow
from vidflow.infra.postgres.history import TransitionRow
from vidflow.infra.postgres.results import FrameRow, ResultPage
from vidflow.infra.postgres.scenarios import ScenarioDetails
from vidflow.infra.postgres.system_status import PoolStatus
from vidflow.roles.api.sources import redact_source

_CORRUPT: Final = ',"corrupt":true'
"""A member of a frame's JSON, left out if it is false."""


def build_scenario(details: ScenarioDetails) -> contract.ScenarioResponse:
    """Return a scenario's current state."""
    waiting_for = find_waiting_for(
        details.state, due=details.due, components=details.components, source_lost=details.source_error is not None
    )
    return contract.ScenarioResponse(
        scenario_uuid=details.scenario_uuid,
        owner=details.owner,
        source=redact_source(details.source),
        model=details.model,
        fps=frame_rate_to_json(parse_frame_rate(details.fps)),
        priority=details.priority,
        parameters=_build_parameters(details.parameters),
        state=details.state,
        outcome=details.outcome,
        error=None if details.error is None else _build_error(details.error),
        epoch=details.epoch,
        attempt=details.attempt,
        runner=details.runner,
        pool=details.pool,
        resume_frame=details.resume_frame,
        frames_stored=details.frames_stored,
        frames_expected=details.frames_expected,
        device=details.device,
        waiting_for=waiting_for,
        source_error=_build_error(details.source_error)
        if details.source_error is not None and waiting_for is WaitingFor.SOURCE
        else None,
        created_at=_utc(details.created_at),
        state_changed_at=_utc(details.state_changed_at),
        skips=tuple(contract.Skip(skip.after_pts, skip.frames) for skip in details.skips),
        warnings=tuple(_build_warning(warning) for warning in details.warnings),
    )


def _build_warning(warning: ScenarioWarning) -> contract.ScenarioWarning:
    return contract.ScenarioWarning(
        code=warning.code,
        message=describe_warning(warning),
        count=warning.count,
        first_frame=warning.first_frame,
        first_s=warning.first_s,
        last_frame=warning.last_frame,
        last_s=warning.last_s,
    )


def _build_parameters(parameters: messages.Parameters) -> contract.Parameters:
    return contract.Parameters(
        score_threshold=parameters.score_threshold,
        labels=parameters.labels,
        on_poison=parameters.on_poison,
        on_corrupt=parameters.on_corrupt,
        follow=parameters.follow,
        follow_s=parameters.follow_s,
        duration_s=parameters.duration_s,
        end_at=None if parameters.end_at is None else _utc(parameters.end_at),
        give_up_after_s=parameters.give_up_after_s,
        stream=parameters.stream,
        live=parameters.live,
    )


def _build_error(error: ErrorInfo) -> contract.ErrorInfo:
    return contract.ErrorInfo(code=error.code, message=redact(error.message), frame_number=error.frame_number)


def build_transition(row: TransitionRow) -> contract.Transition:
    """Return a transition of a scenario's history."""
    return contract.Transition(
        number=row.number,
        from_state=row.from_state,
        to_state=row.to_state,
        reason_code=row.reason_code,
        reason=row.reason,
        epoch=row.epoch,
        attempt=row.attempt,
        runner=row.runner,
        detail=redact(row.detail) if row.detail else None,
        at=_utc(row.at),
    )


def build_gap(row: GapRow) -> contract.StoredGap:
    """Return a gap in a scenario's results."""
    return contract.StoredGap(
        after_frame=row.after_frame,
        from_s=row.from_s,
        to_s=row.to_s,
        frames=row.frames,
        reason=row.reason,
        epoch=row.epoch,
    )


def build_prediction_page(page: ResultPage) -> contract.RawPredictionPage:
    """Return a page of results. The detections of a frame are copied as they are stored, without decoding."""
    return contract.RawPredictionPage(
        items=[
            msgspec.Raw(
                f'{{"frame_number":{frame.frame_number},"epoch":{frame.epoch},"time_s":{frame.time_s!r},"width":{frame.width},'
                f'"height":{frame.height},"detections":{frame.detections}{_CORRUPT if frame.corrupt else ""}'
                f"{_format_capture(frame) if frame.captured_at else ''}}}".encode()
            )
            for frame in page.frames
        ],
        next=None if page.complete else str(page.last_frame),
        complete=page.complete,
    )


def _format_capture(frame: FrameRow) -> str:
    """Return the members of a frame's JSON that only frames of live sources have."""
    return f',"captured_at":"{frame.captured_at}","captured_by":"{frame.captured_by}"'


def build_pool_health(status: PoolStatus) -> contract.PoolHealth:
    """Return the state of a pool of runners."""
    return contract.PoolHealth(
        pool=status.pool, runners=status.runners, slots=status.slots, used=status.used, waiting=status.waiting
    )


def build_model_info(model: ModelListing) -> contract.ModelInfo:
    """Return a registered model."""
    return contract.ModelInfo(name=model.name, kind=model.kind, needs=model.needs, error=model.error)


def _utc(time: datetime.datetime) -> datetime.datetime:
    return time.astimezone(datetime.UTC)
