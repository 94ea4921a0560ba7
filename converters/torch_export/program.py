"""A torch module -> ``torch.export`` -> AOTInductor -> a ``.pt2`` file with a stamp.

AOTInductor writes C++ and needs a compiler. Where there is none, or where it cannot compile the
model, the file holds the exported program itself, which torch runs operator by operator.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from converters.cache import Progress
from converters.errors import ExportFailed
from converters.export.module2onnx import named_outputs
from converters.export.torch2onnx import _quiet
from converters.task import TorchModule
from converters.torch_export.stamp import GraphTensor, Stamp, Symbols, compute_capability
from converters.torch_export.stamp import cpu_features as cpu_features_here

# ONNX's names of the element types, which the backend's configs are checked with.
ELEMENT_TYPES = {
    torch.bool: "tensor(bool)",
    torch.uint8: "tensor(uint8)",
    torch.int8: "tensor(int8)",
    torch.int16: "tensor(int16)",
    torch.int32: "tensor(int32)",
    torch.int64: "tensor(int64)",
    torch.float16: "tensor(float16)",
    torch.float32: "tensor(float)",
    torch.float64: "tensor(double)",
}
REMEDY = (
    "write the operation that it names without Python control flow over values (torch.where "
    "instead of if), or leave out --engine torch to serve the ONNX engine"
)


class _Positional(torch.nn.Module):
    """A module with positional inputs, and its outputs as a tuple."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(named_outputs(self.module(*inputs)).values())


def export_program(module: TorchModule) -> torch.export.ExportedProgram:
    """The module's program, with the axes ``module.open_axes`` of every input open; ExportFailed
    with torch's reason and what to do."""
    axes = dict.fromkeys(module.open_axes, torch.export.Dim.DYNAMIC)
    names = list(module.example)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                _Positional(module.module).eval(),
                tuple(module.example.values()),
                dynamic_shapes=(tuple(axes for _ in names),),
            )
    except Exception as error:  # torch raises many types, which all mean the same to a user
        raise ExportFailed(f"torch.export refuses the model: {_reason(error)}. {REMEDY}") from error
    inputs = list(_tensors(program, names, program.graph_signature.user_inputs))
    fixed = [
        tensor["name"]
        for tensor in inputs
        if any(isinstance(tensor["axes"][axis], int) for axis in module.open_axes)
    ]
    if fixed:
        raise ExportFailed(
            f"torch.export fixed an axis of the input {fixed[0]!r} that must stay open: the module "
            f"uses its length as a constant; write x.shape[0] or -1 instead, or {REMEDY}"
        )
    return program


NOT_COMPILED = (
    "The exported program is served as it is: torch runs it operator by operator, which is slower"
)


def write_program(
    program: torch.export.ExportedProgram,
    module: TorchModule,
    device: str,
    target: Path,
    report: Progress,
) -> Stamp:
    """Write ``target``, for "cpu" or "cuda", and return its stamp. ``report`` gets the reason where
    the program is not compiled."""
    source = target.with_name(f"exported_{target.name}")
    with _quiet():
        torch.export.save(program, source)
    reason = compiler_missing(device) or _compile(source, device, target)
    if reason:
        report(f"{reason}. {NOT_COMPILED}")
        source.replace(target)
    source.unlink(missing_ok=True)
    on_cpu = device == "cpu"
    outputs = [output.arg.name for output in program.graph_signature.output_specs]
    stamp = Stamp(
        torch=torch.__version__,
        is_compiled=not reason,
        device=device,
        cpu_features=cpu_features_here() if on_cpu and not reason else (),
        compute_capability="" if on_cpu else compute_capability(),
        operators=sum(node.op == "call_function" for node in program.graph.nodes),
        inputs=tuple(_tensors(program, list(module.example), program.graph_signature.user_inputs)),
        outputs=tuple(_tensors(program, module.outputs, outputs)),
        longest=_longest(program),
    )
    stamp.add_to(target)
    return stamp


def compiler_missing(device: str = "cpu") -> str:
    """Why AOTInductor cannot compile here, in one line; "" if there is a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler):
        return ""
    return (
        f"AOTInductor needs a C++ compiler, and there is no {compiler} (Debian: apt-get install "
        "g++; CXX names another)"
    )


def _compile(source: Path, device: str, target: Path) -> str:
    """Compile the program in a process of its own; why it failed, "" if it did not."""
    scratch = target.with_name(f"{target.name}.inductor")
    scratch.mkdir()
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "TMPDIR": str(scratch),
    }
    command = [sys.executable, "-m", "converters.torch_export.compile_program"]
    try:
        process = subprocess.run(
            [*command, str(source), str(target), device],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not process.returncode:
        return ""
    target.unlink(missing_ok=True)
    lines = process.stderr.strip().splitlines() or ["no reason given"]
    return f"AOTInductor could not compile the model ({lines[-1][:300]})"


def _tensors(
    program: torch.export.ExportedProgram, names: Sequence[str], nodes: Sequence[Any]
) -> Iterator[GraphTensor]:
    """The tensors that the program's ``nodes`` hold, under their public ``names``."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for name, node in zip(names, nodes, strict=True):
        tensor = values[node]
        if not isinstance(tensor, torch.Tensor):
            raise ExportFailed(
                f"torch.export made a constant of {name!r}: the module must compute it from its "
                "inputs"
            )
        axes = [axis if isinstance(axis, int) else str(axis) for axis in tensor.shape]
        yield {"name": name, "type": ELEMENT_TYPES[tensor.dtype], "axes": axes}


def _longest(program: torch.export.ExportedProgram) -> Symbols:
    """The largest length of each open axis that the program was exported for, if there is one."""
    upper = {str(symbol): bounds.upper for symbol, bounds in program.range_constraints.items()}
    return {symbol: int(most) for symbol, most in upper.items() if most.is_Integer}


def _reason(error: Exception) -> str:
    """The first lines of torch's own message: after them come pages of advice."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
