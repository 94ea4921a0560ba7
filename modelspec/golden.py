"""The golden sample of a pipeline: one row whose outputs are known.

It is stored in the model's config as the parameter ``tidegate.golden``. Publishing, the watcher and
the gateway send it to a running model, and must come to the same verdict: ``modelspec.probe`` is
the request that they send, and ``Golden.fault`` the verdict.
"""

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelspec.errors import DeclarationError

LEAST_PROBE_S = 5.0
UNMEASURED_PROBE_S = 120.0  # for a model whose probe has not been timed yet
SLACK = 4.0  # times the measured time
_PARTS = ("request", "expect", "tolerance")


def probe_time_s(took_s: float | None) -> float:
    """How many seconds to wait for the response to a golden sample, where the last correct one took
    ``took_s`` (None: there was none yet). Publisher, gateway, watcher and ``tidegate up`` all wait
    that long.

    It only bounds the wait: whether a late model is healthy depends on whether it makes progress.
    """
    if took_s is None:
        return UNMEASURED_PROBE_S
    return min(max(LEAST_PROBE_S, SLACK * took_s), UNMEASURED_PROBE_S)


def unusable(problem: str) -> DeclarationError:
    """``problem`` completes the sentence "the golden sample ..."."""
    return DeclarationError(f"has a golden sample that {problem}")


@dataclass(frozen=True)
class Golden:
    """One row whose outputs are known: the probe that tells a live model from a dead one.

    ``request`` is a request to the endpoint. ``expect`` maps an output to the first elements of its
    row: texts, numbers (which may differ by ``tolerance``), or None for NaN. For a model that sends
    several responses to a request, the elements of one response follow those of the one before. The
    values come from the original framework, and the conversion proof fails when they do not.
    """

    request: Mapping[str, Any]
    expect: Mapping[str, Sequence[Any]]
    tolerance: float

    def to_json(self) -> str:
        expect = {name: [_without_nan(value) for value in row] for name, row in self.expect.items()}
        document = {"request": self.request, "expect": expect, "tolerance": self.tolerance}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def parse(cls, text: str) -> "Golden":
        """The sample in a model's config; DeclarationError says what is wrong with it."""
        try:
            document = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise unusable(f"is not JSON: {error}") from None
        if not isinstance(document, dict) or set(document) != set(_PARTS):
            raise unusable(f"must be a JSON object with {', '.join(_PARTS)} and nothing else")
        request, expect, tolerance = (document[part] for part in _PARTS)
        if not isinstance(request, dict):
            raise unusable("has a request that is not a JSON object")
        if not isinstance(expect, dict) or not expect:
            raise unusable("must expect something: {output: [first elements]}")
        if isinstance(tolerance, bool) or not _is_finite(tolerance) or tolerance < 0:
            raise unusable(f"has the tolerance {tolerance!r}: give a number of 0 or more")
        for name, row in expect.items():
            _check_row(name, row)
        return cls(request, expect, float(tolerance))

    def require_bound(self, fields: Container[str], outputs: Container[str]) -> None:
        """DeclarationError unless the endpoint has the request's fields, and the model the expected
        outputs."""
        for name in self.request:
            if name not in fields:
                raise unusable(f"sends a field {name!r} that the endpoint does not have")
        for name in self.expect:
            if name not in outputs:
                raise unusable(f"expects an output {name!r} that the model does not have")

    def is_answered(self, outputs: Mapping[str, Sequence[object]]) -> bool:
        """Whether ``outputs`` has enough elements to compare."""
        return all(len(outputs.get(name, ())) >= len(row) for name, row in self.expect.items())

    def fault(self, outputs: Mapping[str, Sequence[object]]) -> str:
        """'' when ``outputs`` is as expected, else what is wrong with it.

        ``outputs`` maps each output to the elements of the row, flat: numbers, ``str``, or
        ``bytes``, which are read as UTF-8.
        """
        for name, expected in self.expect.items():
            if name not in outputs:
                return f"answers its golden sample without the tensor {name}"
            actual = list(outputs[name][: len(expected)])
            if len(actual) != len(expected):
                return f"answers its golden sample with too few elements in {name}"
            if not agree(actual, expected, self.tolerance):
                return f"answers its golden sample wrongly in {name}"
        return ""


def agree(actual: Sequence[object], expected: Sequence[object], tolerance: float) -> bool:
    """Whether both have the same elements: numbers (numpy's too) within ``tolerance``, NaN only
    where NaN (or None) is expected, texts (or their bytes in UTF-8) exactly."""
    return len(actual) == len(expected) and all(
        _is_close(_plain(value), _plain(target), tolerance)
        for value, target in zip(actual, expected, strict=True)
    )


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value  # an int64 stays exact


def _is_close(actual: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, str) or isinstance(actual, str):
        return bool(actual == expected)
    if expected is None or math.isnan(expected):
        return isinstance(actual, float) and math.isnan(actual)
    # Two infinities of one sign differ by NaN, which is within no tolerance.
    return bool(actual == expected or abs(actual - expected) <= tolerance)


def _check_row(name: str, row: object) -> None:
    if not isinstance(row, list) or not row:
        raise unusable(f"must expect a list of elements of the output {name!r}")
    if all(isinstance(value, str) for value in row):
        return
    if not all(value is None or isinstance(value, int | float) for value in row):
        raise unusable(f"must expect only texts or only numbers of the output {name!r}")
    if not all(value is None or _is_finite(value) for value in row):
        raise unusable(f"expects a number of the output {name!r} that is too large for FP64")


def _is_finite(value: object) -> bool:
    """Whether it is a number that FP64 can hold."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer of any length
        return False


def _without_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"JSON has no {name}: write null to expect NaN")
