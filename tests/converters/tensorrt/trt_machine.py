"""A machine that seems to have a GPU: a program called nvidia-smi, and the module fake_trt."""

import os
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.converters.tensorrt import fake_trt

ROOT = Path(__file__).parents[3]
# Modules that import tensorrt: they are imported anew with the fake, and again without it.
IMPORTERS = (
    "converters.tensorrt.build",
    "converters.tensorrt.monitor",
    "converters.tensorrt.runner",
)
GPU = ("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")


def plant_gpu(folder: Path, row: str = ", ".join(GPU), code: int = 0) -> Path:
    """A program called nvidia-smi in ``folder`` that prints this row and records its arguments."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" >> "$0.asked"\necho "{row}"\nexit {code}\n')
    program.chmod(0o755)
    return folder


def plant_package(folder: Path) -> Path:
    """The fake as a package that a child process imports."""
    folder.mkdir(exist_ok=True)
    lines = [
        "import sys",
        "from tests.converters.tensorrt.fake_trt import as_module",
        "sys.modules['tensorrt'] = as_module()",
    ]
    (folder / "tensorrt.py").write_text("\n".join(lines))
    return folder


def child_environment(tmp_path: Path) -> dict[str, str]:
    """The same for a child process, its cache in ``tmp_path``."""
    programs, packages = plant_gpu(tmp_path / "bin"), plant_package(tmp_path / "packages")
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{packages}:{ROOT}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """The fakes, for this process; ``fake_trt.seen`` has what they received."""
    fake_trt.seen.clear(), fake_trt.faults.clear()
    monkeypatch.setenv("PATH", f"{plant_gpu(tmp_path / 'bin')}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the tested code sets it: restored
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt.as_module())
    forget()
    yield fake_trt
    forget()
    fake_trt.faults.clear()


def forget() -> None:
    for name in IMPORTERS:
        sys.modules.pop(name, None)
        package, _, module = name.rpartition(".")
        vars(sys.modules.get(package)).pop(module, None) if package in sys.modules else None


def write_graph(path: Path, axis: str | int = "length") -> Path:
    """ids INT64 [n, axis] -> doubled INT64 of the same shape."""
    shape = ["n", axis]
    two = helper.make_tensor("two", TensorProto.INT64, [], [2])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["ids", "two"], ["doubled"])],
        "doubling",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("doubled", TensorProto.INT64, shape)],
        [two],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path
