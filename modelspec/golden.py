"""The golden sample of a model: parsed strictly, and judged, in one place.

Publisher, watcher, linter and gateway use this, so they give one verdict on one sample and answer.
"""

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from modelspec.face import Golden


class GoldenError(ValueError):
    """A golden sample that cannot be used; the text says what is wrong with it."""


def parse_golden(text: str, fields: Mapping[str, Any] | None = None) -> Golden:
    """The sample in a config's ``tidegate.golden``; GoldenError when it cannot be one.

    ``fields`` are the schemas of the request's fields by name: a field that is not among them is
    refused, and so are bytes that are not base64.
    """
    try:
        found = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise GoldenError(f"the golden sample is not JSON: {error or 'nested too deep'}") from None
    if not isinstance(found, dict):
        raise GoldenError("the golden sample must be a JSON object")
    request, expect, tolerance = (found.get(key) for key in ("request", "expect", "tolerance"))
    if not isinstance(request, dict):
        raise GoldenError("the golden sample needs 'request', an object: one row of the endpoint")
    if not isinstance(expect, dict) or not expect or not any(expect.values()):
        raise GoldenError("the golden sample needs 'expect', which says of a tensor what it holds")
    for tensor, values in expect.items():
        _check_expected(tensor, values)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise GoldenError("the golden sample needs 'tolerance', a number")
    if not 0 <= tolerance < math.inf:
        raise GoldenError(
            f"the golden sample's tolerance must be finite and not below 0: {tolerance}"
        )
    if fields is not None:
        _check_request(request, fields)
    return Golden(request, expect, tolerance)


def golden_fault(golden: Golden, answer: Mapping[str, Iterable[Any]]) -> str:
    """'' when the answer's row begins with the golden values, else what is wrong with it.

    ``answer`` has of each tensor the values of one row, in any shape. Numbers may differ by the
    tolerance; NaN is never right. Text is compared as text; bytes that are not UTF-8 are shown with
    replacement characters first.
    """
    for tensor, expected in golden.expect.items():
        if tensor not in answer:
            return f"answers its golden sample without the tensor {tensor}"
        if not _agree(_flat(answer[tensor]), expected, golden.tolerance):
            return f"answers its golden sample wrongly in {tensor}"
    return ""


def _agree(given: list[Any], expected: list[Any], tolerance: float) -> bool:
    if len(given) < len(expected):
        return False
    return all(_is_near(*pair, tolerance) for pair in zip(given, expected, strict=False))


def _is_near(given: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(given, bytes):
        given = given.decode("utf-8", "replace")
    if isinstance(given, str) or isinstance(expected, str):
        return bool(given == expected)
    # Of integers exactly: as floating-point numbers large ones would be rounded.
    return bool(abs(given - expected) <= tolerance)


def _flat(values: Iterable[Any]) -> list[Any]:
    if isinstance(values, np.ndarray):
        flat: list[Any] = values.reshape(-1).tolist()
        return flat
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _check_expected(tensor: str, values: Any) -> None:
    if not isinstance(values, list):
        raise GoldenError(f"the golden sample expects of {tensor} what is not a list")
    for value in values:
        if not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
            raise GoldenError(f"the golden sample expects of {tensor} what no tensor holds")
    if len({isinstance(value, str) for value in values}) > 1:
        raise GoldenError(f"the golden sample expects of {tensor} text and numbers")


def _check_request(request: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    for name, value in request.items():
        schema = fields.get(name)
        if not isinstance(schema, Mapping):
            raise GoldenError(
                f"the golden sample's request has the field {name!r}, and the endpoint takes "
                f"{', '.join(fields) or 'none'}"
            )
        if schema.get("x-bytes"):
            _check_bytes(name, value)


def _check_bytes(name: str, value: Any) -> None:
    try:
        base64.b64decode(value["b64"], validate=True)
    except (TypeError, KeyError, ValueError, binascii.Error):
        raise GoldenError(
            f"the golden sample's {name!r} must be an object with b64, which is base64"
        ) from None


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number that JSON has")
