"""The fields of a JSON object in an OpenAI request."""

from collections.abc import Collection, Mapping
from typing import Any

from gateway.errors import SHOWN, InvalidRequest, quoted


def present(body: Any, required: str) -> dict[str, Any]:
    """The body's fields that are not null; raises InvalidRequest when it is not an object."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object with 'model' and '{required}'")
    return {name: value for name, value in body.items() if value is not None}


def refuse_keys(value: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise InvalidRequest for a key of the object at ``where`` that we do not know, unless it is
    null: what is dropped silently is missed only in the answer."""
    for key, item in value.items():
        if key not in known and item is not None:
            field = f"{where}.{key[:SHOWN]}"
            raise InvalidRequest(f"unknown field {quoted(key)} in {where}", param=field)


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name, default)
    if type(value) is not bool:
        raise InvalidRequest(f"{name!r} must be true or false", param=name)
    return value
