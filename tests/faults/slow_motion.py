"""The model `motion` slowed down to the pace of a camera, as another package's entry point: time for a fault, at little CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vidflow.domain.detections import Detection
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.detector import build_filter
from vidflow.infra.models.model import Picture
from vidflow.infra.models.motion import LABEL, MotionModel
from vidflow.infra.models.spec import Thresholds

NAME: Final = "slow_motion"
PAUSE_S: Final = 0.02
"""Pause per frame."""


class SlowMotion(MotionModel):
    """Stateful like `motion`: a run that resumes without warm-up gives other detections."""

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        threading.Event().wait(PAUSE_S * len(pictures))
        return super().infer(pictures)


def load(_bundle: Bundle | None, parameters: Parameters) -> SlowMotion:
    return SlowMotion(build_filter(Thresholds(), (LABEL,), parameters.score_threshold, parameters.labels))


def install(folder: Path) -> Path:
    """Write a package that provides the model into the folder. Return the folder, for PYTHONPATH."""
    (folder / f"{NAME}.py").write_text(Path(__file__).read_text())
    metadata = folder / f"{NAME}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-motion\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[vidflow.models]\n{NAME} = {NAME}:load\n")
    return folder
