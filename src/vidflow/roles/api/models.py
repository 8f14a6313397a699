"""Models over HTTP: the list of registered models, and the lookup of the model that a request names. No model is loaded."""

from __future__ import annotations

import ipaddress

from litestar import get

from vidflow.contract import InitScenario, ModelList
from vidflow.domain.errors import ModelError, SetupError
from vidflow.infra.models import registry
from vidflow.infra.models.bundle import Bundle
from vidflow.roles.api.bodies import build_model_info
from vidflow.roles.api.context import Api
from vidflow.roles.api.problems import problem
from vidflow.settings import ApiOptions


@get("/models", sync_to_thread=True, tags=["models"])
def list_models(api: Api) -> ModelList:
    """List the registered models. A scenario's `model` may also be the path of a spec or weights file."""
    models = registry.list_models(api.options.models_dir)
    return ModelList([build_model_info(model) for model in models])


def require_loopback(options: ApiOptions) -> None:
    """Raise SetupError if requests from other machines could name any model file of this one."""
    if options.any_onnx and options.models_dir is None and not _is_loopback(options.host):
        raise SetupError(
            f"--any-onnx (VIDFLOW_ANY_ONNX) lets requests name files of this machine, so it needs a loopback --host, not {options.host}. "
            "Put the models into a folder and set --models-dir instead."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resolve_model(request: InitScenario, options: ApiOptions) -> Bundle:
    """Return the requested model, checked for the requested labels as far as possible without loading it.

    Raises ModelError or ParameterError, or a 422 problem that lists the registered names if the model is unknown.
    """
    try:
        model = registry.resolve(request.model, options.models_dir, any_onnx=options.any_onnx)
    except ModelError as error:
        if error.code != ModelError.default_code:
            raise
        names = registry.list_names(options.models_dir)
        raise problem(422, error.code, error.message, models=names) from error
    registry.check_labels(model, request.parameters.labels or ())
    return model
