"""FP16 weights and arithmetic, with FP32 wherever FP16 would overflow, vanish or lose the answer.

ONNX Runtime's own converter is not used: between two operators that it keeps in FP32 it goes
through FP16 and back, so that a sum of squares overflows after all; and it turns the -3.4e38 of an
attention mask into -65504, to which a score of -16 may be added only once before it is -inf, and a
row that is masked throughout becomes NaN.

Here a tensor keeps its name in FP32; its FP16 duplicate, where one is needed, is ``NAME_fp16``.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ExportFailed
from converters.precisions.graph import drop_unused, load_tidy, names_read, replace

LARGEST = float(np.finfo(np.float16).max)  # 65504
# Two masks and a score up to 5000 may be added before FP16 overflows, and exp(-30000) is 0.
MASKED = 30000.0
# Below FP16's smallest normal number: an epsilon that would become 0, and its division NaN.
SMALLEST = float(np.finfo(np.float16).tiny)  # 6.1e-5


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Sums, squares, exponentials and what is made of them: they leave FP16's range, or add up its
# rounding. Then what ONNX Runtime has no FP16 kernel for, on a GPU either.
KEPT = _names(
    """Softmax LogSoftmax LayerNormalization InstanceNormalization GroupNormalization
    BatchNormalization MeanVarianceNormalization LpNormalization LpPool RMSNormalization
    ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd
    ReduceSumSquare Pow Sqrt Reciprocal Exp Log Softplus CumSum Range TopK Min Max
    NonMaxSuppression RoiAlign Upsample Cast CastLike ConstantOfShape EyeLike Constant
    Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli"""
)
# They only move numbers, and stay in the precision of what they move.
MOVING = _names(
    """Expand Reshape Squeeze Unsqueeze Transpose Identity Slice Gather GatherND GatherElements
    Flatten Tile"""
)
# They take either precision as it comes, and answer with something that is no float.
LOOKING = frozenset(("Shape", "Size", "IsNaN", "IsInf"))


def write_fp16(source: Path, target: Path) -> None:
    """ExportFailed where nothing can be computed in FP16. Inputs and outputs keep their types."""
    model = load_tidy(source)
    _clamp_constants(model.graph)
    if not _Halving(model).run():
        raise ExportFailed(
            "the graph has no operator that can be computed in FP16. Use --precision fp32"
        )
    onnx.save(model, target)


class _Halving:
    """One pass over the graph, in its order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = next(each.version for each in model.opset_import if not each.domain)
        self.floats = _float_names(model)
        self.constants = {
            tensor.name: tensor
            for tensor in self.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self.full = {tensor.name for tensor in self.graph.input} | set(self.constants)
        self.halves: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> int:
        """Rewrite the graph; how many operators are computed in FP16 now."""
        halved = 0
        for node in self.graph.node:
            if self._stays(node):
                self._keep(node)
            else:
                self._halve(node)
                halved += node.op_type not in LOOKING | MOVING
        for output in self.graph.output:
            self._as_full(output.name)
        replace(self.graph.node, self.nodes)
        # Their types are no longer true; every reader infers them anew.
        replace(self.graph.value_info, [])
        drop_unused(self.graph)
        return halved

    def _stays(self, node: onnx.NodeProto) -> bool:
        if node.op_type in KEPT or node.domain not in ("", "ai.onnx"):
            return True
        if any(each.HasField("g") or each.graphs for each in node.attribute):
            return True
        if node.op_type in LOOKING:
            return node.input[0] not in self.halves
        if not any(name in self.floats for name in node.output):
            return True
        return not _takes_half(node, self.opset) or self._needs_range(node)

    def _needs_range(self, node: onnx.NodeProto) -> bool:
        inputs = list(node.input)
        if node.op_type in MOVING:
            return self._only_full(inputs[0])
        if node.op_type == "Mul" and inputs[0] == inputs[1]:  # a square
            return True
        if node.op_type == "Div" and self._only_full(inputs[1]):  # by a sum, a norm, a deviation
            return True
        return any(_tiny(self.constants.get(name)) for name in inputs)

    def _only_full(self, name: str) -> bool:
        computed = name in self.floats and name not in self.constants
        return computed and name not in self.halves

    def _keep(self, node: onnx.NodeProto) -> None:
        for name in sorted(names_read(node)):
            self._as_full(name)
        self.nodes.append(node)
        self.full.update(node.output)

    def _halve(self, node: onnx.NodeProto) -> None:
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        for index, name in enumerate(node.input):
            if name not in self.floats:
                continue
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            if "tensor(float16)" in formal.types:
                node.input[index] = self._as_half(name)
            else:
                self._as_full(name)
        for index, name in enumerate(node.output):
            if name in self.floats:
                node.output[index] = _duplicate(name)
                self.halves.add(name)
        self.nodes.append(node)

    def _as_half(self, name: str) -> str:
        if name not in self.halves:
            self.halves.add(name)
            if name in self.constants:
                small = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                self.graph.initializer.append(numpy_helper.from_array(small, _duplicate(name)))
            else:
                self._cast(name, _duplicate(name), TensorProto.FLOAT16)
        return _duplicate(name)

    def _as_full(self, name: str) -> None:
        if name in self.halves and name not in self.full:
            self.full.add(name)
            self._cast(_duplicate(name), name, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], f"to_{target}", to=kind))


def _duplicate(name: str) -> str:
    return f"{name}_fp16"


def _float_names(model: onnx.ModelProto) -> set[str]:
    """Every FP32 tensor of the graph, by shape inference."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = [*graph.value_info, *graph.input, *graph.output]
    names = {each.name for each in typed if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT}


def _takes_half(node: onnx.NodeProto, opset: int) -> bool:
    """Whether ONNX defines this operator for FP16 at all."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    return any("tensor(float16)" in formal.types for formal in schema.outputs)


def _tiny(tensor: onnx.TensorProto | None) -> bool:
    if tensor is None or np.prod(tensor.dims) != 1:
        return False
    return bool(0 < abs(numpy_helper.to_array(tensor).item()) < SMALLEST)


def _clamp_constants(graph: onnx.GraphProto) -> None:
    """Finite numbers beyond FP16 are masks ("minus infinity"): they become +-30000."""
    filled = [
        each.t
        for node in graph.node
        if node.op_type == "ConstantOfShape"
        for each in node.attribute
    ]
    for tensor in [*graph.initializer, *filled]:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        beyond = np.isfinite(values) & (np.abs(values) > LARGEST)
        if beyond.any():
            safe = np.where(beyond, np.sign(values) * np.float32(MASKED), values)
            tensor.CopyFrom(numpy_helper.from_array(safe.astype(np.float32), tensor.name))
