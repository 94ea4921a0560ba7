"""Files with one planted fault each, which a proof must notice: what a faulty converter writes."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.tasks.causal_lm.gguf_reader import GgufReader


def _swap_weights(reader: Any) -> None:
    """The first layer's gate and up projections: of equal shape, so that nothing else notices."""
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    gate, up = tensors["blk.0.ffn_gate.weight"], tensors["blk.0.ffn_up.weight"]
    gate[...], up[...] = up.copy(), gate.copy()


def _permute(reader: Any) -> None:
    """The rows of queries and keys in the order for another rotary embedding."""
    for tensor in reader.tensors:
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            rows = np.arange(len(tensor.data))
            tensor.data[...] = tensor.data[rows.reshape(2, -1).T.reshape(-1)]


def _skip_layer(reader: Any) -> None:
    """What the middle layer adds to its input becomes zero."""
    outputs = (".attn_output.weight", ".ffn_down.weight")
    layers = [tensor for tensor in reader.tensors if tensor.name.endswith(outputs)]
    middle = f"blk.{len(layers) // len(outputs) // 2}."
    for tensor in layers:
        if tensor.name.startswith(middle):
            tensor.data[...] = 0  # in F16, and the scales in Q8_0


def _written(edit: Callable[[Any], None]) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        reader = GgufReader(target, "r+")
        edit(reader)
        reader.data.flush()

    return write


FAULTY_FILES: Mapping[str, Callable[[Path, Path], None]] = {
    "one layer skipped": _written(_skip_layer),
    "two weights swapped": _written(_swap_weights),
    "rotary embedding not permuted": _written(_permute),
}
