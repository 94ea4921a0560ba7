"""Which parts of a graph the samples never reached: branches never taken, table rows never read. A
fault in such a part would go unseen, so the proof names it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from converters.proof.exercised import SHOWN

COMPARING = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or")
SMALLEST_TABLE = 2


@dataclass
class _Observed:
    """The values of one tensor over all samples."""

    low: float = np.inf
    high: float = -np.inf
    ids: set[int] = field(default_factory=set)

    def add(self, values: np.ndarray, are_ids: bool) -> None:
        if not values.size:
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        if are_ids:
            self.ids |= set(np.unique(values).tolist())


@dataclass(frozen=True)
class _Part:
    """A node whose behaviour depends on the values of ``tensor``. ``rows``: the size of the table
    that they index; ``low`` and ``high``: the values below and above which it behaves otherwise."""

    operator: str
    name: str
    tensor: str
    rows: int = 0
    low: float | None = None
    high: float | None = None

    def unreached(self, observed: _Observed) -> Iterator[str]:
        """What the ``observed`` values left out, a line each."""
        node = f"{self.operator} {self.name!r}"
        if self.rows:
            in_range = (index for index in observed.ids if -self.rows <= index < self.rows)
            unread = self.rows - len({index % self.rows for index in in_range})
            if unread:
                yield f"{node}: {unread} of the {self.rows} rows of its table"
            return
        if self.low is not None and not observed.low < self.low:
            yield f"{node}: no number below {self.low:g}"
        if self.high is not None and not observed.high > self.high:
            yield f"{node}: no number above {self.high:g}"


def unreached(graph: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> list[str]:
    """A line for each part of ``graph`` that none of the ``feeds`` reached, at most ``SHOWN``."""
    model = onnx.load(graph)
    parts = list(_parts(model.graph))
    names = list(dict.fromkeys(part.tensor for part in parts))
    observed = {name: _Observed() for name in names}
    id_tensors = {part.tensor for part in parts if part.rows}
    if names:
        public = {info.name for info in (*model.graph.input, *model.graph.output)}
        inner_names = [name for name in names if name not in public]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner_names)
        for tensors in _run(model, names, feeds):
            for name, values in tensors.items():
                observed[name].add(values, name in id_tensors)
    lines = [line for part in parts for line in part.unreached(observed[part.tensor])]
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
    graph_inputs = {node.name for node in session.get_inputs()}
    inner_names = [name for name in names if name not in graph_inputs]
    for feed in feeds:
        values = session.run(inner_names, dict(feed)) if inner_names else []
        tensors = dict(zip(inner_names, values, strict=True))
        yield tensors | {name: feed[name] for name in names if name in graph_inputs}


def _parts(graph: onnx.GraphProto) -> Iterator[_Part]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update(
                (node.output[0], attribute.t)
                for attribute in node.attribute
                if attribute.name == "value"
            )
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else "")
        if node.op_type == "Relu":
            yield _Part("Relu", name, node.input[0], low=0.0, high=0.0)
        elif node.op_type == "Clip":
            low, high = (
                _number(constants, node.input[index]) if len(node.input) > index else None
                for index in (1, 2)
            )
            yield _Part("Clip", name, node.input[0], low=low, high=high)
        elif node.op_type in ("Where", "If") and node.input[0] not in constants:
            yield _Part(node.op_type, name, node.input[0], low=0.5, high=0.5)
        elif node.op_type in COMPARING and node.output[0] not in constants:
            yield _Part(node.op_type, name, node.output[0], low=0.5, high=0.5)
        elif node.op_type == "Gather":
            table = constants.get(node.input[0])
            axis = next(
                (attribute.i for attribute in node.attribute if attribute.name == "axis"), 0
            )
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
