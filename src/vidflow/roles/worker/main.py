"""The work of a worker: open the source, load the model, then read, infer and send batch by batch, and send the end marker last.

It ends at the end of the video, when its runner orders it to finish, or with an error. start.py starts and ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Final

from vidflow.domain.detections import InferenceError
from vidflow.domain.device import Device
from vidflow.domain.errors import ParameterError, SourceError, UserError, build_error_info
from vidflow.domain.frame_rate import parse_frame_rate
from vidflow.domain.messages import (
    ClockChanges,
    Deploy,
    EndReason,
    Frame,
    PoisonPolicy,
    SourceLost,
    SourceOpened,
    WorkerWait,
)
from vidflow.domain.redaction import redact
from vidflow.infra.inference.client import RequestStopped
from vidflow.infra.models.model import Model
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.video import FrameGap, KeptFrame, ReadingStopped, Video
from vidflow.infra.video.live import LiveReader
from vidflow.infra.video.source import SourceInfo
from vidflow.roles.worker import infer, read, read_ahead
from vidflow.roles.worker.lanes import MAX_LANES, InferBatch, InferredStep, Lanes, infer_step
from vidflow.roles.worker.link import Link, Task
from vidflow.roles.worker.prepared_pictures import PicturePreparation
from vidflow.roles.worker.read_ahead import ReadAhead
from vidflow.roles.worker.send import DeliveryFailed, ResultSender, ResultTooLarge
from vidflow.roles.worker.step_timer import StepTimer

STOP_CHECK_S: Final = 0.1
"""How often a worker on a live source looks whether it is to finish."""


def process(task: Task, link: Link) -> EndReason:
    """Do the task and return why it ended.

    Everything sent is acknowledged when this returns, or raises an error other than DeliveryFailed.
    """
    results = ResultSender(task.kafka, task.deploy, link)
    try:
        is_live = read.is_live(task.deploy, access=task.sources, interruption=link.finish_order)
        return _process_live(task, link, results) if is_live else _process_file(task, link, results)
    except (ReadingStopped, RequestStopped):
        return _finish(link, results)
    except DeliveryFailed:
        raise
    except Exception:
        failed_wait = link.current_wait  # report the step that failed, not the flush
        results.send_held()
        results.flush()
        link.report_wait(failed_wait)
        raise


def _process_file(task: Task, link: Link, results: ResultSender) -> EndReason:
    """Process a source that has a beginning, to its end."""
    deploy = task.deploy
    if deploy.parameters.end_at is not None or deploy.parameters.give_up_after_s is not None:
        raise ParameterError(
            f"{redact(deploy.source)} is not a live source, so it cannot have the parameters end_at and give_up_after_s. Use "
            '"duration_s" to end a file early.'
        )
    opened = read.open_source(
        deploy, task.media_root, any_file=task.any_file, access=task.sources, interruption=link.finish_order
    )
    with opened as video:
        device = None
        try:
            model = infer.load(task, link)
            device = model.device
        finally:
            results.send(_build_source_opened(deploy, video.source, device))
        return _process_frames(deploy, video, model, link, results)


def _process_live(task: Task, link: Link, results: ResultSender) -> EndReason:
    """Process the newest frames of a live source until its limits' end, or until the runner orders the worker to finish."""
    deploy = task.deploy
    model = infer.load(task, link)
    link.report_wait(WorkerWait.SOURCE)
    timer = StepTimer(link)
    is_opened, reported = False, ""
    with read.open_live(deploy, model.batch, access=task.sources, interruption=link.finish_order) as reader:
        while link.finish_reason is None and not reader.is_over:
            steps = _take_newest(reader, results)
            source = reader.wait_for_source(0.0)
            if source is not None and not is_opened:
                results.send(_build_source_opened(deploy, source, model.device))
                is_opened = True
            if steps and reported:
                link.report_outage(None)
                reported = ""
            elif not steps and (outage := reader.outage) is not None and outage.code != reported:
                reported = outage.code
                lost = SourceLost(deploy.scenario_uuid, deploy.epoch, link.redact(build_error_info(outage)))
                link.report_outage(lost.error)
                results.send(lost)
            for step in read.group_newest(steps):
                if isinstance(step, FrameGap):
                    results.hold_gap(step)
                    continue
                link.report_wait(WorkerWait.INFERENCE)
                done = infer_step(read_ahead.ReadStep(step, 0.0), partial(_infer, deploy, model))
                _send_batch(done, step, deploy, link, results, timer)
                link.report_wait(WorkerWait.SOURCE)
        if link.finish_reason is not EndReason.HANDED_OVER:  # the next worker reports what is missing between the two
            _hold_final_gaps(reader, results)
        results.hold_clock_changes(reader.read_clock_changes())
    timer.report()
    return _finish(link, results)


def _take_newest(reader: LiveReader, results: ResultSender) -> list[KeptFrame | FrameGap]:
    """Return what the reader has, after a short wait. Raises its fatal error; everything missing before it is then held."""
    try:
        return reader.take(STOP_CHECK_S)
    except UserError:
        _hold_final_gaps(reader, results)
        results.hold_clock_changes(reader.read_clock_changes())
        raise


def _hold_final_gaps(reader: LiveReader, results: ResultSender) -> None:
    for gap in reader.end():
        results.hold_gap(gap)


