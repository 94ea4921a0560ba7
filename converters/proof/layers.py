"""A rounded graph compared with its FP32 graph layer by layer, which shows faults that the final
answers hide.

Rounding accumulates through a graph. In a small model, or one whose answers hardly vary, rounding
moves the answers as far from the original as two swapped hidden units would. The rounding of a
single layer is the same in every model: with 8-bit weights, under 1 % of the layer's output. So
each operator of the FP32 graph is run on *the rounded graph's own* inputs, and its output is
compared with the rounded graph's: nothing has accumulated, and every other difference stands out.

Both graphs use the same tensor names (every precision keeps the names of what it rewrites); a
tensor that only one of them has is computed from the tensors that both have. This covers every
output of the graph, so a graph within these limits differs from the original by rounding alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ExportFailed
from converters.precisions.fp16 import MASKED, MOVING
from converters.precisions.graph import gemm_to_matmul, load_tidy, names_read, replace
from converters.precisions.unsigned import CENTRE
from converters.proof.checks import Check, at_least, at_most
from converters.proof.tolerance import LayerLimits

Feed = Mapping[str, np.ndarray]
# What the quantisers rewrite.
ROUNDED = ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Attention")
BY_CHANNEL = ("Conv", "ConvTranspose", "BatchNormalization", "MaxPool", "AveragePool")
# They only move numbers, or read a tensor's shape: the operators that read them are compared.
PASSED_ON = MOVING - {"Gather"} | {"Shape", "Size", "Constant", "ConstantOfShape", "Cast"}
# What they, and the passes of ``converters.precisions``, write around and instead of that: what it
# does to the numbers is measured.
WRITTEN = (
    *("Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"),
    *("ConvInteger", "MatMulIntegerToFloat", "MatMulNBits"),
    *("Constant", "Transpose", "Reshape", "Squeeze", "Unsqueeze"),
)
# Products of integers come with arithmetic of their own (``_around_integers``); each Mul of it
# reads one of ``SCALED``, or the constants that int8-per-row divides channels by.
INTEGER = ("MatMulInteger", "ConvInteger", "MatMulIntegerToFloat")
SCALED = (*INTEGER, "DynamicQuantizeLinear")
# The suffixes of constants of int8-per-row, which ``other_rounded_weights`` compares.
SMOOTHING, SHIFT, SHIFTED_BACK = "_inverse", "_lowest", "_back"
QUANTIZED = "_quantized"  # the suffix that ONNX Runtime gives to the names of 8-bit weights
FP16, FED = "_fp16", "__fed"
# A unit whose output is less than this share of a typical one is measured as though it were that
# much.
RESOLUTION = 0.25


@dataclass(frozen=True)
class Error:
    """The error of one tensor as a share of the original's: over all of it (``lost``) and for its
    worst unit (``column``); ``gain`` is by how much it is smaller or larger overall. ``offset`` is
    the mean error of the worst unit, in units of what 8 bits round off it; 0 where that is unknown.
    """

    tensor: str
    operator: str
    rounded: bool
    lost: float
    column: float
    gain: float
    offset: float = 0.0


class Layers:
    """The FP32 graph in ``source`` and the inputs it is run on: ``feeds``, a few samples."""

    def __init__(self, source: Path, feeds: Sequence[Feed]) -> None:
        self._source, self._feeds = source, feeds
        self.not_compared = ""  # why there are no checks, in one line
        self._reference: onnx.ModelProto | None
        try:
            self._reference = load_tidy(source)
        except ExportFailed:  # trees, whose answers are exact or wrong
            self._reference, self.not_compared = None, "the graph has no layers that are rounded"
        self._without_gemm: onnx.ModelProto | None = None  # made when a precision has no Gemm
        # Loading takes longer than running: engines with the same tensors share a session.
        self._sessions: dict[tuple[str, ...], Any] = {}

    def checks(self, engine: Path, limits: LayerLimits) -> list[Check]:
        """The checks of ``engine``, the graph in some precision; none if the graph is made of trees
        or cannot be taken apart (a file of more than 2 GiB): ``not_compared`` then says so."""
        if self._reference is None:
            return []
        rounded = onnx.load(engine)
        try:
            errors = self.errors(rounded)
        except Exception:
            try:
                self.errors(self._reference)
            except Exception as error:  # ONNX Runtime's errors share no base class
                reason = " ".join(str(error).split())[:200]
                self.not_compared = f"the FP32 graph cannot be taken apart ({reason})"
                return []
            raise
        foreign = [
            *other_weights(self._reference.graph, rounded.graph),
            *other_rounded_weights(
                self._reference.graph, self._tidied(rounded).graph, rounded.graph
            ),
        ]
        names = ", ".join(foreign[:3])
        graphs = self._reference.graph, self._tidied(rounded).graph
        operators = list(other_operators(graphs, rounded.graph))
        return [
            *_checks(errors, limits),
            at_most("layers: weights that are not the original's", len(foreign), 0, names),
            at_most(
                "layers: operators that the original does not have",
                len(operators),
                0,
                ", ".join(operators),
            ),
        ]

    def _tidied(self, rounded: onnx.ModelProto) -> onnx.ModelProto:
        """The FP32 graph; if the rounded graph has no Gemm, with each Gemm as a MatMul and Add."""
        assert self._reference is not None  # noqa: S101 - both callers have checked
        if any(node.op_type == "Gemm" for node in rounded.graph.node):
            return self._reference
        if self._without_gemm is None:
            self._without_gemm = _copy(self._reference)
            gemm_to_matmul(self._without_gemm.graph)
        return self._without_gemm

    def errors(self, rounded: onnx.ModelProto) -> list[Error]:
        """The error of every tensor that both graphs have."""
        if self._reference is None:
            return []
        reference = self._tidied(rounded)
        shared = _shared(reference.graph, rounded.graph)
        rounded_session = _session(_with_outputs(rounded, list(shared.values())))
        actual: dict[str, list[np.ndarray]] = {}
        expected: dict[str, list[np.ndarray]] = {}
        for feed in self._feeds:
            outputs = rounded_session.run(list(shared.values()), dict(feed))
            tensors = {
                # An FP16 tensor is compared with the original's in FP32.
                name: values.astype(np.float32) if shared[name] == name + FP16 else values
                for name, values in zip(shared, outputs, strict=True)
                if isinstance(values, np.ndarray)
            }
            names = tuple(tensors)
            if names not in self._sessions:
                self._sessions[names] = _session(_fed_with(reference, tensors))
            fed = {f"{name}{FED}": values for name, values in tensors.items()}
            originals = self._sessions[names].run(list(names), {**feed, **fed})
            for name, values in zip(names, originals, strict=True):
                actual.setdefault(name, []).append(tensors[name])
                expected.setdefault(name, []).append(values)
        rounded_names = _rounded(reference.graph, rounded.graph, shared)
        producers = {name: node for node in reference.graph.node for name in node.output}
        biases = _biases(reference.graph, rounded_names)
        inputs = {name: [feed[name] for feed in self._feeds] for name in self._feeds[0]}
        uncancelled = _uncancelled(reference.graph, {**inputs, **actual})
        roundings = _roundings(reference.graph, rounded.graph, {**inputs, **actual})
        return [
            _error(
                producers[name],
                name,
                name in rounded_names,
                actual[name],
                expected[name],
                biases.get(name),
                uncancelled.get(name, 0.0),
                roundings.get(name),
            )
            for name in actual
        ]


def _checks(errors: Sequence[Error], limits: LayerLimits) -> Iterator[Check]:
    exact = [error for error in errors if not error.rounded]
    rounded = [error for error in errors if error.rounded]
    for title, field, candidates, limit in (
        ("layers: error of an operator that is not rounded", "column", exact, limits.exact),
        ("layers: error of a layer, of its output", "lost", rounded, limits.lost),
        ("layers: the same of the worst unit", "column", rounded, limits.column),
        ("layers: output smaller or larger than the original's", "gain", rounded, limits.gain),
        ("layers: offset of a unit, of what is rounded off", "offset", rounded, limits.offset),
    ):
        if candidates and limit < inf:
            # NaN is the worst.
            worst = max(candidates, key=lambda e: np.nan_to_num(getattr(e, field), nan=np.inf))
            yield at_most(title, getattr(worst, field), limit, f"{worst.operator} {worst.tensor}")
    yield at_least("layers: tensors compared", len(errors), 1)


def other_weights(reference: onnx.GraphProto, rounded: onnx.GraphProto) -> Iterator[str]:
    """The names of the constants that both graphs have, with different numbers. This also compares
    rows of a table that no sample reads."""
    constants = {tensor.name: tensor for tensor in rounded.initializer}
    for tensor in reference.initializer:
        for name in (tensor.name, f"{tensor.name}{FP16}"):
            if name in constants and not _same_constant(tensor, constants[name]):
                yield name


def other_operators(
    originals: Sequence[onnx.GraphProto], rounded: onnx.GraphProto
) -> Iterator[str]:
    """The types of operator of which ``rounded`` has more than any of ``originals``, except those
    that rounding takes: a clip may change nothing for these samples, and a factor near 1 would hide
    in the limits of 8 bits."""
    foreign = [_foreign_operators(original, rounded) for original in originals]
    for operator in foreign[0]:
        if all(operator in others for others in foreign):
            yield operator


def _foreign_operators(original: onnx.GraphProto, rounded: onnx.GraphProto) -> dict[str, int]:
    """The types of operator of which ``rounded`` has more than ``original``, and how many more."""
    allowed = Counter(node.op_type for node in original.node)
    written = _around_integers(original, rounded)
    present = Counter(node.op_type for node in rounded.node if node.output[0] not in written)
    return {
        operator: count - allowed[operator]
        for operator, count in present.items()
        if operator not in WRITTEN and count > allowed[operator]
    }


def _scales(rounded: onnx.GraphProto) -> set[str]:
    """The outputs of the Muls that rounding to integers takes: by a scale, and of two scales."""
    producers = {name: node for node in rounded.node for name in node.output}

    def is_scaled(name: str) -> bool:
        producer = producers.get(name)
        if producer is not None and producer.op_type == "Cast":
            producer = producers.get(producer.input[0])
        return name.endswith(SMOOTHING) or (producer is not None and producer.op_type in SCALED)

    return {
        node.output[0]
        for node in rounded.node
        if node.op_type == "Mul" and any(map(is_scaled, node.input))
    }


def _around_integers(original: onnx.GraphProto, rounded: onnx.GraphProto) -> set[str]:
    """The outputs of the nodes that rounding to integers writes: those that find the scale of a row
    and divide by it, and those that scale the products and add them up.

    Each is known by what it reads and by what reads it: the same operator elsewhere is none of the
    original's.
    """
    biases = {tensor.name for tensor in original.initializer}
    added = {node.output[0] for node in original.node if node.op_type == "Add"}
    constants = {tensor.name: tensor for tensor in rounded.initializer}
    readers: dict[str, set[str]] = {value.name: {"output"} for value in rounded.output}
    for node in rounded.node:
        for name in names_read(node):
            readers.setdefault(name, set()).add(node.op_type)
    written = _scales(rounded)

    def is_written(node: onnx.NodeProto) -> bool:
        read_by = readers.get(node.output[0], set())
        last = node.input[-1]
        match node.op_type:
            case "Add":  # pieces of a product, what undoes the shift, the bias of a Gemm
                others = [name for name in node.input if name not in written]
                is_bias = node.output[0] not in added and biases.issuperset(others)
                undoes_shift = all(name.endswith(SHIFTED_BACK) for name in others)
                return len(others) < len(node.input) and (is_bias or undoes_shift)
            case "Sub":
                return last.endswith(SHIFT) and last in constants
            case "Split":
                return read_by <= {"Abs", "ReduceMax", "Div"}
            case "Abs":
                return read_by <= {"ReduceMax"}
            case "ReduceMax":
                return read_by <= {"Max"}
            case "Max":
                return last in constants and read_by <= {"Div", "Mul"} and _is_tiny(constants[last])
            case "Div":
                return read_by <= {"QuantizeLinear"}
        return False

    if any(node.op_type in INTEGER for node in rounded.node):
        for node in rounded.node:
            if is_written(node):
                written.add(node.output[0])
    return written


def _is_tiny(tensor: onnx.TensorProto) -> bool:
    return bool((numpy_helper.to_array(tensor) < 1e-20).all())


def other_rounded_weights(
    reference: onnx.GraphProto, tidied: onnx.GraphProto, rounded: onnx.GraphProto
) -> Iterator[str]:
    """The names of the 8-bit weights that differ from the original's by more than rounding can:
    half a step of their scale. Swapped rows or columns show up here whatever the samples are.
    ``tidied`` is the reference with its Gemms written as in ``rounded``.
    """
    tensors = [*reference.initializer, *tidied.initializer]
    originals = {tensor.name: tensor for tensor in tensors}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in rounded.initializer}
    producers = {name: node for node in tidied.node for name in node.output}
    # ONNX Runtime writes such a Gemm as a MatMul.
    transposed = {
        node.input[1]
        for node in reference.node
        if node.op_type == "Gemm" and _attribute(node, "transB")
    }
    for node in rounded.node:
        name, inputs, axis = "", list(node.input), 0
        if node.op_type == "DequantizeLinear":
            name = node.input[0].removesuffix(QUANTIZED)
            axis = _attribute(node, "axis", 1)
        elif node.op_type == "MatMulInteger" and len(node.input) == 4:
            name = node.input[1].removesuffix(QUANTIZED)
            inputs, axis = [node.input[1], f"{name}_scale", node.input[3]], -1
        elif node.op_type == "MatMulNBits":
            producer = producers.get(node.output[0])
            name, inputs = (producer.input[1] if producer else ""), inputs[1:4]
        if name not in originals or any(part not in constants for part in inputs):
            continue
        original = numpy_helper.to_array(originals[name]).astype(np.float64)
        if node.op_type == "MatMulInteger" and name in transposed:
            original = original.T
        parts = [constants[part] for part in inputs]
        if node.op_type == "MatMulNBits":
            weights, step = _dequantized_blocks(node, parts, original.shape)
            allowed: Any = 1.02 * step  # its zero points are rounded too
        else:
            weights, step = _dequantized_channels(parts, original.shape, axis)
            allowed = 0.51 * step
        # The scales themselves are FP32.
        limit = allowed + 1e-5 * np.abs(original)
        if weights is None or (np.abs(weights - original) > limit).any():
            yield name
    yield from _other_weights_per_row(tidied, constants)


def _other_weights_per_row(
    tidied: onnx.GraphProto, constants: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """The same for the products of ``int8-per-row`` (``precisions.row_rounding``): pieces of rows,
    multiplied by the constants that divide the input's channels, or with an offset that undoes the
    shift of a one-sided input."""
    originals = {tensor.name: tensor for tensor in tidied.initializer}
    for node in tidied.node:
        if node.op_type != "MatMul" or node.input[1] not in originals:
            continue
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        while f"{node.name}_{len(pieces)}_weights" in constants:
            part = f"{node.name}_{len(pieces)}"
            centred = constants[f"{part}_weights"].astype(np.float64) - CENTRE
            pieces.append((centred, constants[f"{part}_columns"].astype(np.float64)))
        if not pieces:
            continue
        original = numpy_helper.to_array(originals[node.input[1]]).astype(np.float64)
        weights = np.concatenate([piece * scale for piece, scale in pieces])
        step = np.concatenate([np.broadcast_to(scale, piece.shape) for piece, scale in pieces])
        lowest = constants.get(f"{node.input[0]}{SHIFT}")
        back = constants.get(f"{node.name}{SHIFTED_BACK}")
        if weights.shape != original.shape or (lowest is None) != (back is None):
            yield node.input[1]
            continue
        if lowest is not None and back is not None:
            offset = lowest.astype(np.float64) @ weights
            size = np.abs(lowest.astype(np.float64)) @ np.abs(weights)
            if (np.abs(offset - back) > 1e-5 * size + 1e-30).any():
                yield f"{node.name}{SHIFTED_BACK}"
        inverse = constants.get(f"{node.input[0]}{SMOOTHING}", np.ones(1)).astype(np.float64)
        limit = 0.51 * step + 1e-5 * np.abs(weights)
        if (np.abs(weights - original / inverse[:, None]) > limit).any():
            yield node.input[1]


def _dequantized_channels(
    parts: Sequence[np.ndarray], shape: tuple[int, ...], axis: int
) -> tuple[np.ndarray | None, Any]:
    """The dequantised weights, FP64 of ``shape``, and their steps; None if the shapes do not match.
    ``parts`` are the 8-bit weights, their scales and their zero points, either one value or one per
    channel of ``axis``."""
    quantised, *by_channel = (part.astype(np.float64) for part in parts)
    if quantised.shape != shape:
        return None, 0.0
    broadcast = [1] * len(shape)
    if shape and by_channel[0].size > 1:
        broadcast[axis] = shape[axis]
    scale = by_channel[0].reshape(broadcast)
    zero: Any = by_channel[1].reshape(broadcast) if len(by_channel) > 1 else 0.0
    return (quantised - zero) * scale, scale


def _dequantized_blocks(
    node: onnx.NodeProto, parts: Sequence[np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray | None, Any]:
    """The same for MatMulNBits, whose 8-bit weights [N, blocks, bytes] are transposed."""
    rows, columns = _attribute(node, "K"), _attribute(node, "N")
    if shape != (rows, columns) or _attribute(node, "bits") != 8:
        return None, 0.0
    quantised = parts[0].reshape(columns, -1).astype(np.float64)
    blocks = -(-rows // _attribute(node, "block_size"))
    width = quantised.shape[1] // blocks
    scale = np.repeat(parts[1].reshape(columns, blocks).astype(np.float64), width, axis=1)
    zero: Any = 128.0
    if len(parts) > 2:
        zero = np.repeat(parts[2].reshape(columns, blocks).astype(np.float64), width, axis=1)
    weights = ((quantised - zero) * scale)[:, :rows]
    return weights.T, scale[:, :rows].T


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _same_constant(original: onnx.TensorProto, tensor: onnx.TensorProto) -> bool:
    if original.raw_data and original.raw_data == tensor.raw_data:
        return original.dims == tensor.dims and original.data_type == tensor.data_type
    expected, actual = numpy_helper.to_array(original), numpy_helper.to_array(tensor)
    if expected.dtype.kind != "f":
        return np.array_equal(expected, actual)
    if expected.shape != actual.shape:
        return False
    if actual.dtype == np.float16:
        with np.errstate(over="ignore"):
            expected = expected.astype(np.float16)
    limit = float(np.finfo(np.float16).max)
    expected, actual = (
        np.nan_to_num(values.astype(np.float64), posinf=limit, neginf=-limit)
        for values in (expected, actual)
    )
    masked = (np.abs(expected) >= MASKED) & (np.abs(actual) >= MASKED)
    masked &= np.sign(expected) == np.sign(actual)
    return bool(((expected == actual) | masked).all())


def _shared(reference: onnx.GraphProto, rounded: onnx.GraphProto) -> dict[str, str]:
    """The tensors that both graphs compute: the name in the reference -> the name in the rounded
    graph."""
    operators = {name: node.op_type for node in rounded.node for name in node.output if name}
    outputs = {value.name for value in reference.output}
    clipped = _clipped(rounded)
    shared = {}
    for node in reference.node:
        for name in node.output:
            if node.op_type in PASSED_ON and name not in outputs:
                continue
            if f"{name}{FP16}" in operators:
                shared[name] = f"{name}{FP16}"
            elif name and name in operators:
                replaced = node.op_type in ("Relu", "Clip") and operators[name] != node.op_type
                shared[name] = clipped.get(name, name) if replaced else name
    return shared


def _clipped(rounded: onnx.GraphProto) -> dict[str, str]:
    """The name of a tensor before it is quantised -> its name after it is dequantised. The range of
    the 8 bits does what a Relu or a Clip did, and that operator is then gone."""
    quantised = {
        node.output[0]: node.input[0] for node in rounded.node if node.op_type == "QuantizeLinear"
    }
    return {
        quantised[node.input[0]]: node.output[0]
        for node in rounded.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised
    }


def _with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The graph with these tensors among its outputs."""
    extended = _copy(model)
    known = {value.name for value in extended.graph.output}
    # ONNX Runtime infers their types.
    extended.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    return extended


