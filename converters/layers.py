"""A variant compared with its FP32 graph layer by layer: what answers at the end cannot tell.

Rounding adds up on the way through a graph, and in a small model, or one whose answers hardly vary,
what comes out is as far from the original as with two hidden units swapped. One layer's own
rounding is the same in every model: of 8-bit weights under 1 % of what the layer gives. So each
operator of the FP32 graph is asked with *the variant's own* inputs, and its answer is compared with
the variant's: nothing has added up, and whatever the variant computes otherwise stands out.

Both graphs call a tensor by the same name (each way of writing a variant keeps the names of what it
rewrites); what only one of them has is computed on the way from the tensors that both have. Every
answer of the graph is reached so, and a variant within these limits differs from the original by
rounding alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ExportFailed
from converters.precisions.graph import gemm_to_matmul, load_tidy, names_read, replace
from converters.precisions.half import MASKED, MOVING
from converters.proof import Check, at_least, at_most
from converters.tolerance import LayerLimits

Feed = Mapping[str, np.ndarray]
# What the quantisers rewrite.
ROUNDED = ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Attention")
BY_CHANNEL = ("Conv", "ConvTranspose", "BatchNormalization", "MaxPool", "AveragePool")
# They only move numbers, or look at a tensor's shape: what reads them is compared instead.
PASSED_ON = MOVING - {"Gather"} | {"Shape", "Size", "Constant", "ConstantOfShape", "Cast"}
QUANTIZED = "_quantized"  # ONNX Runtime's ending of the names of weights in 8 bits
HALF, GIVEN = "_fp16", "__given"
# A unit that answers less than this share of a typical one is measured as though it did so much.
RESOLUTION = 0.25


@dataclass(frozen=True)
class Error:
    """Of one tensor, the error as a share of the original's answers: of all of it, and of the worst
    unit (``column``); and by how much less, or more, it answers."""

    tensor: str
    kind: str
    rounded: bool
    lost: float
    column: float
    gain: float


class Layers:
    """The FP32 graph in ``source``, and what it is asked: ``feeds``, a few of its inputs."""

    def __init__(self, source: Path, feeds: Sequence[Feed]) -> None:
        self._source, self._feeds = source, feeds
        self._reference: onnx.ModelProto | None
        try:
            self._reference = load_tidy(source)
        except ExportFailed:  # trees, whose answers are exact or wrong
            self._reference = None
        self._without_gemm: onnx.ModelProto | None = None  # made where a variant is written so
        # Loading takes longer than asking: for variants that have the same tensors it is done once.
        self._asked: dict[tuple[str, ...], Any] = {}

    def checks(self, engine: Path, limits: LayerLimits) -> list[Check]:
        """Of ``engine``, a way of writing the graph; none where the graph is made of trees, or
        cannot be taken apart (more than a file of 2 GiB)."""
        if self._reference is None:
            return []
        variant = onnx.load(engine)
        try:
            errors = self.errors(variant)
        except Exception:
            try:
                self.errors(self._reference)
            except Exception:  # ONNX Runtime's errors share no base class
                return []
            raise
        other = [
            *other_weights(self._reference.graph, variant.graph),
            *other_rounded_weights(
                self._reference.graph, self._tidied(variant).graph, variant.graph
            ),
        ]
        named = ", ".join(other[:3])
        return [
            *_checks(errors, limits),
            at_most("layers: weights that are not the original's", len(other), 0, named),
        ]

    def _tidied(self, variant: onnx.ModelProto) -> onnx.ModelProto:
        """The FP32 graph, with each Gemm as a MatMul and an Add where the variant has it so."""
        assert self._reference is not None  # noqa: S101 - both callers have looked
        if any(node.op_type == "Gemm" for node in variant.graph.node):
            return self._reference
        if self._without_gemm is None:
            self._without_gemm = _copy(self._reference)
            gemm_to_matmul(self._without_gemm.graph)
        return self._without_gemm

    def errors(self, variant: onnx.ModelProto) -> list[Error]:
        """Of every tensor that both graphs have."""
        if self._reference is None:
            return []
        reference = self._tidied(variant)
        shared = _shared(reference.graph, variant.graph)
        watched = _session(_watched(variant, list(shared.values())))
        got: dict[str, list[np.ndarray]] = {}
        wanted: dict[str, list[np.ndarray]] = {}
        for feed in self._feeds:
            answers = watched.run(list(shared.values()), dict(feed))
            own = {
                # A tensor in FP16 of its own stands for the original's in FP32.
                name: values.astype(np.float32) if shared[name] == name + HALF else values
                for name, values in zip(shared, answers, strict=True)
                if isinstance(values, np.ndarray)
            }
            names = tuple(own)
            if names not in self._asked:
                self._asked[names] = _session(_asked_with(reference, own))
            given = {f"{name}{GIVEN}": values for name, values in own.items()}
            told = self._asked[names].run(list(names), {**feed, **given})
            for name, values in zip(names, told, strict=True):
                got.setdefault(name, []).append(own[name])
                wanted.setdefault(name, []).append(values)
        rounded = _rounded(reference.graph, variant.graph, set(shared))
        makers = {name: node for node in reference.graph.node for name in node.output}
        biases = _biases(reference.graph, rounded)
        fed = {name: [feed[name] for feed in self._feeds] for name in self._feeds[0]}
        uncancelled = _uncancelled(reference.graph, {**fed, **got})
        return [
            _error(
                *(makers[name], name, name in rounded, got[name], wanted[name], biases.get(name)),
                uncancelled.get(name, 0.0),
            )
            for name in got
        ]


def _checks(errors: Sequence[Error], limits: LayerLimits) -> Iterator[Check]:
    exact = [each for each in errors if not each.rounded]
    rounded = [each for each in errors if each.rounded]
    for title, measured, found, limit in (
        ("layers: error of an operator that is not rounded", "column", exact, limits.exact),
        ("layers: error of a layer, of what it gives", "lost", rounded, limits.lost),
        ("layers: the same of the worst unit", "column", rounded, limits.column),
        ("layers: a layer gives less or more than the original's", "gain", rounded, limits.gain),
    ):
        if found:
            # NaN is the worst.
            worst = max(found, key=lambda each: np.nan_to_num(getattr(each, measured), nan=np.inf))
            yield at_most(title, getattr(worst, measured), limit, f"{worst.kind} {worst.tensor}")
    yield at_least("layers: tensors compared", len(errors), 1)


def other_weights(reference: onnx.GraphProto, variant: onnx.GraphProto) -> Iterator[str]:
    """The names of the constants that a variant has under their own name, and with other numbers:
    rows of a table that no sample reads are compared here."""
    own = {tensor.name: tensor for tensor in variant.initializer}
    for tensor in reference.initializer:
        for name in (tensor.name, f"{tensor.name}{HALF}"):
            if name in own and not _same_constant(tensor, own[name]):
                yield name


def other_rounded_weights(
    reference: onnx.GraphProto, tidied: onnx.GraphProto, variant: onnx.GraphProto
) -> Iterator[str]:
    """The names of the weights in 8 bits that are further from the original's than rounding goes:
    half a step of their scale. Whatever the samples are, two rows or columns that were swapped are
    seen here. ``tidied`` is the reference with its Gemms as the variant has them. ``int8-rows``
    scales its weights by what the samples are like: of it none is read.
    """
    tensors = [*reference.initializer, *tidied.initializer]
    original = {each.name: each for each in tensors}
    constants = {each.name: numpy_helper.to_array(each) for each in variant.initializer}
    makers = {name: node for node in tidied.node for name in node.output}
    # ONNX Runtime writes such a Gemm as a MatMul.
    turned = {n.input[1] for n in reference.node if n.op_type == "Gemm" and _attribute(n, "transB")}
    for node in variant.node:
        name, read, axis = "", list(node.input), 0
        if node.op_type == "DequantizeLinear":
            name = node.input[0].removesuffix(QUANTIZED)
            axis = _attribute(node, "axis", 1)
        elif node.op_type == "MatMulInteger" and len(node.input) == 4:
            name = node.input[1].removesuffix(QUANTIZED)
            read, axis = [node.input[1], f"{name}_scale", node.input[3]], -1
        elif node.op_type == "MatMulNBits":
            maker = makers.get(node.output[0])
            name, read = (maker.input[1] if maker else ""), read[1:4]
        if name not in original or any(each not in constants for each in read):
            continue
        weights = numpy_helper.to_array(original[name]).astype(np.float64)
        if node.op_type == "MatMulInteger" and name in turned:
            weights = weights.T
        parts = [constants[each] for each in read]
        if node.op_type == "MatMulNBits":
            rounded, step = _of_blocks(node, parts, weights.shape)
            allowed: Any = 1.02 * step  # its zero points are rounded too
        else:
            rounded, step = _of_channels(parts, weights.shape, axis)
            allowed = 0.51 * step
        # The scales themselves are FP32.
        if rounded is None or (np.abs(rounded - weights) > allowed + 1e-5 * np.abs(weights)).any():
            yield name


def _of_channels(
    parts: Sequence[np.ndarray], shape: tuple[int, ...], axis: int
) -> tuple[np.ndarray | None, Any]:
    """The weights that were meant, FP64, and their steps; ``parts`` are the rounded ones, their
    scales and their zero points, one each or one a channel of ``axis``."""
    rounded, *by_channel = (part.astype(np.float64) for part in parts)
    if rounded.shape != shape:
        return None, 0.0
    along = [1] * len(shape)
    if shape and by_channel[0].size > 1:
        along[axis] = shape[axis]
    scale, zero = (part.reshape(along) for part in (*by_channel, np.zeros_like(by_channel[0]))[:2])
    return (rounded - zero) * scale, scale


def _of_blocks(
    node: onnx.NodeProto, parts: Sequence[np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray | None, Any]:
    """As ``_of_channels``, of MatMulNBits: its weights [N, blocks, bytes] in 8 bits are turned."""
    rows, columns = _attribute(node, "K"), _attribute(node, "N")
    if shape != (rows, columns) or _attribute(node, "bits") != 8:
        return None, 0.0
    rounded = parts[0].reshape(columns, -1).astype(np.float64)
    blocks = -(-rows // _attribute(node, "block_size"))
    width = rounded.shape[1] // blocks
    scale = np.repeat(parts[1].reshape(columns, blocks).astype(np.float64), width, axis=1)
    zero: Any = 128.0
    if len(parts) > 2:
        zero = np.repeat(parts[2].reshape(columns, blocks).astype(np.float64), width, axis=1)
    weights = ((rounded - zero) * scale)[:, :rows]
    return weights.T, scale[:, :rows].T


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


def _same_constant(original: onnx.TensorProto, tensor: onnx.TensorProto) -> bool:
    if original.raw_data and original.raw_data == tensor.raw_data:
        return original.dims == tensor.dims and original.data_type == tensor.data_type
    wanted, got = numpy_helper.to_array(original), numpy_helper.to_array(tensor)
    if wanted.dtype.kind != "f":
        return np.array_equal(wanted, got)
    if wanted.shape != got.shape:
        return False
    limit = float(np.finfo(np.float16).max)
    if got.dtype == np.float16:
        with np.errstate(over="ignore"):
            wanted = wanted.astype(np.float16)
    wanted, got = (
        np.nan_to_num(each.astype(np.float64), posinf=limit, neginf=-limit)
        for each in (wanted, got)
    )
    masked = (
        (np.abs(wanted) >= MASKED) & (np.abs(got) >= MASKED) & (np.sign(wanted) == np.sign(got))
    )
    return bool(((wanted == got) | masked).all())


def _shared(reference: onnx.GraphProto, variant: onnx.GraphProto) -> dict[str, str]:
    """The tensors that both graphs compute: the original's names, and the variant's."""
    made = {name: node.op_type for node in variant.node for name in node.output if name}
    answers = {value.name for value in reference.output}
    clipped = _clipped(variant)
    shared = {}
    for node in reference.node:
        for name in node.output:
            if node.op_type in PASSED_ON and name not in answers:
                continue
            if f"{name}{HALF}" in made:
                shared[name] = f"{name}{HALF}"
            elif name and name in made:
                other = node.op_type in ("Relu", "Clip") and made[name] != node.op_type
                shared[name] = clipped.get(name, name) if other else name
    return shared


def _clipped(variant: onnx.GraphProto) -> dict[str, str]:
    """Where a tensor is after it was in 8 bits, by its name before: whose range does what a Relu or
    a Clip did, which is then gone."""
    eight = {
        node.output[0]: node.input[0] for node in variant.node if node.op_type == "QuantizeLinear"
    }
    return {
        eight[node.input[0]]: node.output[0]
        for node in variant.node
        if node.op_type == "DequantizeLinear" and node.input[0] in eight
    }


def _watched(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The graph with these tensors among its answers."""
    watched = _copy(model)
    known = {value.name for value in watched.graph.output}
    # ONNX Runtime infers their types.
    watched.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    return watched


