"""Models that fail on one frame, for tests of the worker. `install` lays them out as a package with entry points.

They recognise the bad frame of a clip from tests/clips.py by its brightness.
"""

from __future__ import annotations

import base64
import ctypes
import os
import random
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vidflow.domain.detections import Detection, InferenceError
from vidflow.infra.models.decoders.masks import LOGIT, masks_of_tensor
from vidflow.infra.models.masks import render_mask

BATCH = 4
BAD_FRAME = 6
BRIGHTNESS = 30 + (BAD_FRAME * 37) % 190
NAMES = (
    "inference_error",
    "model_bug",
    "invalid_label",
    "segfault",
    "endless_inference",
    "memory_hog",
    "slow_inference",
    "control_characters_on_stderr",
    "random_text_on_stderr",
    "unprintable_error",
    "endless_stderr",
    "oversized_result",
    "oversized_mask",
    "large_result",
    "many_detections",
    "load_failure",
    "secret_leak",
)
"""The models: each is a function below, offered under its own name."""
SECRET_IN_ERRORS = "Hunter2xHunter2x"  # noqa: S105
Detections = tuple[Detection, ...]


def _raise_inference_error() -> None:
    raise InferenceError("inference failed on this picture")


def _raise_zero_division_error() -> None:
    raise ZeroDivisionError("a mistake of the model's author")


def _return_invalid_label() -> Detections:
    return (Detection("no\0word", 0.5, (0.0, 0.0, 8.0, 8.0)),)


def _crash() -> None:
    ctypes.string_at(0)


def _raise_unprintable_error() -> None:
    raise ValueError("a NUL \0, half of a pair \udcff, a bell \x07")


def _write_stderr_endlessly() -> None:
    while True:
        os.write(2, b"endless output " * 4000)


def _return_too_many_detections() -> Detections:
    """More detections than fit in a message, even when compressed."""
    numbers = random.Random(7)  # noqa: S311 - the same in every attempt
    sides = [tuple(round(numbers.uniform(0, 30000), 2) for _ in range(4)) for _ in range(20_000)]
    return tuple(Detection("odd", 0.5, (x, y, x + width, y + height)) for x, y, width, height in sides)


def _return_mask_of_noise() -> Detections:
    """A mask of four million runs, most of them of one or two pixels."""
    noise = np.random.default_rng(7).normal(size=(1, 2160, 3840)).astype(np.float32)
    box = (0.0, 0.0, 3840.0, 2160.0)
    mask = render_mask(masks_of_tensor(noise, (2160, 3840), LOGIT), 0, box, (3840, 2160))
    return (Detection("odd", 0.5, box, mask=mask),)


def _leak_secrets() -> None:
    """Put secrets into stderr and the error, as libraries do, at such a length that the runner's cut falls within a secret."""
    sys.stderr.write(f"opening rtsp://admin:{SECRET_IN_ERRORS}@camera/" + "\n")
    sys.stderr.write(" ".join([SECRET_IN_ERRORS] * 1000) + "\n")
    sys.stderr.write(f"option value: {SECRET_IN_ERRORS}" + "\n")
    raise ValueError(
        f"http://h/?jwt={SECRET_IN_ERRORS} or {SECRET_IN_ERRORS}: "
        + "x" * 400
        + f" rtsp://admin:{SECRET_IN_ERRORS}@camera/"
    )


def _hang() -> None:
    threading.Event().wait()


def _allocate_memory() -> None:
    memory = np.ones(1_500_000_000, np.uint8)
    threading.Event().wait()
    memory.sum()  # keeps the array alive


class FaultyModel:
    """Detects nothing, or `otherwise`, and calls `on_bad_frame` for each picture with the brightness `BRIGHTNESS`."""

    labels = ("odd",)
    input_size = None
    warmup_frames = 0
    batch = BATCH

    def __init__(
        self, on_bad_frame: Callable[[], Detections | None], pause_s: float = 0.0, otherwise: Detections = ()
    ) -> None:
        self._on_bad_frame = on_bad_frame
        self._pause_s = pause_s
        self._otherwise = otherwise

    def infer(self, pictures: Sequence[Any]) -> list[Detections]:
        return [self._infer_one(picture) for picture in pictures]

    def _infer_one(self, picture: Any) -> Detections:
        if self._pause_s:
            threading.Event().wait(self._pause_s)  # simulates slow inference
        is_bad = abs(float(picture.image(8, 8).mean()) - BRIGHTNESS) < 3
        return (is_bad and self._on_bad_frame()) or self._otherwise


def inference_error(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_raise_inference_error)


def model_bug(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_raise_zero_division_error)


def invalid_label(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_return_invalid_label)


def segfault(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_crash)


def endless_inference(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_hang)


def memory_hog(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_allocate_memory)


def unprintable_error(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_raise_unprintable_error)


def endless_stderr(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_write_stderr_endlessly)


def oversized_result(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_return_too_many_detections)


def oversized_mask(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_return_mask_of_noise)


def large_result(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(lambda: _return_too_many_detections()[:500])


def many_detections(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(lambda: None, otherwise=_return_too_many_detections()[:900])


def secret_leak(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_leak_secrets)


def slow_inference(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(lambda: None, pause_s=0.02)


def control_characters_on_stderr(_bundle: object, _parameters: object) -> FaultyModel:
    _exit_with_stderr((b"\x01\x1b" * 31 + b"\x02\n") * 128)


def random_text_on_stderr(_bundle: object, _parameters: object) -> FaultyModel:
    _exit_with_stderr(base64.encodebytes(os.urandom(6000)))


def _exit_with_stderr(output: bytes) -> NoReturn:
    """Write to standard error and exit at once, without any other output."""
    os.write(2, output)
    os._exit(3)


def load_failure(bundle: object, _parameters: object) -> object:
    return bundle.weights  # type: ignore[attr-defined]


def install(folder: Path) -> dict[str, str]:
    """Write the package with the models to the folder. Return the environment variables that let a process find it."""
    (folder / "faulty_models.py").write_text(Path(__file__).read_text())
    metadata = folder / "faulty_models-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-models\nVersion: 1.0\n")
    lines = [f"{name} = faulty_models:{name}" for name in NAMES]
    (metadata / "entry_points.txt").write_text("\n".join(["[vidflow.models]", *lines]) + "\n")
    return {"PYTHONPATH": str(folder)}
