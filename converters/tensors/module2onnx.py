"""Any torch module -> ONNX, with a dynamic batch axis."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper

from converters.errors import ExportFailed
from converters.sources.tensor_source import TensorInfo
from converters.torch2onnx import OPSET, _quiet

# The exporter trips over an output that is called as something inside: the names come afterwards.
EXPORTED = "tidegate_output_{}"


class _Flat(torch.nn.Module):
    """The module with inputs by place and its outputs as a tuple."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, list(names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from converters.sources.torch_factory import named_outputs

        answer = self.module(**dict(zip(self.names, inputs, strict=True)))
        return tuple(named_outputs(answer).values())


def export_module(
    module: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    outputs: Sequence[TensorInfo],
    target: Path,
) -> None:
    """Write ``target``: the example's inputs, ``outputs``, axis 0 of each the batch; ExportFailed
    with the cause."""
    exported = [EXPORTED.format(index) for index in range(len(outputs))]
    axes = {0: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                _Flat(module, list(example)).eval(),
                tuple(example.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=exported,
                dynamic_shapes=(tuple(axes for _ in example),),
                verbose=False,
            )
    except Exception as error:  # torch raises many kinds; all of them mean the same to a user
        raise ExportFailed(f"torch could not export the module: {_first(error)}") from error
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
            f"torch exported a graph that contradicts itself ({_first(error)}): write the operator "
            "that it names otherwise"
        ) from error
    onnx.save(model, target)


def _require_dynamic(model: onnx.ModelProto, inputs: Sequence[str]) -> None:
    found = {each.name: each for each in model.graph.input}
    for name in inputs:
        if name not in found:
            raise ExportFailed(f"the module does not use its input {name!r}: take it out")
        first = found[name].type.tensor_type.shape.dim[0]
        if first.dim_value:
            raise ExportFailed(
                f"input {name!r} has its batch axis fixed to {first.dim_value}: the module "
                "computes with the batch size as a number; write -1 or x.shape[0] for it"
            )


def _name_outputs(graph: onnx.GraphProto, outputs: Sequence[TensorInfo]) -> None:
    """The public names and shapes, each behind an Identity."""
    inside = {name for node in graph.node for name in node.output} - {o.name for o in graph.output}
    inside |= {each.name for each in graph.initializer}
    _rename(graph, {port.name: f"{port.name}__inside" for port in outputs if port.name in inside})
    for port, exported in zip(outputs, list(graph.output), strict=True):
        kind = exported.type.tensor_type.elem_type
        graph.node.append(helper.make_node("Identity", [exported.name], [port.name]))
        graph.output.append(helper.make_tensor_value_info(port.name, kind, ["batch", *port.dims]))
        graph.output.remove(exported)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    if not names:
        return
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _first(error: Exception) -> str:
    """The cause, without the exporter's page of advice and its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error.__cause__ or error))
    return " ".join(text.split())[:500]