def _fed_with(reference: onnx.ModelProto, tensors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The graph whose operators read each of these tensors from an input, while it also computes
    that tensor as an output."""
    model = _with_outputs(reference, tensors)
    for node in model.graph.node:
        node.input[:] = [f"{name}{FED}" if name in tensors else name for name in node.input]
    for name, values in tensors.items():
        is_text = values.dtype == object
        dtype = TensorProto.STRING if is_text else helper.np_dtype_to_tensor_dtype(values.dtype)
        value = helper.make_tensor_value_info(f"{name}{FED}", dtype, None)
        model.graph.input.append(value)
    # The stored shapes may be those of other samples.
    replace(model.graph.value_info, [])
    return model


def _rounded(
    reference: onnx.GraphProto, rounded: onnx.GraphProto, shared: Mapping[str, str]
) -> set[str]:
    """The tensors that a layer, or an 8-bit tensor, separates from the shared ones before them."""
    quantised = {node.input[0] for node in rounded.node if node.op_type == "QuantizeLinear"}
    constants = {tensor.name for tensor in reference.initializer}
    names = _quantised_early(rounded)
    for node in reference.node:
        # A product of two computed tensors is rounded in FP16, or if one of them is quantised.
        computed = node.op_type in ("MatMul", "Gemm") and node.input[1] not in constants
        in_fp16 = shared.get(node.output[0], "").endswith(FP16)
        is_layer = node.op_type in ROUNDED and (not computed or in_fp16)
        # A shared tensor is fed in: what happened before it does not count.
        inherited = {name for name in names_read(node) if name in names and name not in shared}
        if is_layer or inherited or quantised.intersection(names_read(node)):
            names.update(node.output)
    return names


def _quantised_early(rounded: onnx.GraphProto) -> set[str]:
    """The tensors that are quantised after an operator that only moves numbers: ONNX Runtime then
    quantises before it."""
    early: set[str] = set()
    next_names = {node.input[0] for node in rounded.node if node.op_type == "QuantizeLinear"}
    for node in reversed(rounded.node):
        if node.op_type in MOVING and node.output[0] in next_names | early:
            early.add(node.input[0])
    return early


def _biases(graph: onnx.GraphProto, layers: set[str]) -> dict[str, np.ndarray]:
    """The constant [columns] that a layer adds to its product, by the name of its output."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    biases = {}
    for node in graph.node:
        summands = node.input if node.op_type == "Add" else node.input[2:3]
        if node.op_type in ("Add", "Gemm", "Conv", "ConvTranspose") and node.output[0] in layers:
            for name in summands:
                if name in constants:
                    values = numpy_helper.to_array(constants[name])
                    biases[node.output[0]] = values.reshape(-1).astype(np.float64)
    return biases


def _uncancelled(
    graph: onnx.GraphProto, inputs: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, np.ndarray]:
    """The sum of the squares of a product's terms, FP64 [columns], by the name of its output."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    powers = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] not in inputs:
            continue
        weights = constants.get(node.input[1])
        if weights is None or len(weights.dims) != 2 or weights.data_type != TensorProto.FLOAT:
            continue
        matrix = numpy_helper.to_array(weights).astype(np.float64)
        matrix = matrix.T if _attribute(node, "transB") else matrix
        rows = _by_column(inputs[node.input[0]], -1).astype(np.float64)
        if rows.shape[1] == len(matrix):
            powers[node.output[0]] = (rows**2).mean(axis=0) @ matrix**2
    return powers


def _roundings(
    reference: onnx.GraphProto,
    rounded: onnx.GraphProto,
    inputs: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, np.ndarray]:
    """What 8 bits round off each unit of a layer, FP64 [columns], by the name of its output: the
    standard deviation of a sum whose weights and inputs are each off by up to half a step.

    Over many rows the mean error is less than that, unless all rows are alike; so this bounds the
    offset of a unit too, and a shift that is not rounding stands out however small it is.
    """
    constants = {tensor.name: tensor for tensor in rounded.initializer}
    scales = {
        node.input[0]: float(numpy_helper.to_array(constants[node.input[1]]).max())
        for node in rounded.node
        if node.op_type == "QuantizeLinear" and node.input[1] in constants
    }
    weights = {tensor.name: tensor for tensor in reference.initializer}
    moved: dict[str, str] = {}  # a tensor -> where its numbers come from
    roundings: dict[str, np.ndarray] = {}
    for node in reference.node:
        source = moved.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type in MOVING - {"Gather"}:
            moved[node.output[0]] = source
        if node.op_type in ("Add", "Relu", "Clip"):
            # The product before it may not have a name in both graphs. Neither adds an error.
            product = [name for name in node.input if name in roundings]
            if len(product) == 1 and (node.op_type != "Add" or weights.keys() & set(node.input)):
                roundings[node.output[0]] = roundings[product[0]]
        if node.op_type not in ("MatMul", "Gemm", "Conv") or source not in inputs:
            continue
        if node.op_type == "MatMul" and node.input[1] not in weights:
            other = moved.get(node.input[1], node.input[1])
            # Of a tensor that was reshaped, the width is not known.
            if source == node.input[0] and other in inputs:
                steps = [scales.get(name, 0.0) for name in node.input]
                squares = [
                    np.mean([(sample.astype(np.float64) ** 2).mean() for sample in inputs[name]])
                    for name in (source, other)
                ]
                width = max(sample.shape[-1] for sample in inputs[source])
                power = width * (steps[0] ** 2 * squares[1] + steps[1] ** 2 * squares[0])
                roundings[node.output[0]] = np.sqrt(np.array([power]) / 12)
            continue
        tensor = weights.get(node.input[1])
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        matrix = numpy_helper.to_array(tensor).astype(np.float64)
        if node.op_type == "Conv":
            matrix = matrix.reshape(len(matrix), -1).T
        elif len(matrix.shape) != 2:
            continue
        elif _attribute(node, "transB"):
            matrix = matrix.T
        values = [sample.astype(np.float64) for sample in inputs[source]]
        largest = max((float(np.abs(sample).max(initial=0.0)) for sample in values), default=0.0)
        square = np.mean([float((sample**2).mean()) for sample in values])
        # Without a scale in the graph it is that of the batch, of a row or of a part of one.
        step = scales.get(node.input[0], largest / 127)
        weight_steps = np.abs(matrix).max(axis=0) / 127
        power = len(matrix) * square * weight_steps**2 + step**2 * (matrix**2).sum(axis=0)
        power += scales.get(node.output[0], 0.0) ** 2
        roundings[node.output[0]] = np.sqrt(power / 12)
    return roundings


def _error(
    node: onnx.NodeProto,
    tensor: str,
    rounded: bool,
    outputs: Sequence[np.ndarray],
    originals: Sequence[np.ndarray],
    bias: np.ndarray | None,
    uncancelled: Any,
    rounding: np.ndarray | None,
) -> Error:
    """``bias`` and ``uncancelled`` [columns] are the constant that a layer adds, and the power its
    sums would have if no terms cancelled: rounding is proportional to that. ``rounding`` [columns]
    is what 8 bits round off (``_roundings``)."""
    operator, nan = node.op_type, float("nan")
    if any(a.shape != b.shape for a, b in zip(outputs, originals, strict=True)):
        return Error(tensor, operator, rounded, nan, nan, nan)
    axis = 1 if operator in BY_CHANNEL else -1
    actual, expected = _by_column(outputs, axis), _by_column(originals, axis)
    if actual.dtype.kind != "f":
        differ = (actual != expected).mean() if actual.size else 0.0
        return Error(tensor, operator, rounded, float(differ), float(differ), 0.0)
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    offset: Any = bias if bias is not None and len(bias) == actual.shape[1] else 0.0
    with np.errstate(invalid="ignore"):
        same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        # Minus infinity, however it is written.
        masked = (np.abs(actual) >= MASKED) & (np.abs(expected) >= MASKED)
        same |= masked & (np.sign(actual) == np.sign(expected))
        gap = np.where(same, 0.0, actual - expected)
        size = np.where(same & ~(np.abs(expected) < MASKED), 0.0, expected - offset)
    if not np.isfinite(gap).all():
        return Error(tensor, operator, rounded, nan, nan, nan)
    power, error_power = (size**2).mean(axis=0), (gap**2).mean(axis=0)
    power = np.maximum(power, RESOLUTION**2 * np.asarray(uncancelled))
    typical = power.mean()
    if not typical:
        # The original's output is all zero: any other number is an error.
        lost = float(np.sqrt(error_power.max(initial=0.0)))
        return Error(tensor, operator, rounded, lost, lost, 0.0)
    least = np.maximum(power, RESOLUTION**2 * typical)
    offset = 0.0
    if rounding is not None and len(rounding) in (1, gap.shape[1]):
        expected_gap = np.maximum(rounding, 1e-6 * np.sqrt(typical))
        offset = float((np.abs(gap.mean(axis=0)) / expected_gap).max())
    return Error(
        tensor,
        operator,
        rounded,
        lost=float(np.sqrt(error_power.mean() / typical)),
        column=float(np.sqrt((error_power / least).max())),
        gain=abs(float((gap * size).mean() / typical)),
        offset=offset,
    )


def _by_column(samples: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """All samples' numbers [rows, columns]; a single column if the samples differ in width."""
    widths = {sample.shape[axis] if sample.ndim > 1 else 1 for sample in samples}
    width = widths.pop() if len(widths) == 1 else 1
    parts = [
        (np.moveaxis(sample, axis, -1) if sample.ndim > 1 else sample).reshape(-1, max(width, 1))
        for sample in samples
    ]
    return np.concatenate(parts)


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    from converters.proof.runner import NO_SPINNING, THREADS

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry(NO_SPINNING, "0")
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
