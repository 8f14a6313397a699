"""Models of other packages (entry points). Their exceptions are errors of the model, not of vidflow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.device import Device
from vidflow.domain.errors import ModelError, VidflowError
from vidflow.infra.models.model import Model, Picture, Size


class PluginModel:
    """A model of another package. Its exceptions become InferenceError; the traceback goes to standard error."""

    def __init__(self, name: str, model: Model) -> None:
        self._name = name
        self._model = model

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels that detections may have."""
        return self._model.labels

    @property
    def input_size(self) -> Size | None:
        """(width, height) to which pictures are resized; None if that depends on the picture."""
        return self._model.input_size

    @property
    def device(self) -> Device | None:
        """The device that it runs on. A model of another package chooses it itself, and may not say which it is."""
        device = getattr(self._model, "device", None)
        return device if isinstance(device, Device) else None

    @property
    def runs_in_threads(self) -> bool:
        """Whether several threads may use it: models of other packages are used by one."""
        return False

    @property
    def warmup_frames(self) -> int:
        """Number of earlier kept frames on which a result depends."""
        return self._model.warmup_frames

    @property
    def batch(self) -> int:
        """The most efficient number of pictures per call."""
        return self._model.batch

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return the detections of each picture. Raises InferenceError."""
        try:
            return self._model.infer(pictures)
        except (VidflowError, MemoryError):
            raise
        except Exception as error:
            traceback.print_exc()
            raise InferenceError(
                f"Model {self._name!r} failed on a frame ({type(error).__name__}: {error}). Report this to its authors."
            ) from error


def load_plugin(name: str, load: Callable[[], Model]) -> PluginModel:
    """Return the model that another package provides. Raises ModelError (model_refused) if its code fails."""
    try:
        return PluginModel(name, load())
    except (VidflowError, MemoryError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        raise ModelError(
            f"Model {name!r} cannot be loaded ({type(error).__name__}: {error}). Report this to its authors.",
            code="model_refused",
        ) from error
