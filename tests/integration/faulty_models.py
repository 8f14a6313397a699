"""Models that go wrong at one picture, as another package would offer them: by entry points. Written for tests of the worker.

They know "their" picture by its brightness; see tests/clips.py.
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

BATCH = 4
BAD_FRAME = 6
BRIGHTNESS = 30 + (BAD_FRAME * 37) % 190
NAMES = (
    "poisonous",
    "buggy",
    "mumbling",
    "deadly",
    "hanging",
    "greedy",
    "patient",
    "shouting",
    "babbling",
    "garbling",
    "flooding",
    "verbose",
    "talkative",
    "unloadable",
    "indiscreet",
)
SECRET_IN_ERRORS = "Hunter2xHunter2x"  # noqa: S105
Detections = tuple[Detection, ...]


def _fail() -> None:
    raise InferenceError("this picture is not to my taste")


def _bug() -> None:
    raise ZeroDivisionError("a mistake of the model's author")


def _mumble() -> Detections:
    return (Detection("no\0word", 0.5, (0.0, 0.0, 8.0, 8.0)),)


def _die() -> None:
    ctypes.string_at(0)


def _garble() -> None:
    raise ValueError("a NUL \0, half of a pair \udcff, a bell \x07")


def _flood() -> None:
    while True:
        os.write(2, b"nothing to say " * 4000)


def _see_everything() -> Detections:
    """More than a message holds, and hardly smaller when compressed."""
    numbers = random.Random(7)  # noqa: S311 - the same at every attempt
    sides = [tuple(round(numbers.uniform(0, 30000), 2) for _ in range(4)) for _ in range(20_000)]
    return tuple(Detection("odd", 0.5, (x, y, x + width, y + height)) for x, y, width, height in sides)


def _tell_all() -> None:
    """Says what nobody may know, as libraries do in their errors, and so that the runner cuts its words within a secret."""
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


def _grow() -> None:
    hoard = np.ones(1_500_000_000, np.uint8)
    threading.Event().wait()
    hoard.sum()


class FaultyModel:
    """Sees nothing, and does something odd at each picture that is `BRIGHTNESS`."""

    labels = ("odd",)
    input_size = None
    warmup_frames = 0
    batch = BATCH

    def __init__(self, on_bad_frame: Callable[[], Detections | None], pause_s: float = 0.0) -> None:
        self._at_the_bad_one = on_bad_frame
        self._pause_s = pause_s

    def infer(self, pictures: Sequence[Any]) -> list[Detections]:
        return [self._see(picture) for picture in pictures]

    def _see(self, picture: Any) -> Detections:
        if self._pause_s:
            threading.Event().wait(self._pause_s)  # slow work, not a wait for something
        is_bad = abs(float(picture.image(8, 8).mean()) - BRIGHTNESS) < 3
        return (is_bad and self._at_the_bad_one()) or ()


def inference_error(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_fail)


def model_bug(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_bug)


def invalid_label(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_mumble)


def segfault(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_die)


def endless_inference(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_hang)


def memory_hog(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_grow)


def unprintable_error(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_garble)


def endless_stderr(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_flood)


def oversized_result(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_see_everything)


def large_result(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(lambda: _see_everything()[:500])


def secret_leak(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(_tell_all)


def slow_inference(_bundle: object, _parameters: object) -> FaultyModel:
    return FaultyModel(lambda: None, pause_s=0.02)


def control_characters_on_stderr(_bundle: object, _parameters: object) -> FaultyModel:
    _end_with((b"\x01\x1b" * 31 + b"\x02\n") * 128)


def random_text_on_stderr(_bundle: object, _parameters: object) -> FaultyModel:
    _end_with(base64.encodebytes(os.urandom(6000)))


def _end_with(last_words: bytes) -> NoReturn:
    """Ends the process with these words on standard error, and no other."""
    os.write(2, last_words)
    os._exit(3)


def load_failure(bundle: object, _parameters: object) -> object:
    return bundle.weights  # type: ignore[attr-defined]


def install(folder: Path) -> dict[str, str]:
    """Lays out the package that offers them; returns what a process needs in its environment to find it."""
    home = Path(__file__)
    (folder / "odd_models.py").write_text(home.read_text())
    facts = folder / "odd_models-1.0.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-models\nVersion: 1.0\n")
    lines = [f"{name} = odd_models:{name}" for name in NAMES]
    (facts / "entry_points.txt").write_text("\n".join(["[vidflow.models]", *lines]) + "\n")
    return {"PYTHONPATH": str(folder)}
