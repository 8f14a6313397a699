"""What a worker does: open the source, load the model, then read, infer and send batch by batch; the end marker comes last.

It ends by itself: at the end of the video, when its runner orders it to finish, or by an error. How its process begins and
ends stands in start.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from vidflow.domain.detections import InferenceError
from vidflow.domain.errors import SourceError
from vidflow.domain.frame_rate import parse_frame_rate
from vidflow.domain.messages import Deploy, End, EndReason, Frame, Gap, PoisonPolicy, SourceOpened, WorkerWait
from vidflow.domain.sampling import estimate_frame_count
from vidflow.infra.models.model import Model
from vidflow.infra.process.crashpoint import crashpoint
from vidflow.infra.video import Video
from vidflow.roles.worker import infer, read
from vidflow.roles.worker.link import Link, Task
from vidflow.roles.worker.send import DeliveryFailed, ResultSender, ResultTooLarge
from vidflow.roles.worker.step_timer import StepTimer

T = TypeVar("T")


def process(task: Task, link: Link) -> EndReason:
    """Does the task; returns why it ended. All that it sent is acknowledged then, also where it raises an error."""
    deploy = task.deploy
    results = ResultSender(task.kafka, deploy.scenario_uuid, link)
    with read.open_source(deploy, task.media_root, any_file=task.any_file) as video:
        try:
            try:
                model = infer.load(deploy, task.models_dir, any_onnx=task.any_onnx)
            finally:
                results.send(_build_source_opened(deploy, video))
            return _process_frames(deploy, video, model, link, results)
        except DeliveryFailed:
            raise
        except Exception:
            at = link.current_wait  # what it fell at, for the runner; not the flush
            results.flush()
            link.report_wait(at)
            raise


def _process_frames(deploy: Deploy, video: Video, model: Model, link: Link, results: ResultSender) -> EndReason:
    found = read.read_numbered_frames(video, parse_frame_rate(deploy.fps), deploy, model.warmup_frames)
    # After a loss frame by frame until it is past where the last attempt may have fallen; at first one, to be soon there.
    alone = model.batch if deploy.attempt else 1
    careful_until = deploy.resume.next_frame + alone if deploy.attempt else 0
    last = deploy.resume.next_frame - 1
    anything = last >= 0
    link.report_wait(WorkerWait.SOURCE)
    measuring = StepTimer(link)
    for step in measuring.time_decoding(
        read.group_into_batches(_take_until_finish(found, link), model.batch, singles=alone)
    ):
        anything = True
        if isinstance(step, Gap):
            results.send(step)
            continue
        link.report_wait(WorkerWait.INFERENCE)
        if step.is_warmup:
            infer.warm_up(model, step)
        else:
            last = _infer_and_send(deploy, step, model, link, results, measuring)
            if last < careful_until:
                results.flush()
        link.report_wait(WorkerWait.SOURCE)
    if not anything and link.finish_reason is None:
        raise SourceError(
            f"{video.display_name} gives not one frame; see whether it plays elsewhere, or copy it again",
            code="no_frames",
        )
    measuring.report()
    reason = link.finish_reason or EndReason.FINISHED
    crashpoint("worker.before_end")
    results.send(End(deploy.scenario_uuid, deploy.epoch, last, reason))
    results.flush()
    return reason


def _infer_and_send(
    deploy: Deploy, batch: read.FrameBatch, model: Model, link: Link, results: ResultSender, measuring: StepTimer
) -> int:
    """Returns the number of the batch's last frame."""
    crashpoint("worker.before_frame")
    link.current_frame = batch.frames[0].number if len(batch.frames) == 1 else None
    with measuring.time_inference(len(batch.frames)):
        seen = list(infer.detect(model, batch, deploy))
    for frame in seen:
        _send(results, frame, deploy, link)
        link.set_next_frame(frame.frame_number + 1)
        crashpoint("worker.after_frame")
    link.current_frame = None
    return batch.frames[-1].number


def _send(results: ResultSender, frame: Frame, deploy: Deploy, link: Link) -> None:
    """Send a frame. One that is too large fails its scenario at once, or is a poisonous frame where those are to be skipped."""
    try:
        results.send(frame)
    except ResultTooLarge as error:
        link.current_frame = frame.frame_number
        if deploy.parameters.on_poison is not PoisonPolicy.SKIP:
            raise
        link.report_wait(WorkerWait.INFERENCE)
        raise InferenceError(error.message, code=error.code) from error


def _take_until_finish(found: Iterator[T], link: Link) -> Iterator[T]:
    """The steps until the runner orders to finish; what has been read before is still done."""
    while link.finish_reason is None:
        step = next(found, None)
        if step is None:
            return
        yield step


def _build_source_opened(deploy: Deploy, video: Video) -> SourceOpened:
    source = video.source
    return SourceOpened(
        deploy.scenario_uuid, deploy.epoch, source.width, source.height, source.duration_s,
        estimate_frame_count(source.duration_s, source.frames_expected, parse_frame_rate(deploy.fps)),
        source.codec, source.container, source.live, source.identity,
    )  # fmt: skip
