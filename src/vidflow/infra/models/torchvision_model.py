"""The Model around a torchvision detector, which runs in this process or in an inference process. It needs no torch itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidflow.domain.detections import Detection
from vidflow.domain.messages import Parameters
from vidflow.infra.models.bundle import Bundle
from vidflow.infra.models.decoders import Candidates
from vidflow.infra.models.decoders.activations import sigmoid
from vidflow.infra.models.decoders.lists import decode_masks
from vidflow.infra.models.detector import Network, build_filter, infer_in_batches, to_detections
from vidflow.infra.models.model import Picture, Size

BATCH: Final = 4
"""On a CPU this is a fifth faster than single pictures. Larger batches gain nothing."""


class TorchvisionModel:
    """The Model for a torchvision detector."""

    warmup_frames = 0
    batch = BATCH

    def __init__(self, network: Network, bundle: Bundle, parameters: Parameters) -> None:
        """Raises ParameterError for a label that the model does not have."""
        assert network.sizes is not None  # as of all detectors of torchvision
        self.labels = network.labels or bundle.labels
        self.device = network.device
        self.runs_in_threads = network.runs_in_threads
        self._network = network
        self._sizes = network.sizes
        self._filter = build_filter(bundle.spec.thresholds, self.labels, parameters.score_threshold, parameters.labels)

    @property
    def input_size(self) -> Size | None:
        """(width, height) of a detector with a fixed size, None if the detector keeps the picture's aspect ratio."""
        return self._sizes.fixed

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return the detections of each picture."""
        return infer_in_batches(self._infer_batch, pictures, self.batch)

    def _infer_batch(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        by_size = groupby(pictures, lambda picture: self._sizes.fit((picture.width, picture.height)))
        return [found for size, group in by_size for found in self._infer_same_size(list(group), size)]

    def _infer_same_size(self, pictures: Sequence[Picture], size: Size) -> list[tuple[Detection, ...]]:
        # Scaling while decoding is far cheaper than the net's own.
        outputs = self._network.run(np.stack([picture.image(*size) for picture in pictures]))
        names = self._network.output_names
        return [
            self._to_detections(dict(zip(names, outputs[start : start + len(names)], strict=True)), size, picture)
            for start, picture in zip(range(0, len(outputs), len(names)), pictures, strict=True)
        ]

    def _to_detections(self, values: dict[str, NDArray[Any]], size: Size, picture: Picture) -> tuple[Detection, ...]:
        width, height = size
        keypoints, masks = None, None
        if "masks" in values:
            masks = decode_masks(values["masks"][:, 0], values["boxes"], (height, width))
        if "keypoints" in values:
            scores = sigmoid(values["keypoints_scores"])[..., None]
            keypoints = np.concatenate([values["keypoints"][..., :2], scores], axis=-1)
        above = (
            values["scores"] > self._filter.score
        )  # the net may have a lower threshold, as several scenarios share it
        candidates = Candidates(values["boxes"], values["scores"], values["labels"], keypoints, masks=masks).take(above)
        scale = np.array([picture.width / width, picture.height / height] * 2, dtype=np.float32)
        mapped = candidates.map(lambda coordinates: coordinates * scale[: coordinates.shape[-1]])
        return to_detections(mapped, self.labels, self._filter, (picture.width, picture.height))