def _asked_with(reference: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with each of these tensors read from an input, and computed beside it."""
    asked = _watched(reference, given)
    for node in asked.graph.node:
        node.input[:] = [f"{name}{GIVEN}" if name in given else name for name in node.input]
    for name, values in given.items():
        kind = (
            TensorProto.STRING
            if values.dtype == object
            else helper.np_dtype_to_tensor_dtype(values.dtype)
        )
        value = helper.make_tensor_value_info(f"{name}{GIVEN}", kind, None)
        asked.graph.input.append(value)
    # Shapes may be those of other samples.
    replace(asked.graph.value_info, [])
    return asked


def _rounded(reference: onnx.GraphProto, variant: onnx.GraphProto, shared: set[str]) -> set[str]:
    """The tensors on whose way from others that both have is a layer, or a tensor in 8 bits."""
    eight = {node.input[0] for node in variant.node if node.op_type == "QuantizeLinear"}
    found: set[str] = set()
    for node in reference.node:
        # What both have is given, and so nothing of its own way counts.
        passed_on = {name for name in names_read(node) if name in found and name not in shared}
        if node.op_type in ROUNDED or passed_on or eight.intersection(names_read(node)):
            found.update(node.output)
    return found


def _biases(graph: onnx.GraphProto, layers: set[str]) -> dict[str, np.ndarray]:
    """By a layer's answer, the constant [columns] that is added to what is multiplied."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        added = node.input if node.op_type == "Add" else node.input[2:3]
        if node.op_type in ("Add", "Gemm", "Conv", "ConvTranspose") and node.output[0] in layers:
            for name in added:
                if name in constants:
                    values = numpy_helper.to_array(constants[name])
                    found[node.output[0]] = values.reshape(-1).astype(np.float64)
    return found


def _uncancelled(
    graph: onnx.GraphProto, inputs: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, np.ndarray]:
    """By a product's answer, FP64 [columns]: the sum of the squares of what it adds up."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] not in inputs:
            continue
        weights = constants.get(node.input[1])
        if weights is None or len(weights.dims) != 2 or weights.data_type != TensorProto.FLOAT:
            continue
        turned = any(each.name == "transB" and each.i for each in node.attribute)
        matrix = numpy_helper.to_array(weights).astype(np.float64)
        matrix = matrix.T if turned else matrix
        rows = _by_column(inputs[node.input[0]], -1).astype(np.float64)
        if rows.shape[1] == len(matrix):
            found[node.output[0]] = (rows**2).mean(axis=0) @ matrix**2
    return found


def _error(
    node: onnx.NodeProto,
    tensor: str,
    rounded: bool,
    got: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    bias: np.ndarray | None,
    uncancelled: Any,
) -> Error:
    """``bias`` and ``uncancelled`` [columns] are the constant that a layer adds, and the power that
    its sums would have if nothing in them cancelled out: what rounding goes by."""
    kind, nan = node.op_type, float("nan")
    if any(mine.shape != theirs.shape for mine, theirs in zip(got, wanted, strict=True)):
        return Error(tensor, kind, rounded, nan, nan, nan)
    axis = 1 if kind in BY_CHANNEL else -1
    mine, theirs = (_by_column(each, axis) for each in (got, wanted))
    if mine.dtype.kind != "f":
        differ = (mine != theirs).mean() if mine.size else 0.0
        return Error(tensor, kind, rounded, float(differ), float(differ), 0.0)
    mine, theirs = (each.astype(np.float64) for each in (mine, theirs))
    offset: Any = bias if bias is not None and len(bias) == mine.shape[1] else 0.0
    with np.errstate(invalid="ignore"):
        same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
        # Minus infinity, however it is written.
        masked = (np.abs(mine) >= MASKED) & (np.abs(theirs) >= MASKED)
        same |= masked & (np.sign(mine) == np.sign(theirs))
        gap = np.where(same, 0.0, mine - theirs)
        size = np.where(same & ~(np.abs(theirs) < MASKED), 0.0, theirs - offset)
    if not np.isfinite(gap).all():
        return Error(tensor, kind, rounded, nan, nan, nan)
    power, wrong = (size**2).mean(axis=0), (gap**2).mean(axis=0)
    power = np.maximum(power, RESOLUTION**2 * np.asarray(uncancelled))
    typical = power.mean()
    if not typical:
        # The original gives nothing at all: nothing may come.
        lost = float(np.sqrt(wrong.max(initial=0.0)))
        return Error(tensor, kind, rounded, lost, lost, 0.0)
    least = np.maximum(power, RESOLUTION**2 * typical)
    return Error(
        tensor,
        kind,
        rounded,
        lost=float(np.sqrt(wrong.mean() / typical)),
        column=float(np.sqrt((wrong / least).max())),
        gain=abs(float((gap * size).mean() / typical)),
    )


def _by_column(samples: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """All samples' numbers [rows, columns]; one column where samples have unlike many."""
    widths = {each.shape[axis] if each.ndim > 1 else 1 for each in samples}
    width = widths.pop() if len(widths) == 1 else 1
    parts = [
        (np.moveaxis(each, axis, -1) if each.ndim > 1 else each).reshape(-1, max(width, 1))
        for each in samples
    ]
    return np.concatenate(parts)


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    from converters.runner import NO_SPINNING, THREADS

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
