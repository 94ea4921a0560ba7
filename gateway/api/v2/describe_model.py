"""Who may read what a model is: config and statistics, which ``perf_analyzer`` asks for."""

from typing import Any

from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Catalogue

_PATHS = ("/", "$$TRITON_MODEL_DIRECTORY", "file:")


def check_readable(catalogue: Catalogue, context: RequestContext, name: str, version: str) -> None:
    """NotFound unless the caller may read the model, or a pipeline that it is a step of.

    The pipeline's own config names its steps; ``perf_analyzer`` follows it to theirs.
    """
    pipelines = catalogue.steps.get(name, ())
    if name not in catalogue.models and any(map(context.may_read, pipelines)):
        context.action, context.model = "read", name
        return
    context.require("read", name)
    catalogue.model(name, version)


def shown_statistics(catalogue: Catalogue, context: RequestContext, every: Any) -> list[Any]:
    """Of the ModelStatistics of all models those that the caller may read, and their steps'."""
    readable = {name for name in catalogue.models if context.may_read(name)}
    for step, pipelines in catalogue.steps.items():
        if readable.intersection(pipelines):
            readable.add(step)
    return [each for each in every.model_stats if each.name in readable]


def hide_paths(config: Any) -> None:
    """Take the parameters that say where files lie on the server out of a ModelConfig."""
    for name in list(config.parameters):
        if config.parameters[name].string_value.startswith(_PATHS):
            del config.parameters[name]
