"""A conversion's original as a ``.pt2`` file, proved by the same checks as the graph.

The file is cached under what it is bound to: another torch, CPU, GPU or compiler means another one.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from converters.cache import PROOF_FILE, Progress, content_key, conversion, files_sha256
from converters.conversion import Converted, prove_graph
from converters.errors import ConversionError
from converters.proof.record import Record
from converters.task import Task, TorchModule
from converters.torch_export.program import (
    NOT_COMPILED,
    compiler_missing,
    export_program,
    write_program,
)
from converters.torch_export.runner import TorchRunner
from converters.torch_export.stamp import Stamp, compute_capability, cpu_features
from modelspec.hardware import GPU
from modelspec.layout import ENGINE_FILE, GPU_PROGRAM_FILE, PROGRAM_FILE

FILES = {"cpu": PROGRAM_FILE, "cuda": GPU_PROGRAM_FILE}
PRECISION = "fp32"
_NAMES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Program:
    """Programs proved on this machine: one for the CPU, and one for the GPU if there is one.
    ``record`` contains the graph's proof too."""

    folder: Path
    record: Record

    def files(self) -> Mapping[str, Path]:
        """The files for the version folder, by name; the ONNX graph is beside them."""
        paths = [self.folder / name for name in (*FILES.values(), ENGINE_FILE)]
        return {path.name: path for path in paths if path.is_file()}

    @property
    def profiles(self) -> tuple[str | None, ...]:
        """The config profiles that serve it, to prove it as it will be served."""
        has_gpu = (self.folder / GPU_PROGRAM_FILE).is_file()
        return (None, GPU) if has_gpu else (None,)


def require_torch_module(task: Task, precision: str) -> TorchModule:
    """The task's module; ConversionError if it has none, or has none of this precision."""
    if precision != PRECISION:
        raise ConversionError(
            f"the torch engine computes in FP32, and --precision {precision} is asked for: leave "
            "out one of --precision and --engine torch"
        )
    module = task.torch_module()
    if module is None:
        raise ConversionError(
            f"{task.request.source} ({task.name}) is not a torch module, so torch cannot serve it: "
            "leave out --engine torch"
        )
    return module


def name_of(device: str) -> str:
    """The program for a device, as a proof names it."""
    return f"the torch engine on the {_NAMES[device]}"


def devices() -> tuple[str, ...]:
    """Those that programs are made for on this machine."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def build_program(converted: Converted, report: Progress) -> Program:
    """The programs of the conversion's original, from the cache or newly made. ExportFailed or
    ProofFailed if there is none."""
    record = converted.record
    module = require_torch_module(converted.task, record.precision)
    missing, is_new = compiler_missing(), False
    # The name is part of the key because the record beside the program contains it.
    machine = [torch.__version__, *cpu_features(), missing]
    machine += [compute_capability()] if "cuda" in devices() else []
    settings = [record.name, record.source_sha256, record.engine_sha256, record.accepted, machine]
    key = content_key(json.dumps(settings), __name__, type(converted.task).__module__)

    def build(folder: Path) -> None:
        nonlocal is_new
        is_new = True
        report(f"{record.name}: exporting with torch.export")
        program = export_program(module)
        proved = record
        for device in devices():
            report(f"{record.name}: compiling with AOTInductor for the {_NAMES[device]}")
            file = folder / FILES[device]
            stamp = write_program(program, module, device, file, report)
            report(f"{record.name}: proving the torch engine against the original")
            what = f"{name_of(device)}, {_how(stamp)}"
            proof = prove_graph(converted.task, file, converted.reference, TorchRunner, what)
            digests = {**proved.programs_sha256, file.name: files_sha256([file])}
            proved = replace(proved.add(proof), programs_sha256=digests)
        proved = replace(proved, tools={**proved.tools, "torch.export on": platform.machine()})
        proved.require()
        (folder / ENGINE_FILE).symlink_to(converted.engine)
        proved.save(folder)

    folder = conversion(record.name, key, build)
    if missing and not is_new:  # else it has been said
        report(f"{missing}. {NOT_COMPILED}")
    return Program(folder, Record.load(folder / PROOF_FILE))


def _how(stamp: Stamp) -> str:
    return "compiled by AOTInductor" if stamp.is_compiled else "run operator by operator"
