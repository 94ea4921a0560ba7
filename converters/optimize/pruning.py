"""Structured pruning: whole attention heads or feed-forward channels leave the graph.

The matrices become smaller, so that every runtime is faster; and the model is another one, which no
tolerance covers. Which go is decided by magnitude: for a channel the norms of its column and its
row multiplied, for a head the same of its block of both matrices around the attention.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from converters.errors import ConversionError, ExportFailed
from converters.optimize.prunable import Block, attention_blocks, channel_blocks
from converters.precisions.graph import drop_unused, gemm_to_matmul, load_tidy

# Widths that kernels like: what is left is a multiple of this, where the matrix is wide enough.
MULTIPLE = 32


@dataclass(frozen=True)
class Pruning:
    """The shares that leave, of the heads of each attention and the channels of each layer."""

    heads: float = 0.0
    channels: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Pruning":
        """``heads=0.25,channels=0.25``; ConversionError says what is wrong with it."""
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            try:
                shares[name] = float(number)
            except ValueError:
                shares[name] = -1.0
            if name not in ("heads", "channels") or not 0 < shares[name] < 1:
                raise ConversionError(
                    f"{part.strip()!r} is no share: write heads=0.25, channels=0.25 or both with a "
                    "comma, each between 0 and 1"
                )
        return cls(**shares)


def write_pruned(source: Path, target: Path, pruning: Pruning) -> None:
    """Write ``target`` from the FP32 graph ``source``; ExportFailed if there is nothing of the kind
    that is to be pruned, or if all of it would go."""
    model = load_tidy(source)
    gemm_to_matmul(model.graph)
    _unshare(model.graph)
    if pruning.heads:
        _prune(model.graph, attention_blocks(model.graph), pruning.heads, "attention heads")
    if pruning.channels:
        _prune(model.graph, channel_blocks(model.graph), pruning.channels, "channels")
    drop_unused(model.graph)
    # Shapes that were inferred for the wide matrices are no longer true.
    del model.graph.value_info[:]
    onnx.save(model, target)


def _unshare(graph: onnx.GraphProto) -> None:
    """Each reader of a vector gets its own: exporters keep equal ones (biases of 0) only once."""
    vectors = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 1}
    seen: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in vectors and name in seen:
                copied = graph.initializer.add()
                copied.CopyFrom(vectors[name])
                copied.name = node.input[place] = f"{name}_of_{node.name}_{place}"
            seen.add(name)


def _prune(graph: onnx.GraphProto, blocks: list[Block], share: float, what: str) -> None:
    if not blocks:
        raise ExportFailed(
            f"this graph has no {what} that can be told from its operators: they are found between "
            "matrix multiplications with constant weights, as transformers are exported. Leave "
            "--prune out, or prune the model itself and convert that"
        )
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for block in blocks:
        units = _kept(block, weights, share)
        if not len(units):
            raise ExportFailed(f"--prune leaves no {what} in {block.last}: give a smaller share")
        columns = (units[:, None] * block.size + np.arange(block.size)).reshape(-1)
        for name in block.columns:
            _cut(graph, weights, name, columns, axis=-1)
        _cut(graph, weights, block.last, columns, axis=0)


def _kept(block: Block, weights: dict[str, onnx.TensorProto], share: float) -> np.ndarray:
    """The units that stay, in their order: INT64 [kept]."""
    last = numpy_helper.to_array(weights[block.last]).astype(np.float64)
    units = last.shape[0] // block.size
    importance = _norms(last.T, block.size)
    # The matrix whose answer is multiplied by ``last``: values of an attention, or the layer.
    importance *= _norms(numpy_helper.to_array(weights[block.first]), block.size)
    gone = int(units * share)
    multiple = MULTIPLE if block.size == 1 and units >= 4 * MULTIPLE else 1
    left = -(-(units - gone) // multiple) * multiple
    return np.sort(np.argsort(-importance, kind="stable")[: min(left, units)])


def _norms(matrix: np.ndarray, size: int) -> np.ndarray:
    """The norm of each block of ``size`` columns."""
    squares = (matrix.astype(np.float64) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(squares.reshape(-1, size).sum(axis=1)))


def _cut(
    graph: onnx.GraphProto,
    weights: dict[str, onnx.TensorProto],
    name: str,
    kept: np.ndarray,
    axis: int,
) -> None:
    small = np.take(numpy_helper.to_array(weights[name]), kept, axis=axis)
    weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(small), name))
