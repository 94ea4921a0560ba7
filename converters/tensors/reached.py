"""Which parts of a graph the samples never reached: a branch that was never taken, a table's rows
that were never read. A fault in such a part would pass, so the proof names it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from converters.exercised import SHOWN

COMPARING = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or")
SMALLEST_TABLE = 2


@dataclass
class _Seen:
    """What one tensor held, over all samples."""

    low: float = np.inf
    high: float = -np.inf
    ids: set[int] = field(default_factory=set)

    def add(self, values: np.ndarray, whole: bool) -> None:
        if not values.size:
            return
        self.low, self.high = (
            min(self.low, float(values.min())),
            max(self.high, float(values.max())),
        )
        if whole:
            self.ids |= set(np.unique(values).tolist())


@dataclass(frozen=True)
class _Part:
    """A node whose behaviour turns on the numbers of ``tensor``. ``rows``: of the table that they
    are read from; ``low`` and ``high``: where its answer bends."""

    kind: str
    name: str
    tensor: str
    rows: int = 0
    low: float | None = None
    high: float | None = None

    def missing(self, seen: _Seen) -> Iterator[str]:
        where = f"{self.kind} {self.name!r}"
        if self.rows:
            read = {i % self.rows for i in seen.ids if -self.rows <= i < self.rows}
            if len(read) < self.rows:
                yield f"{where}: {self.rows - len(read)} of the {self.rows} rows of its table"
            return
        if self.low is not None and not seen.low < self.low:
            yield f"{where}: no number below {self.low:g}"
        if self.high is not None and not seen.high > self.high:
            yield f"{where}: no number above {self.high:g}"


def unreached(graph: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> list[str]:
    """A line for each part of ``graph`` that none of the ``feeds`` reached, at most ``SHOWN``."""
    model = onnx.load(graph)
    parts = list(_parts(model.graph))
    names = list(dict.fromkeys(part.tensor for part in parts))
    seen = {name: _Seen() for name in names}
    whole = {part.tensor for part in parts if part.rows}
    if names:
        given = {each.name for each in model.graph.input} | {e.name for e in model.graph.output}
        asked = [name for name in names if name not in given]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked)
        for values in _run(model, names, feeds):
            for name, each in values.items():
                seen[name].add(each, name in whole)
    lines = [line for part in parts for line in part.missing(seen[part.tensor])]
    more = [f"NOT REACHED: {len(lines) - SHOWN} parts more"] if len(lines) > SHOWN else []
    return [f"NOT REACHED: {line}" for line in lines[:SHOWN]] + more


def _run(
    model: onnx.ModelProto, names: list[str], feeds: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outside = {each.name for each in session.get_inputs()}
    inside = [name for name in names if name not in outside]
    for feed in feeds:
        values = dict(zip(inside, session.run(inside, dict(feed)) if inside else [], strict=True))
        yield values | {name: feed[name] for name in names if name in outside}


def _parts(graph: onnx.GraphProto) -> Iterator[_Part]:
    constants = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else "")
        if node.op_type == "Relu":
            yield _Part("Relu", name, node.input[0], low=0.0, high=0.0)
        elif node.op_type == "Clip":
            low, high = (
                _number(constants, node.input[place]) if len(node.input) > place else None
                for place in (1, 2)
            )
            yield _Part("Clip", name, node.input[0], low=low, high=high)
        elif node.op_type in ("Where", "If") and node.input[0] not in constants:
            yield _Part(node.op_type, name, node.input[0], low=0.5, high=0.5)
        elif node.op_type in COMPARING and node.output[0] not in constants:
            yield _Part(node.op_type, name, node.output[0], low=0.5, high=0.5)
        elif node.op_type == "Gather":
            table = constants.get(node.input[0])
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            if table is None or axis >= len(table.dims) or node.input[1] in constants:
                continue
            if table.dims[axis] >= SMALLEST_TABLE:
                yield _Part("Gather", name, node.input[1], rows=table.dims[axis])
        elif node.op_type == "OneHot":
            depth = _number(constants, node.input[1])
            if depth and node.input[0] not in constants:
                yield _Part("OneHot", name, node.input[0], rows=int(depth))


def _number(constants: Mapping[str, onnx.TensorProto], name: str) -> float | None:
    if not name or name not in constants:
        return None
    values = numpy_helper.to_array(constants[name])
    return float(values.flat[0]) if values.size == 1 else None
