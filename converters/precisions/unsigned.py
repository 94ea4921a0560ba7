"""8-bit weights, unsigned with zero point 128 instead of signed with 0: the same numbers.

A CPU without VNNI adds products of unsigned activations and *signed* weights in pairs of 16 bits
(``vpmaddubsw``), which overflow (2 * 255 * 127): the answers are then silently wrong. For unsigned
weights ONNX Runtime's kernels are exact on every CPU, but do not use VNNI: the backend that serves
a graph shifts the weights back where the CPU has it (``ort_cpu.py``).
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

CENTRE = 128
# By operator: the input indices of the weights and of their zero point.
WEIGHTS = {
    "DequantizeLinear": [(0, 2)],
    "MatMulInteger": [(1, 3)],
    "DynamicQuantizeLSTM": [(1, 9), (2, 11)],
    "QAttention": [(1, 7)],
}


def unsigned_weights(graph: onnx.GraphProto) -> None:
    """Shift each signed 8-bit weight of the graph, and its zero point with it."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for weight, zero in WEIGHTS.get(node.op_type, []):
            names = [*node.input[weight : weight + 1], *node.input[zero : zero + 1]]
            tensors = [constants[name] for name in names if name in constants]
            if len(tensors) == 2:
                for tensor in tensors:
                    _shift(tensor)


def _shift(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.INT8:  # otherwise already shifted for another reader
        values = numpy_helper.to_array(tensor).astype(np.int16) + CENTRE
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.uint8), tensor.name))
