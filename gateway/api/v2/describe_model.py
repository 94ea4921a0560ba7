"""Who may read a model's config and statistics, which ``perf_analyzer`` requests."""

from typing import Any

from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Catalogue

_PATHS = ("/", "$$TRITON_MODEL_DIRECTORY", "file:")


def check_readable(catalogue: Catalogue, context: RequestContext, name: str, version: str) -> None:
    """Raise NotFound unless the caller may read the model, or a pipeline that it is a step of.

    The pipeline's config names its steps; ``perf_analyzer`` goes on to read their configs.
    """
    pipelines = catalogue.steps.get(name, ())
    if name not in catalogue.models and any(map(context.may_read, pipelines)):
        context.action, context.model = "read", name
        return
    context.require("read", name)
    catalogue.model(name, version)


def readable_statistics(catalogue: Catalogue, context: RequestContext, response: Any) -> list[Any]:
    """From a ModelStatisticsResponse for all models: those that the caller may read, and their
    steps."""
    readable = {name for name in catalogue.models if context.may_read(name)}
    for step, pipelines in catalogue.steps.items():
        if readable.intersection(pipelines):
            readable.add(step)
    return [statistics for statistics in response.model_stats if statistics.name in readable]


def hide_paths(config: Any) -> None:
    """Remove the parameters that contain paths on the server from a ModelConfig."""
    for name in list(config.parameters):
        if config.parameters[name].string_value.startswith(_PATHS):
            del config.parameters[name]
