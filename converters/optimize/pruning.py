"""Structured pruning: whole attention heads or feed-forward channels are removed from the graph.

The matrices become smaller, which makes every runtime faster; but the result is a different model,
which no tolerance covers. Magnitude decides which units are removed: for a channel the product of
the norms of its column and its row, for a head the same of its blocks in both matrices around the
attention.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from converters.errors import ConversionError, ExportFailed
from converters.optimize.prunable import Block, attention_blocks, channel_blocks
from converters.precisions.graph import drop_unused, gemm_to_matmul, load_tidy

# Kernels prefer such widths: what remains of a wide enough matrix is a multiple of this.
MULTIPLE = 32


@dataclass(frozen=True)
class Pruning:
    """The shares to remove of the heads of each attention and the channels of each layer."""

    heads: float = 0.0
    channels: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Pruning":
        """Parse ``heads=0.25,channels=0.25``; ConversionError says how to write it."""
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            try:
                shares[name] = float(number)
            except ValueError:
                shares[name] = -1.0
            if name not in ("heads", "channels") or not 0 < shares[name] < 1:
                raise ConversionError(
                    f"{part.strip()!r} is not a share: write heads=0.25, channels=0.25 or both "
                    "with a comma, each between 0 and 1"
                )
        return cls(**shares)


def write_pruned(source: Path, target: Path, pruning: Pruning) -> None:
    """Write ``target`` from the FP32 graph ``source``; ExportFailed if it has nothing of the kind
    to be pruned, or if nothing would remain."""
    model = load_tidy(source)
    gemm_to_matmul(model.graph)
    _unshare(model.graph)
    if pruning.heads:
        _prune(model.graph, attention_blocks(model.graph), pruning.heads, "attention heads")
    if pruning.channels:
        _prune(model.graph, channel_blocks(model.graph), pruning.channels, "channels")
    drop_unused(model.graph)
    # Shapes that were inferred for the full matrices are no longer true.
    del model.graph.value_info[:]
    onnx.save(model, target)


def _unshare(graph: onnx.GraphProto) -> None:
    """Give each reader of a vector its own: exporters store equal ones (biases of 0) only once."""
    vectors = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 1}
    seen: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in vectors and name in seen:
                copy = graph.initializer.add()
                copy.CopyFrom(vectors[name])
                copy.name = node.input[index] = f"{name}_of_{node.name}_{index}"
            seen.add(name)


def _prune(graph: onnx.GraphProto, blocks: list[Block], share: float, what: str) -> None:
    if not blocks:
        raise ExportFailed(
            f"no {what} can be identified in this graph: they are searched between matrix "
            "multiplications with constant weights, as transformers are exported. Leave out "
            "--prune, or prune the model itself and convert that"
        )
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for block in blocks:
        units = _remaining(block, weights, share)
        if not len(units):
            raise ExportFailed(f"--prune leaves no {what} in {block.last}: give a smaller share")
        columns = (units[:, None] * block.size + np.arange(block.size)).reshape(-1)
        for name in block.columns:
            _cut(graph, weights, name, columns, axis=-1)
        _cut(graph, weights, block.last, columns, axis=0)


def _remaining(block: Block, weights: dict[str, onnx.TensorProto], share: float) -> np.ndarray:
    """The units that remain, in their order: INT64 [remaining]."""
    last = numpy_helper.to_array(weights[block.last]).astype(np.float64)
    units = last.shape[0] // block.size
    importance = _norms(last.T, block.size)
    # The matrix whose output ``last`` multiplies: the values of an attention, or the layer.
    importance *= _norms(numpy_helper.to_array(weights[block.first]), block.size)
    removed = int(units * share)
    multiple = MULTIPLE if block.size == 1 and units >= 4 * MULTIPLE else 1
    remaining = -(-(units - removed) // multiple) * multiple
    return np.sort(np.argsort(-importance, kind="stable")[: min(remaining, units)])


def _norms(matrix: np.ndarray, size: int) -> np.ndarray:
    """The norm of each block of ``size`` columns."""
    squares = (matrix.astype(np.float64) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(squares.reshape(-1, size).sum(axis=1)))


def _cut(
    graph: onnx.GraphProto,
    weights: dict[str, onnx.TensorProto],
    name: str,
    indices: np.ndarray,
    axis: int,
) -> None:
    pruned = np.take(numpy_helper.to_array(weights[name]), indices, axis=axis)
    weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(pruned), name))
