"""The models that this server knows by name, over HTTP, and what a name in a request resolves to. It loads none."""

from __future__ import annotations

import ipaddress

import msgspec
from litestar import get

from vidflow.domain.errors import ModelError, SetupError
from vidflow.infra.models import registry
from vidflow.roles.api.context import Api
from vidflow.roles.api.problems import problem
from vidflow.roles.api.schemas import InitScenario, ModelInfo, ModelList
from vidflow.settings import ApiOptions


@get("/models", sync_to_thread=True, tags=["models"])
def list_models(api: Api) -> ModelList:
    """The names that `model` takes beside the paths of specs and weights files."""
    listed = registry.list_models(api.options.models_dir)
    return ModelList([ModelInfo(**msgspec.structs.asdict(one)) for one in listed])


def require_loopback(options: ApiOptions) -> None:
    """Raise SetupError if requests from other machines could name models anywhere on this one."""
    if options.any_onnx and options.models_dir is None and not _is_loopback(options.host):
        raise SetupError(
            f"--any-onnx (VIDFLOW_ANY_ONNX) lets requests name files of this machine and needs a loopback --host, not {options.host}; "
            "put the models into a folder and give it as --models-dir"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resolve_model(asked: InitScenario, options: ApiOptions) -> registry.ModelRef:
    """The model that is asked for, one that has the labels that are asked for, as far as that can be known without loading it.

    Raises ModelError or ParameterError; for an unknown name a problem that lists the names that there are.
    """
    try:
        model = registry.resolve(asked.model, options.models_dir, any_onnx=options.any_onnx)
    except ModelError as error:
        if error.code != ModelError.default_code:
            raise
        names = [listed.name for listed in registry.list_models(options.models_dir)]
        raise problem(422, error.code, error.message, models=names) from error
    registry.check_parameters(model, asked.parameters)
    return model
