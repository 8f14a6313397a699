"""The model `motion` at the pace of a camera, offered by another package's entry point: time for a fault, without a busy processor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vidflow.domain.detections import Detection
from vidflow.domain.messages import Parameters
from vidflow.infra.models.detector import build_filter
from vidflow.infra.models.model import Picture
from vidflow.infra.models.motion import LABEL, MotionModel
from vidflow.infra.models.spec import Bundle, Thresholds

NAME: Final = "slow_motion"
PAUSE_S: Final = 0.02
"""For each frame."""


class SlowMotion(MotionModel):
    """As stateful as `motion`: a run that resumed without its warm-up would see something else."""

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        threading.Event().wait(PAUSE_S * len(pictures))
        return super().infer(pictures)


def load(_bundle: Bundle | None, parameters: Parameters) -> SlowMotion:
    return SlowMotion(build_filter(Thresholds(), (LABEL,), parameters.score_threshold, parameters.labels))


def install(folder: Path) -> Path:
    """Lays out the package that offers it; returns the folder for PYTHONPATH."""
    (folder / f"{NAME}.py").write_text(Path(__file__).read_text())
    facts = folder / f"{NAME}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-motion\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[vidflow.models]\n{NAME} = {NAME}:load\n")
    return folder
