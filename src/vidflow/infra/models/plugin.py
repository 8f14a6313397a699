"""Models of other packages (entry points): what they raise is a fault of the model, not of vidflow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from vidflow.domain.detections import Detection, InferenceError
from vidflow.domain.errors import ModelError, VidflowError
from vidflow.infra.models.model import Model, Picture, Size


class PluginModel:
    """A model of another package. Its exceptions become InferenceError; the traceback goes to standard error."""

    def __init__(self, name: str, model: Model) -> None:
        self._name = name
        self._model = model

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that it may give."""
        return self._model.labels

    @property
    def input_size(self) -> Size | None:
        """The (width, height) that it asks of pictures."""
        return self._model.input_size

    @property
    def warmup_frames(self) -> int:
        """How many earlier frames a result depends on."""
        return self._model.warmup_frames

    @property
    def batch(self) -> int:
        """How many pictures it is best given at once."""
        return self._model.batch

    def infer(self, pictures: Sequence[Picture]) -> list[tuple[Detection, ...]]:
        """Return what the model sees on each picture. Raises InferenceError."""
        try:
            return self._model.infer(pictures)
        except (VidflowError, MemoryError):
            raise
        except Exception as error:
            traceback.print_exc()
            raise InferenceError(
                f"model {self._name!r} failed on a frame ({type(error).__name__}: {error}); report it to its authors"
            ) from error


def load_plugin(name: str, load: Callable[[], Model]) -> PluginModel:
    """Return the model that another package makes. Raises ModelError (model_refused) if its code fails."""
    try:
        return PluginModel(name, load())
    except (VidflowError, MemoryError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        raise ModelError(
            f"model {name!r} cannot be loaded ({type(error).__name__}: {error}); report it to its authors",
            code="model_refused",
        ) from error
