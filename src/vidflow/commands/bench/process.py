"""A measuring process of `vidflow bench`. It reads and infers with the functions of a worker, and sends nothing to Kafka."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count, cycle, islice
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import msgspec

from vidflow import VERSIONS
from vidflow.commands.bench.protocol import BenchMessage, BenchOrder, BenchStep, BenchTask, Failure, Measurement, Ready
from vidflow.domain.device import DeviceKind
from vidflow.domain.errors import (
    ErrorInfo,
    MissingExtra,
    SourceError,
    VidflowError,
    build_error_info,
    build_internal_error,
    format_install_hint,
    is_bug,
    sanitize_text,
)
from vidflow.domain.frame_rate import parse_frame_rate
from vidflow.domain.messages import Deploy, encode
from vidflow.domain.sandbox import plan_permissions
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.models import registry
from vidflow.infra.process.installation import find_installation
from vidflow.infra.process.memory import prefer_as_oom_victim, resident_bytes
from vidflow.infra.process.parent import die_with_parent
from vidflow.infra.process.sandbox import confine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidflow.infra.models.model import ChannelOrder, Model, Picture, ResamplingFilter
    from vidflow.infra.video import Video
    from vidflow.infra.video.source import SourceInfo
    from vidflow.roles.worker.read import FrameBatch

PICTURES_BYTES: Final = 256 * 1024**2
MAX_PICTURES: Final = 16
"""Pictures that are kept for the inference alone, and a limit of their size, for large ones."""


def run_process(task: BenchTask, messages: Connection, orders: Connection) -> None:
    """Load the model, report that it is ready, and do the orders until the other end of the pipe is closed."""
    os.dup2(2, 1)  # a model that prints must not do so among the figures
    die_with_parent()
    prefer_as_oom_victim()
    received: SimpleQueue[BenchOrder] = SimpleQueue()
    try:
        _confine(task, messages, orders)
        threading.Thread(target=_listen, args=(orders, received), name="orders", daemon=True).start()
        bench = _load(task)
        _send(messages, bench.describe())
        while True:
            _send(messages, bench.measure(received.get()))
    except VidflowError as error:
        _send(messages, Failure(build_error_info(error)))
    except Exception as error:  # noqa: BLE001 - reported with its traceback
        traceback.print_exc()
        if is_bug(error):
            info = build_error_info(build_internal_error(error, VERSIONS, "the traceback above"))
        else:
            info = ErrorInfo(
                "worker_failed", sanitize_text(f"{type(error).__name__}: {error} (see the traceback above)")
            )
        _send(messages, Failure(info))


def _confine(task: BenchTask, *pipes: Connection) -> None:
    """Give up the rights that a worker gives up too, so that they cost the same here. Raises OSError."""
    use = registry.find_use(task.model, task.models_dir, any_onnx=True)
    registry.import_libraries(use)
    permissions = plan_permissions(
        find_installation(),
        files=[task.source, *map(str, use.files)],
        models_dir=str(task.models_dir) if task.models_dir else None,
        network=use.fetches_weights,
        weights=use.fetches_weights,
        plugin=use.is_plugin,
        gpu=task.device.kind is not DeviceKind.CPU,
    )
    confine(permissions, [pipe.fileno() for pipe in pipes])


def _listen(orders: Connection, received: SimpleQueue[BenchOrder]) -> None:
    """Pass on the orders. End this process with its parent, also in the middle of a measurement."""
    while True:
        try:
            received.put(msgspec.json.decode(orders.recv_bytes(), type=BenchOrder))
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGKILL)


def _send(messages: Connection, message: BenchMessage) -> None:
    messages.send_bytes(msgspec.json.encode(message))


def _load(task: BenchTask) -> _Bench:
    try:
        return _Bench(task)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"The module {error.name} is missing. {format_install_hint('runner')}.") from error


def _end_video(video_s: float) -> tuple[int, float]:
    return 0, video_s


class _Conversion:
    """The time spent in converting pictures, by all threads together."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self.spent_s += seconds


class _TimedPicture:
    """A Picture that adds up the time of its conversions."""

    def __init__(self, picture: Picture, conversion: _Conversion) -> None:
        self.width, self.height = picture.width, picture.height
        self._picture, self._conversion = picture, conversion

    def image(
        self,
        width: int | None = None,
        height: int | None = None,
        order: ChannelOrder = "rgb",
        resample: ResamplingFilter = "bilinear",
    ) -> NDArray[np.uint8]:
        began_s = time.perf_counter()
        pixels = self._picture.image(width, height, order, resample)
        self._conversion.add(time.perf_counter() - began_s)
        return pixels


