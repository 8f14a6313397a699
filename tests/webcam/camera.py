"""The simulated camera of driver.c: build the driver, plug the camera in and out, and let it misbehave."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Literal

import pytest

from vidflow.domain.source_access import SourceAccess

DRIVER: Final = Path(__file__).with_name("driver.c")
WIDTH, HEIGHT, FPS = 160, 120, 25
Mode = Literal["", "busy", "damaged", "denied", "metadata", "silent", "untimed"]


@dataclass(frozen=True, slots=True)
class Webcam:
    """A camera in the folder of its library. `jpeg`: the picture that it sends if it is one for MJPEG."""

    folder: Path
    jpeg: Path | None = None

    @property
    def path(self) -> str:
        """The device's node."""
        return str(self.folder / "video0")

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that has the camera."""
        jpeg = {} if self.jpeg is None else {"SIMULATED_WEBCAM_JPEG": str(self.jpeg)}
        return {"LD_PRELOAD": str(self.folder / "driver.so"), "SIMULATED_WEBCAM": self.path, **jpeg}

    @property
    def access(self) -> SourceAccess:
        """What lets a worker open the camera."""
        return SourceAccess(devices=(self.path,))

    def plug_in(self) -> None:
        Path(self.path).touch()

    def unplug(self) -> None:
        Path(self.path).unlink(missing_ok=True)

    def set_mode(self, mode: Mode) -> None:
        """Let the camera be usual (""), or misbehave."""
        Path(f"{self.path}.mode").write_text(mode)


def build_webcam(folder: Path) -> Webcam:
    """Compile the driver into the folder, or skip the test where that is not possible."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for the simulated camera")
    command = [compiler, "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-o", str(folder / "driver.so"), str(DRIVER)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True, capture_output=True, text=True)
    webcam = Webcam(folder)
    webcam.set_mode("")
    return webcam


@contextmanager
def process_with(webcam: Webcam) -> Iterator[ProcessPoolExecutor]:
    """Run functions in a new process that has the camera."""
    with _variables(webcam.variables), ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(os.getpid).result()
        yield process


@contextmanager
def _variables(variables: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield
