"""FP16 weights and arithmetic, with FP32 wherever FP16 would overflow or lose the answer.

ONNX Runtime's own converter is not used: between two operators that it keeps in FP32 it casts to
FP16 and back, so that a sum of squares overflows after all; and it turns the -3.4e38 of an
attention mask into -65504, which overflows to -inf when a score of -16 is added, so that a fully
masked row becomes NaN.

Here the FP32 tensor keeps its name; its FP16 duplicate, if one is needed, is ``NAME_fp16``.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ExportFailed
from converters.precisions.graph import drop_unused, load_tidy, names_read, replace

LARGEST = float(np.finfo(np.float16).max)  # 65504
# Two masks and a score of up to 5000 can be added before FP16 overflows, and exp(-30000) is 0.
MASKED = 30000.0
# Below FP16's smallest normal number, an epsilon would become 0, and a division by it NaN.
SMALLEST = float(np.finfo(np.float16).tiny)  # 6.1e-5


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Sums, squares, exponentials and what is computed from them: they leave FP16's range, or accumulate
# its rounding. Then operators without an FP16 kernel in ONNX Runtime, not even on a GPU.
FP32_ONLY = _names(
    """Softmax LogSoftmax LayerNormalization InstanceNormalization GroupNormalization
    BatchNormalization MeanVarianceNormalization LpNormalization LpPool RMSNormalization
    ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd
    ReduceSumSquare Pow Sqrt Reciprocal Exp Log Softplus CumSum Range TopK Min Max
    NonMaxSuppression RoiAlign Upsample Cast CastLike ConstantOfShape EyeLike Constant
    Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli"""
)
# They only move numbers, and keep the precision of their input.
MOVING = _names(
    """Expand Reshape Squeeze Unsqueeze Transpose Identity Slice Gather GatherND GatherElements
    Flatten Tile"""
)
# They accept either precision, and their output is not a float.
PRECISION_AGNOSTIC = frozenset(("Shape", "Size", "IsNaN", "IsInf"))


def write_fp16(source: Path, target: Path) -> None:
    """ExportFailed if nothing can be computed in FP16. Inputs and outputs keep their types."""
    model = load_tidy(source)
    _clamp_constants(model.graph)
    if not _Fp16Pass(model).run():
        raise ExportFailed(
            "the graph has no operator that can be computed in FP16. Use --precision fp32"
        )
    onnx.save(model, target)


class _Fp16Pass:
    """One pass over the graph, in its order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = next(opset.version for opset in model.opset_import if not opset.domain)
        self.floats = _float_names(model)
        self.constants = {
            tensor.name: tensor
            for tensor in self.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self.in_fp32 = {tensor.name for tensor in self.graph.input} | set(self.constants)
        self.in_fp16: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> int:
        """Rewrite the graph; return how many operators are now computed in FP16."""
        converted = 0
        for node in self.graph.node:
            if self._stays_fp32(node):
                self._keep_fp32(node)
            else:
                self._convert(node)
                converted += node.op_type not in PRECISION_AGNOSTIC | MOVING
        for output in self.graph.output:
            self._as_fp32(output.name)
        replace(self.graph.node, self.nodes)
        # The stored types are no longer true; every reader infers them again.
        replace(self.graph.value_info, [])
        drop_unused(self.graph)
        return converted

    def _stays_fp32(self, node: onnx.NodeProto) -> bool:
        if node.op_type in FP32_ONLY or node.domain not in ("", "ai.onnx"):
            return True
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return True
        if node.op_type in PRECISION_AGNOSTIC:
            return node.input[0] not in self.in_fp16
        if not any(name in self.floats for name in node.output):
            return True
        return not _supports_fp16(node, self.opset) or self._needs_range(node)

    def _needs_range(self, node: onnx.NodeProto) -> bool:
        inputs = list(node.input)
        if node.op_type in MOVING:
            return self._only_fp32(inputs[0])
        if node.op_type == "Mul" and inputs[0] == inputs[1]:  # a square
            return True
        if node.op_type == "Div" and self._only_fp32(inputs[1]):  # by a sum, a norm, a deviation
            return True
        return any(_is_tiny(self.constants.get(name)) for name in inputs)

    def _only_fp32(self, name: str) -> bool:
        computed = name in self.floats and name not in self.constants
        return computed and name not in self.in_fp16

    def _keep_fp32(self, node: onnx.NodeProto) -> None:
        for name in sorted(names_read(node)):
            self._as_fp32(name)
        self.nodes.append(node)
        self.in_fp32.update(node.output)

    def _convert(self, node: onnx.NodeProto) -> None:
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        for index, name in enumerate(node.input):
            if name not in self.floats:
                continue
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            if "tensor(float16)" in formal.types:
                node.input[index] = self._as_fp16(name)
            else:
                self._as_fp32(name)
        for index, name in enumerate(node.output):
            if name in self.floats:
                node.output[index] = _duplicate(name)
                self.in_fp16.add(name)
        self.nodes.append(node)

    def _as_fp16(self, name: str) -> str:
        if name not in self.in_fp16:
            self.in_fp16.add(name)
            if name in self.constants:
                values = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                self.graph.initializer.append(numpy_helper.from_array(values, _duplicate(name)))
            else:
                self._cast(name, _duplicate(name), TensorProto.FLOAT16)
        return _duplicate(name)

    def _as_fp32(self, name: str) -> None:
        if name in self.in_fp16 and name not in self.in_fp32:
            self.in_fp32.add(name)
            self._cast(_duplicate(name), name, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, dtype: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], f"to_{target}", to=dtype))


def _duplicate(name: str) -> str:
    return f"{name}_fp16"


def _float_names(model: onnx.ModelProto) -> set[str]:
    """Every FP32 tensor of the graph, by shape inference."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    names = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _supports_fp16(node: onnx.NodeProto, opset: int) -> bool:
    """Whether ONNX defines this operator for FP16 at all."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    return any("tensor(float16)" in formal.types for formal in schema.outputs)


def _is_tiny(tensor: onnx.TensorProto | None) -> bool:
    if tensor is None or np.prod(tensor.dims) != 1:
        return False
    return bool(0 < abs(numpy_helper.to_array(tensor).item()) < SMALLEST)


def _clamp_constants(graph: onnx.GraphProto) -> None:
    """Finite numbers beyond FP16 are masks ("minus infinity"): they become +-30000."""
    fill_values = [
        attribute.t
        for node in graph.node
        if node.op_type == "ConstantOfShape"
        for attribute in node.attribute
    ]
    for tensor in [*graph.initializer, *fill_values]:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        beyond = np.isfinite(values) & (np.abs(values) > LARGEST)
        if beyond.any():
            clamped = np.where(beyond, np.sign(values) * np.float32(MASKED), values)
            tensor.CopyFrom(numpy_helper.from_array(clamped.astype(np.float32), tensor.name))
