"""The first step of a worker: from a source to numbered frames, in the batches in which a model is given them.

Which decoded frames are kept is told by infra/video; here those that are passed over as poisonous are taken out, the frames
that warm a model up are put before the others, and numbers are given.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

import msgspec

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import Deploy, Gap, GapReason, ResumePoint
from vidflow.domain.redaction import redact
from vidflow.infra import video as videos
from vidflow.infra.video import KeptFrame, Video, open_video
from vidflow.infra.video.warmup import read_warmup_frames

MAX_BATCH_WAIT_S: Final = 0.25
"""A batch is given to the model at the latest so long after its first frame: results come soon, even where frames are rare."""
_URL: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_NETWORK: Final = re.compile(r"^(https?|rtsps?)://", re.IGNORECASE)


class NumberedFrame(msgspec.Struct, frozen=True):
    """A kept frame under its own number, which counts no frame that was passed over."""

    number: int
    frame: KeptFrame


class FrameBatch(msgspec.Struct, frozen=True):
    """Frames that the model is given at once, in order. Those of a warm-up are only shown to it."""

    frames: tuple[NumberedFrame, ...]
    is_warmup: bool = False


def open_source(deploy: Deploy, media_root: Path | None, *, any_file: bool) -> Video:
    """Opens the source, where this runner may: see `resolve_source`. Raises SourceError, or Unavailable where a retry may mend it."""
    return open_video(
        resolve_source(deploy.source, media_root, any_file=any_file), expected_identity=deploy.resume.identity
    )


def resolve_source(source: str, media_root: Path | None, *, any_file: bool) -> str:
    """The source as it may be opened: a URL of a server or camera as it is, a path inside `media_root`, or any with `any_file`.

    Checked here anew, links followed: a command may come from anywhere, and a file may have become a link since.
    Raises SourceError (source_forbidden, source_missing).
    """
    if _NETWORK.match(source):
        return source
    if _URL.match(source) or "\0" in source:
        raise SourceError(
            f"{redact(source)[:200]!r} is no kind of source: give a path or an http(s) or rtsp(s) URL",
            code="source_forbidden",
        )
    if media_root is not None:
        path = _resolve_in_media_root(media_root, source)
        if path is not None:
            return str(path)
    if any_file and Path(source).is_absolute():
        return source
    raise SourceError(
        f"{redact(source)[:200]} is not a file that this runner may read: it lies outside the media root; put it there "
        "(VIDFLOW_MEDIA_ROOT)",
        code="source_forbidden",
    )


def _resolve_in_media_root(media_root: Path, source: str) -> Path | None:
    """The file inside the media root with its links followed, None where it leads out."""
    try:
        root = media_root.resolve(strict=True)
        path = (root / source).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        if Path(source).is_absolute() or ".." in Path(source).parts:
            return None  # what is outside is not told apart from what is not there
        raise SourceError(
            f"there is no file {redact(source)[:200]} in the media root of this runner; see that it has the same files as the api",
            code="source_missing",
        ) from error
    return path if path.is_relative_to(root) else None


def read_numbered_frames(
    video: Video, rate: Fraction | None, deploy: Deploy, warmup_frames: int
) -> Iterator[FrameBatch | NumberedFrame | Gap]:
    """What a deployment has before it, in order: a warm-up, then frames from the resume's number on, and gaps.

    A gap is told behind the number that the scenario gave last. `warm_up`: how many frames before the resume the model is
    shown first, so that its results equal those of a run that was never broken off.
    """
    resume, wanted = deploy.resume, min(warmup_frames, deploy.resume.next_frame)
    passed = sum(skip.frames for skip in deploy.skips if skip.after_pts != resume.last_pts) if resume.next_frame else 0
    if not wanted or video.source.live:
        yield from _read_from_resume(video, rate, deploy, passed)
        return
    before = None if passed else read_warmup_frames(video, rate, resume, wanted)
    video.restart()
    if before is None:
        yield from _read_from_start(video, rate, deploy, wanted)
        return
    yield _build_warmup_batch(NumberedFrame(frame.frame_number, frame) for frame in before)
    yield from _read_from_resume(video, rate, deploy, passed)


def _read_from_resume(
    video: Video, rate: Fraction | None, deploy: Deploy, passed: int
) -> Iterator[NumberedFrame | Gap]:
    """`passed`: kept frames before the resume point that have no number."""
    resume = msgspec.structs.replace(deploy.resume, next_frame=deploy.resume.next_frame + passed)
    return _assign_numbers(videos.read_kept_frames(video, rate, resume), deploy, passed)


def _read_from_start(
    video: Video, rate: Fraction | None, deploy: Deploy, warmup_frames: int
) -> Iterator[FrameBatch | NumberedFrame | Gap]:
    """By decoding everything anew: slow, and right for every source."""
    whole = msgspec.structs.replace(deploy, resume=ResumePoint(identity=deploy.resume.identity))
    first, shown = deploy.resume.next_frame, deque[NumberedFrame](maxlen=warmup_frames)
    gaps: list[Gap] = []
    for step in _assign_numbers(videos.read_kept_frames(video, rate, whole.resume), whole, 0):
        number = step.after_frame + 1 if isinstance(step, Gap) else step.number
        if shown and number >= first:
            if isinstance(step, Gap):
                gaps.append(step)
                continue
            yield _build_warmup_batch(shown)
            shown.clear()
            yield from gaps
            gaps.clear()
        if number >= first:
            yield step
        elif isinstance(step, NumberedFrame):
            shown.append(step)
    yield from gaps


def _build_warmup_batch(frames: Iterable[NumberedFrame]) -> FrameBatch:
    return FrameBatch(tuple(frames), is_warmup=True)


def _assign_numbers(
    kept: Iterable[KeptFrame | videos.FrameGap], deploy: Deploy, passed: int
) -> Iterator[NumberedFrame | Gap]:
    """Frames and gaps under the scenario's own numbers: the kept frames behind a skip's pts are passed over, and told as a gap."""
    skips = {skip.after_pts: skip.frames for skip in deploy.skips}
    last_pts, last_number = deploy.resume.last_pts, deploy.resume.next_frame - 1
    over = skips.pop(last_pts, 0)
    skipped: list[KeptFrame] = []
    for step in kept:
        if isinstance(step, videos.FrameGap):
            yield Gap(deploy.scenario_uuid, deploy.epoch, last_number, step.from_s, step.to_s, step.reason, step.frames)
            continue
        if over:
            skipped.append(step)
            over, passed = over - 1, passed + 1
            if not over:
                yield _build_skip_gap(deploy, last_number, skipped)
                skipped = []
            continue
        last_pts, last_number = step.pts, step.frame_number - passed
        yield NumberedFrame(last_number, step)
        over = skips.pop(last_pts, 0)
    if skipped:
        yield _build_skip_gap(deploy, last_number, skipped)


def _build_skip_gap(deploy: Deploy, after: int, frames: list[KeptFrame]) -> Gap:
    times = frames[0].time_s, frames[-1].time_s
    return Gap(deploy.scenario_uuid, deploy.epoch, after, *times, GapReason.SKIPPED, len(frames))


def group_into_batches(
    found: Iterable[FrameBatch | NumberedFrame | Gap], size: int, singles: int
) -> Iterator[FrameBatch | Gap]:
    """The steps with their frames gathered into batches of `size`, the first `singles` frames one by one.

    A batch closes early at a gap, which stands behind its frames, and when its first frame has waited long enough.
    """
    held: list[NumberedFrame] = []
    since_s = 0.0
    for step in found:
        if not isinstance(step, NumberedFrame):
            if held:
                yield FrameBatch(tuple(held))
                held = []
            yield step
            continue
        since_s = since_s if held else time.monotonic()
        held.append(step)
        if singles > 0 or len(held) >= size or time.monotonic() - since_s > MAX_BATCH_WAIT_S:
            yield FrameBatch(tuple(held))
            held, singles = [], singles - 1
    if held:
        yield FrameBatch(tuple(held))
