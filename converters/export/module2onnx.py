"""Any torch module -> ONNX, with a dynamic batch axis."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper

from converters.errors import ExportFailed
from converters.export.tensor_info import TensorInfo
from converters.export.torch2onnx import OPSET, _quiet

# The exporter fails on an output whose name is also used inside the graph: outputs are renamed
# afterwards.
TEMPORARY_NAME = "tidegate_output_{}"


class PositionalModule(torch.nn.Module):
    """The module with positional inputs and its outputs as a tuple."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, list(names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.module(**dict(zip(self.names, inputs, strict=True)))
        return tuple(named_outputs(result).values())


def named_outputs(outputs: object) -> dict[str, Any]:
    """A module's outputs by name."""
    if isinstance(outputs, Mapping):
        return {str(name): value for name, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        fields = getattr(outputs, "_fields", [f"output_{i}" for i in range(len(outputs))])
        return dict(zip(fields, outputs, strict=True))
    return {"output": outputs}


def export_module(
    module: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    outputs: Sequence[TensorInfo],
    target: Path,
) -> None:
    """Write the graph to ``target``, with the example's inputs and ``outputs``, whose axis 0 is the
    batch's; ExportFailed says why that is impossible."""
    temporary_names = [TEMPORARY_NAME.format(index) for index in range(len(outputs))]
    axes = {0: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                PositionalModule(module, list(example)).eval(),
                tuple(example.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=temporary_names,
                dynamic_shapes=(tuple(axes for _ in example),),
                verbose=False,
            )
    except Exception as error:  # torch raises many types, which all mean the same to a user
        raise ExportFailed(
            "torch could not export the module; write the operation that it names in another way "
            "(torch.where instead of an if over values), or export it to ONNX yourself: "
            f"{_cause(error)}"
        ) from error
    if program is None:
        raise ExportFailed("torch exported nothing")
    program.save(str(target), external_data=False)
    model = onnx.load(target)
    _require_dynamic(model, list(example))
    _name_outputs(model.graph, outputs)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # InferenceError and ValidationError share no base class
        raise ExportFailed(
            f"torch exported an inconsistent graph ({_cause(error)}): write the operation that it "
            "names in another way"
        ) from error
    onnx.save(model, target)


def _require_dynamic(model: onnx.ModelProto, inputs: Sequence[str]) -> None:
    graph_inputs = {info.name: info for info in model.graph.input}
    for name in inputs:
        if name not in graph_inputs:
            raise ExportFailed(f"the module does not use its input {name!r}: remove it")
        batch_axis = graph_inputs[name].type.tensor_type.shape.dim[0]
        if batch_axis.dim_value:
            raise ExportFailed(
                f"input {name!r} has its batch axis fixed to {batch_axis.dim_value}: the module "
                "uses the batch size as a constant; write -1 or x.shape[0] instead"
            )


def _name_outputs(graph: onnx.GraphProto, outputs: Sequence[TensorInfo]) -> None:
    """Give the outputs their public names and shapes, each with an Identity."""
    inside = {name for node in graph.node for name in node.output}
    inside -= {output.name for output in graph.output}
    inside |= {initializer.name for initializer in graph.initializer}
    clashes = [tensor.name for tensor in outputs if tensor.name in inside]
    _rename(graph, {name: f"{name}__inside" for name in clashes})
    for tensor, exported in zip(outputs, list(graph.output), strict=True):
        element_type = exported.type.tensor_type.elem_type
        graph.node.append(helper.make_node("Identity", [exported.name], [tensor.name]))
        graph.output.append(
            helper.make_tensor_value_info(tensor.name, element_type, ["batch", *tensor.dims])
        )
        graph.output.remove(exported)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    if not names:
        return
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _cause(error: Exception) -> str:
    """The cause of an export error, without the exporter's page of advice and its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error.__cause__ or error))
    return " ".join(text.split())[:500]
