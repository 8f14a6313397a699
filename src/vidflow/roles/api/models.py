"""Models over HTTP: the list of registered models. No model is loaded."""

from __future__ import annotations

from litestar import get

from vidflow.contract import ModelList
from vidflow.domain.errors import SetupError
from vidflow.infra.models import registry
from vidflow.roles.api.bodies import build_model_info
from vidflow.roles.api.context import Api
from vidflow.roles.api.hosts import is_loopback
from vidflow.roles.api.problems import problem_responses
from vidflow.settings import ApiOptions


@get("/models", sync_to_thread=True, tags=["models"], responses=problem_responses(401, 503))
def list_models(api: Api) -> ModelList:
    """List the registered models. A scenario's `model` may also be the path of a spec or weights file."""
    models = registry.list_models(api.options.models_dir)
    return ModelList([build_model_info(model) for model in models])


def require_loopback(options: ApiOptions) -> None:
    """Raise SetupError if requests from other machines could name any model file of this one."""
    if options.any_onnx and options.models_dir is None and not is_loopback(options.host):
        raise SetupError(
            f"--any-onnx (VIDFLOW_ANY_ONNX) lets requests name files of this machine, so it needs a loopback --host, not {options.host}. "
            "Put the models into a folder and set --models-dir instead."
        )