class _Bench:
    """A model and a source."""

    def __init__(self, task: BenchTask) -> None:
        from vidflow.roles.worker import infer, read  # noqa: PLC0415 - heavy; the forkserver has usually imported it

        self._read, self._infer = read, infer
        self._deploy = Deploy(
            scenario_uuid=str(uuid.UUID(int=0)), epoch=0, source=task.source, model=task.model, fps=task.fps
        )
        self._conversion = _Conversion()
        with self._open() as video:
            self._source: SourceInfo = video.source
        bundle = registry.resolve(task.model, task.models_dir, any_onnx=True, keep_weights=True)
        self._model: Model = registry.load(bundle, device=task.device)
        self._threads = task.threads if self._model.runs_in_threads else 1
        self._pictures = self._take_pictures()
        self._model.infer(self._pictures[: self._model.batch])

    def describe(self) -> Ready:
        """Return the properties of the source, and what the model runs on."""
        source = self._source
        rate = None if source.average_rate is None else float(source.average_rate)
        device = self._model.device
        return Ready(source.width, source.height, source.codec, rate, None if device is None else str(device))

    def measure(self, order: BenchOrder) -> Measurement:
        """Do the step for so long, and until there is a second frame. The first batch only sets the start.

        The frames after it are then as many as the intervals between them.
        """
        steps = self._steps(order.step)
        next(steps)
        self._conversion.spent_s = 0.0
        cpu_began_s, began_s = time.process_time(), time.perf_counter()
        frames, video_s, is_enough = 0, 0.0, order.step is BenchStep.INFERENCE
        for more_frames, more_video_s in steps:
            frames, video_s = frames + more_frames, video_s + more_video_s
            is_enough = is_enough or video_s > 0 or more_frames == 0
            if is_enough and time.perf_counter() - began_s >= order.seconds:
                break
        return Measurement(
            frames,
            video_s,
            time.perf_counter() - began_s,
            time.process_time() - cpu_began_s,
            self._conversion.spent_s,
            resident_bytes(os.getpid()),
        )

    def _steps(self, step: BenchStep) -> Iterator[tuple[int, float]]:
        """Yield, without an end, the frames and the seconds of video of each batch. At the end of the video, there are no frames."""
        match step:
            case BenchStep.DECODING:
                return self._read_forever(infers=False)
            case BenchStep.WORK:
                return self._read_forever(infers=True)
            case BenchStep.INFERENCE:
                return self._infer_forever()

    def _infer_forever(self) -> Iterator[tuple[int, float]]:
        pictures = cycle(self._pictures)

        def infer_next(batch: list[_TimedPicture]) -> tuple[int, float]:
            self._model.infer(batch)
            return len(batch), 0.0

        return self._in_threads(
            partial(
                infer_next,
                [_TimedPicture(picture, self._conversion) for picture in islice(pictures, self._model.batch)],
            )
            for _ in count()
        )

    def _read_forever(self, *, infers: bool) -> Iterator[tuple[int, float]]:
        """Read the source again and again: all frames, or those that are kept, which are then inferred."""
        return self._in_threads(self._list_work(infers=infers))

    def _in_threads(self, calls: Iterator[Callable[[], tuple[int, float]]]) -> Iterator[tuple[int, float]]:
        """Yield the results of the calls in order, with as many under way as the model may use threads."""
        with ThreadPoolExecutor(self._threads) as pool:
            pending = deque(pool.submit(call) for call in islice(calls, self._threads))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(call) for call in islice(calls, 1))
                yield result

    def _work(self, batch: FrameBatch, video_s: float, *, infers: bool) -> tuple[int, float]:
        if infers:
            for message in self._infer.detect(self._model, batch, self._deploy):
                encode(message)
        return len(batch.frames), video_s

    def _list_work(self, *, infers: bool) -> Iterator[Callable[[], tuple[int, float]]]:
        deploy = self._deploy if infers else msgspec.structs.replace(self._deploy, fps="all")
        rate = parse_frame_rate(deploy.fps) or self._source.average_rate
        while True:
            with self._open() as video:
                read_until_s = 0.0
                for batch in self._batches(video, deploy, self._model.batch if infers else 1):
                    last_s = max(read_until_s, batch.frames[-1].frame.time_s)
                    yield partial(self._work, batch, last_s - read_until_s, infers=infers)
                    read_until_s = last_s
            # The frames after the last kept one. Their end is not known from a header that may be wrong.
            end_s = min(self._source.duration_s or 0.0, read_until_s + (float(1 / rate) if rate else 0.0))
            yield partial(_end_video, max(0.0, end_s - read_until_s))

    def _batches(self, video: Video, deploy: Deploy, size: int) -> Iterator[FrameBatch]:
        steps = self._read.read_numbered_frames(video, parse_frame_rate(deploy.fps), deploy, 0)
        for step in self._read.group_into_batches(steps, size, singles=0):
            if isinstance(step, self._read.FrameBatch):
                yield step

    def _take_pictures(self) -> list[Picture]:
        source = self._source
        count = max(self._model.batch, min(MAX_PICTURES, PICTURES_BYTES // (source.width * source.height * 3)))
        with self._open() as video:
            batches = self._batches(video, self._deploy, 1)
            pictures: list[Picture] = [batch.frames[0].frame for batch in islice(batches, count)]
        if not pictures:
            raise SourceError(
                f"{self._deploy.source} has no frames that can be decoded. Check whether it plays elsewhere.",
                code="no_frames",
            )
        return pictures

    @contextmanager
    def _open(self) -> Iterator[Video]:
        with self._read.open_source(
            self._deploy, None, any_file=True, access=SourceAccess(), interruption=threading.Event()
        ) as video:
            video.decode_all()
            yield video
