"""An ONNX graph opened so that the CPU is fast at it. The answers are those of the file as it is.

Two things that ONNX Runtime 1.31 does not do by itself, with what they take of MiniLM for 8
rows of 13 tokens, on one core of a Xeon with AMX (docs/performance.md):

- 8-bit weights are stored unsigned, because signed ones are wrong on a CPU without VNNI
  (``converters/precisions/unsigned.py``). With VNNI they are exact, and multiplied in a quarter of
  the time: 4.8 ms instead of 18.3. So there the weights are shifted while the graph is opened, and
  their zero points with them.
- A sum and a norm merged into one operator are computed number after number, with a division for
  each: 4.1 ms. The norm alone is computed in vectors: 0.5.

This module is also used outside Triton, to measure a graph as it will be served, so it imports
nothing of the backend.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

CPU = "CPUExecutionProvider"
SLOW_FUSIONS = ["SkipLayerNormFusion"]
# By operator: the input indices of 8-bit weights and of their zero point.
WEIGHTS = {
    "DequantizeLinear": [(0, 2)],
    "DynamicQuantizeLSTM": [(1, 9), (2, 11)],
    "MatMulInteger": [(1, 3)],
    "MatMulIntegerToFloat": [(1, 5)],
    "QAttention": [(1, 7)],
    "QGemm": [(3, 5)],
    "QLinearConv": [(3, 5)],
    "QLinearMatMul": [(3, 5)],
}
# The nodes come first in a file, so a graph without 8-bit operators need not be parsed.
HEAD_BYTES = 4 << 20
# They take weights as their second input, and have kernels for 8 bits.
PRODUCTS = {"Conv", "Gemm", "MatMul"}
DOMAINS = {"", "ai.onnx", "com.microsoft"}
# Its signed weights must have the zero point 0.
CENTRED = {"DynamicQuantizeLSTM"}
CENTRE = 128
EXTERNAL = 1  # TensorProto.EXTERNAL


def open_on_cpu(file: Path, options: Any) -> Any:
    """An ``InferenceSession`` of the file on the CPU; raises what ONNX Runtime raises."""
    with _fastest(file) as path:
        if path != file:
            # Only speed depends on it: a graph that cannot be opened so (data files beside it that
            # its subgraphs read, say) is opened as it is.
            with contextlib.suppress(Exception):
                return _open(path, options)
    return _open(file, options)


def _open(file: Path, options: Any) -> Any:
    return ort.InferenceSession(
        str(file),
        options,
        providers=[CPU],
        disabled_optimizers=SLOW_FUSIONS,
        enable_fallback=0,
    )


@contextlib.contextmanager
def _fastest(file: Path) -> Iterator[Path]:
    """The file, or one in memory whose 8-bit weights are signed."""
    shifted = _with_signed_weights(file) if multiplies_signed() else None
    if shifted is None:
        yield file
        return
    descriptor = os.memfd_create("model.onnx")
    with os.fdopen(descriptor, "wb") as memory:
        memory.write(shifted)
        memory.flush()
        del shifted
        yield Path(f"/proc/self/fd/{descriptor}")


@cache
def multiplies_signed() -> bool:
    """Whether this CPU adds products of unsigned and signed bytes in 32 bits, without overflow."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return not {"avx512_vnni", "avx_vnni"}.isdisjoint(line.split())
    return False


def _with_signed_weights(file: Path) -> bytes | None:
    """The graph with its unsigned 8-bit weights shifted by 128; None if it has none, or is not an
    ONNX file, which ONNX Runtime has words for."""
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        if not any(operator.encode() in head for operator in WEIGHTS):
            return None
        import onnx
        from google.protobuf.message import DecodeError
    except (OSError, ImportError):
        return None
    try:
        model = onnx.load_model_from_string(file.read_bytes())  # whatever the file's name ends in
    except DecodeError:
        return None
    if model.functions:
        return None  # they may have the names of operators, and tensors of their own
    unsigned = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.UINT8 and tensor.data_location != EXTERNAL
    }
    values = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in unsigned.items()}
    weights = _weights(model.graph, values)
    for name in weights:
        signed = (values[name] ^ np.uint8(CENTRE)).view(np.int8)
        unsigned[name].CopyFrom(onnx.numpy_helper.from_array(signed, name))
    return bytes(model.SerializeToString()) if weights else None


def _weights(graph: Any, unsigned: Mapping[str, np.ndarray]) -> set[str]:
    """Those constants that are weights, or the zero point of weights, to whoever reads them.

    All weights and zero points of a node are among them, or none is.
    """
    readers = Counter(_names_read(graph))
    elsewhere = set(_names_read(graph, as_weights=False))
    groups: list[set[str]] = []
    uses: Counter[str] = Counter()
    for node in graph.node:
        pairs = WEIGHTS.get(node.op_type, []) if node.domain in DOMAINS else []
        names = [node.input[i] if i < len(node.input) else "" for pair in pairs for i in pair]
        if node.op_type == "DequantizeLinear" and node.output[0] in elsewhere:
            continue
        zeros = names[1::2]
        if node.op_type in CENTRED and any(np.any(unsigned.get(z, 0) != CENTRE) for z in zeros):
            continue
        groups.append(set(names))
        uses.update(names)
    found = {name for name, count in uses.items() if name in unsigned and count == readers[name]}
    while apart := {name for group in groups if not group <= found for name in group} & found:
        found -= apart
    return found


def _names_read(graph: Any, *, as_weights: bool = True) -> Iterator[str]:
    """The name of each tensor that is read, once for each reader: by nodes, those of subgraphs too,
    and by callers. ``as_weights=False``: without those that a product takes as its weights."""
    for value in (*graph.input, *graph.output):
        yield value.name
    for node in graph.node:
        for index, name in enumerate(node.input):
            if as_weights or index != 1 or node.op_type not in PRODUCTS:
                yield name
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names_read(inner, as_weights=as_weights)
