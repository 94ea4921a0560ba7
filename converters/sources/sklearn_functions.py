"""NumPy's unary functions that a FunctionTransformer or a target's transform may hold."""

from typing import Any

import numpy as np

# Each is a sequence of operators, with the constant that is the second input, if any.
FUNCTIONS: dict[str, tuple[tuple[str, float | None], ...]] = {
    "log": (("Log", None),),
    "log1p": (("Add", 1.0), ("Log", None)),
    "log2": (("Log", None), ("Div", float(np.log(2)))),
    "log10": (("Log", None), ("Div", float(np.log(10)))),
    "exp": (("Exp", None),),
    "expm1": (("Exp", None), ("Sub", 1.0)),
    "sqrt": (("Sqrt", None),),
    "square": (("Mul", None),),
    "absolute": (("Abs", None),),
    "negative": (("Neg", None),),
    "reciprocal": (("Reciprocal", None),),
    "sin": (("Sin", None),),
    "cos": (("Cos", None),),
    "tanh": (("Tanh", None),),
}

Part = tuple[str, list[str], str, float | None]


def function_parts(function: Any, source: str, target: str) -> list[Part] | None:
    """(operator, inputs, output, constant) from ``source`` to ``target``; [] for the identity, None
    for a function that has no converter."""
    if function is None:
        return []
    name = getattr(function, "__name__", "")
    if not isinstance(function, np.ufunc) or name not in FUNCTIONS:
        return None
    parts: list[Part] = []
    steps = FUNCTIONS[name]
    for index, (operator, constant) in enumerate(steps):
        output = target if index == len(steps) - 1 else f"{target}_{index}"
        inputs = [source, source] if name == "square" else [source]
        parts.append((operator, inputs, output, constant))
        source = output
    return parts
