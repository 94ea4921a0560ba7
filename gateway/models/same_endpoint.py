"""Whether one pipeline can stand in for another: their requests and responses must be equal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.models.catalogue import Model

# What a JSON Schema says to people only.
_FOR_PEOPLE = frozenset(("title", "description", "example", "examples"))
_SHOWN = 80  # characters of a value that a message shows


def difference(model: Model, other: Model) -> str:
    """'' if a request for the ``model`` is one for the ``other``, with a response of the same form;
    else the first difference."""
    for pipeline in (model, other):
        if pipeline.endpoint_schema is None:
            return f"{pipeline.name} has no endpoint schema"
        if pipeline.canary_of:
            return f"{pipeline.name} is a canary"
        if pipeline.sequences is not None:
            return f"{pipeline.name} keeps state between requests"
    return next(_differences(_described(model), _described(other), ""), "")


def _described(model: Model) -> dict[str, Any]:
    endpoint = model.endpoint_schema
    assert endpoint is not None  # noqa: S101 - checked by the caller
    return {
        "request": endpoint.schema.request,
        "response": endpoint.schema.response,
        "openai": endpoint.openai,
        "inputs": {name: tuple(tensor) for name, tensor in model.inputs.items()},
        "outputs": {name: tuple(tensor) for name, tensor in model.outputs.items()},
        "max_batch_size": model.max_batch_size,
        "decoupled": model.decoupled,
    }


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other} - _ignored(path)):
            where = f"{path}.{key}" if path else key
            if key not in other:
                yield f"{where} is missing in the fallback"
            elif key not in one:
                yield f"{where} is only in the fallback"
            else:
                yield from _differences(one[key], other[key], where)
    elif _plain(one) != _plain(other):
        yield f"{path} is {_shown(one)}, and {_shown(other)} in the fallback"


def _ignored(path: str) -> frozenset[str]:
    """Keys that say nothing to a machine; under ``properties`` they are names of fields."""
    is_schema = path.partition(".")[0] in ("request", "response")
    return _FOR_PEOPLE if is_schema and not path.endswith("properties") else frozenset()


def _plain(value: Any) -> Any:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return [_plain(item) for item in value] if is_sequence else value


def _shown(value: Any) -> str:
    text = repr(_plain(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
