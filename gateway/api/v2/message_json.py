"""Triton's messages as JSON, as its HTTP API writes them: integers as numbers, with defaults."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """The message as a JSON object."""
    return {
        field.name: _value(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value(field: Any, value: Any) -> object:
    if isinstance(value, Mapping):
        return {str(key): _value(None, value[key]) for key in sorted(value)}
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_value(field, element) for element in value]
    if field is not None and field.enum_type:
        return field.enum_type.values_by_number[value].name
    return value