def _process_frames(deploy: Deploy, video: Video, model: Model, link: Link, results: ResultSender) -> EndReason:
    # A retry infers frame by frame past the batches in which the last attempt may have failed. A first attempt infers only its first
    # frame alone, so that a result comes soon.
    singles = model.batch * (MAX_LANES + 1 if model.runs_in_threads else 1) if deploy.attempt else 1
    flush_below = deploy.resume.next_frame + singles if deploy.attempt else 0
    # Nor does a retry read ahead there, so that a failure of the decoder is not taken for one of the model.
    ahead_from = flush_below + read_ahead.MAX_AHEAD_FRAMES + model.batch if deploy.attempt else 0
    is_empty = deploy.resume.next_frame == 0
    timer = StepTimer(link)
    steps = _read_steps(deploy, video, model, singles)
    infer_batch = partial(_infer, deploy, model)
    with (
        ReadAhead(steps, link.finish_order.give) as ahead,
        Lanes(
            ahead, infer_batch, lambda: link.thread_budget.threads, link.finish_order.give, link.report_wait
        ) as lanes,
    ):
        near = _infer_one_by_one(_read_one_by_one(steps, ahead_from), lambda: False, infer_batch, link)
        rest = lanes if model.runs_in_threads else _infer_one_by_one(ahead, ahead.has_step, infer_batch, link)
        for done in chain(near, rest):
            if link.finish_reason is not None:
                break
            timer.add_reading(done.read_s)
            is_empty = False
            if isinstance(done.step, FrameGap):
                results.hold_gap(done.step)
            elif isinstance(done.step, ClockChanges):
                results.hold_clock_changes(done.step)
            else:
                _send_batch(done, done.step, deploy, link, results, timer)
                if done.step.frames[-1].number < flush_below:
                    results.flush()
    if is_empty and link.finish_reason is None:
        raise SourceError(
            f"{video.display_name} contains no decodable frame. Check whether it plays elsewhere, or copy it again.",
            code="no_frames",
        )
    timer.report()
    return _finish(link, results)


def _read_steps(deploy: Deploy, video: Video, model: Model, singles: int) -> Iterator[read_ahead.Step]:
    """Yield all steps of the video, with the pictures prepared for the model."""
    steps = read.read_numbered_frames(video, parse_frame_rate(deploy.fps), deploy, model.warmup_frames)
    limited = read.end_after(steps, deploy.parameters.duration_s)
    return read.prepare_pictures(read.group_into_batches(limited, model.batch, singles=singles), PicturePreparation())


def _read_one_by_one(steps: Iterator[read_ahead.Step], below: int) -> Iterator[read_ahead.ReadStep]:
    """Yield the steps up to a frame number on this thread, none of them ahead."""
    number = -1
    while number + 1 < below:
        try:
            read_step = read_ahead.read_step(steps)
        except ReadingStopped:
            return
        if read_step is None:
            return
        yield read_step
        if isinstance(read_step.step, read.FrameBatch):
            number = read_step.step.frames[-1].number


def _infer_one_by_one(
    steps: Iterator[read_ahead.ReadStep], has_step: Callable[[], bool], infer_batch: InferBatch, link: Link
) -> Iterator[InferredStep]:
    """Yield the steps with their results, inferred on this thread. `has_step`: whether the next one is there already."""
    while True:
        if not has_step():
            link.report_wait(WorkerWait.SOURCE)
        read_step = next(steps, None)
        if read_step is None:
            return
        if isinstance(read_step.step, read.FrameBatch):
            link.report_wait(WorkerWait.INFERENCE)
        yield infer_step(read_step, infer_batch)


def _finish(link: Link, results: ResultSender) -> EndReason:
    """Send the end marker. Return why the worker ends."""
    reason = link.finish_reason or EndReason.FINISHED
    crashpoint("worker.before_end")
    results.send_end(reason)
    results.flush()
    return reason


def _infer(deploy: Deploy, model: Model, batch: read.FrameBatch) -> tuple[Frame, ...]:
    """Return the results of a batch, none for one of a warm-up."""
    if batch.is_warmup:
        infer.warm_up(model, batch)
        return ()
    crashpoint("worker.before_frame")
    return tuple(infer.detect(model, batch, deploy))


def _send_batch(
    done: InferredStep, batch: read.FrameBatch, deploy: Deploy, link: Link, results: ResultSender, timer: StepTimer
) -> None:
    """Send the results of a batch, or raise its error."""
    link.current_frame = batch.frames[0].number if len(batch.frames) == 1 else None
    if done.error is not None:
        raise done.error
    if not batch.is_warmup:
        timer.add_inference(done.inference_s, len(batch.frames))
    for frame in done.frames:
        _send(results, frame, deploy, link)
        link.set_next_frame(frame.frame_number + 1)
        crashpoint("worker.after_frame")
    link.current_frame = None


def _send(results: ResultSender, frame: Frame, deploy: Deploy, link: Link) -> None:
    """Send a frame. One that is too large fails the scenario, or counts as a poisonous frame if the scenario skips those."""
    try:
        results.send(frame)
    except ResultTooLarge as error:
        link.current_frame = frame.frame_number
        if deploy.parameters.on_poison is not PoisonPolicy.SKIP:
            raise
        link.report_wait(WorkerWait.INFERENCE)
        raise InferenceError(error.message, code=error.code) from error


def _build_source_opened(deploy: Deploy, source: SourceInfo, device: Device | None) -> SourceOpened:
    return SourceOpened(
        deploy.scenario_uuid, deploy.epoch, source.width, source.height, source.duration_s,
        source.estimate_kept_frames(parse_frame_rate(deploy.fps), deploy.parameters.duration_s),
        source.codec, source.container, source.live, source.identity, None if device is None else str(device),
    )  # fmt: skip
