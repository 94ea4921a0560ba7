"""The models of a check, each staged in one precision under its own name, and their Triton."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modelspec.names import Role, member_name

ROOT = Path(__file__).resolve().parent.parent.parent
CUDA = "CUDAExecutionProvider"
LARGEST_BATCH = 64
TOKENS = 32
# Serves the traced module in Triton's own Python backend, on the device of the config.
TORCH_STEP = """
import json
import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        threads = config["parameters"]["intra_op_thread_count"]["string_value"]
        torch.set_num_threads(int(threads))
        self.device = "cuda" if "GPU" in args["model_instance_kind"] else "cpu"
        file = f"{args['model_repository']}/{args['model_version']}/model.pt"
        self.module = torch.jit.load(file, map_location=self.device).eval()
        self.names = [tensor["name"] for tensor in config["input"]]
        self.output_name = config["output"][0]["name"]

    def execute(self, requests):
        return [self.infer(request) for request in requests]

    def infer(self, request):
        tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in self.names]
        arrays = [tensor.as_numpy() for tensor in tensors]
        with torch.inference_mode():
            output = self.module(*(torch.from_numpy(array).to(self.device) for array in arrays))
        tensor = pb_utils.Tensor(self.output_name, output.float().cpu().numpy())
        return pb_utils.InferenceResponse([tensor])
"""


def chosen_engine(cpu: bool) -> str:
    """onnxruntime, or torch if only torch has CUDA. RuntimeError if neither has it."""
    import onnxruntime

    if cpu or CUDA in onnxruntime.get_available_providers():
        return "onnxruntime"
    import torch

    if torch.cuda.is_available():
        return "torch"
    raise RuntimeError("neither onnxruntime nor torch has CUDA here: run with --install")


def stage(work: Path, what: tuple[str, str], runs_on: str, cpu: bool) -> dict[str, Any]:
    """Write ``what`` (model and precision) to ``work/repository``; returns its part of the
    report."""
    from converters.precisions.write import write_precision

    name, precision = what
    graph, served_as = published_graph(name), f"{name}_{precision}"
    folder, onnx = work / "repository" / served_as, work / f"{served_as}.onnx"
    (folder / "1").mkdir(parents=True)
    (folder / "configs").mkdir()
    write_precision(precision, graph, onnx, lambda: ())
    if runs_on == "torch":
        (folder / "1" / "model.py").write_text(TORCH_STEP)
        trace(name, precision, folder / "1" / "model.pt", cpu)
    else:
        (folder / "1" / "model.onnx").hardlink_to(onnx)
    for path, text in configs(graph.parent.parent, served_as, runs_on).items():
        (folder / path).write_text(text)
    return {
        "model": name,
        "precision": precision,
        "served_as": served_as,
        "runs_on": runs_on,
        "megabytes": round(onnx.stat().st_size / 1e6, 1),
        "files": {"onnx": str(onnx), "reference": str(graph), "served": str(folder / "1")},
    }


def published_graph(name: str) -> Path:
    """The newest FP32 graph in the repository; converts and proves one first if there is none."""
    repository = Path(os.environ.get("TIDEGATE_REPOSITORY", ROOT / "model_repository"))
    pattern = f"{member_name(name, Role.ENGINE)}/[0-9]*/model.onnx"
    if not list(repository.glob(pattern)):
        command = [sys.executable, "-m", "tidegate", "convert", name]
        subprocess.run(command, check=True, cwd=ROOT)
    return max(repository.glob(pattern), key=lambda path: int(path.parent.name))


def configs(engine: Path, served_as: str, runs_on: str) -> dict[str, str]:
    """The published engine's own configs, renamed, for batches up to the largest measured."""
    from modelspec.pbtxt import parse, render

    texts = {}
    for path in ("config.pbtxt", "configs/gpu.pbtxt"):
        config = parse((engine / path).read_text(encoding="utf-8"))
        config.name, config.max_batch_size = served_as, LARGEST_BATCH
        config.ClearField("version_policy")
        if runs_on == "torch":
            config.backend = "python"
            config.ClearField("optimization")
        texts[path] = render(config)
    return texts


def trace(name: str, precision: str, target: Path, cpu: bool) -> None:
    """Save the original as TorchScript, traced on the device it will run on."""
    import torch

    from converters.task import ConversionRequest
    from tidegate.app.task_registry import KNOWN, TASKS

    device = "cpu" if cpu else "cuda"
    task = KNOWN[name] or TASKS["tensors"]
    module = task.open_task(ConversionRequest(name, name)).module.to(device)
    example = tuple(torch.from_numpy(array).to(device) for array in feed(name, 2).values())
    half = torch.autocast(device, torch.float16, enabled=precision == "fp16")
    with torch.inference_mode(), half, warnings.catch_warnings():
        # About constants in the trace: parity is measured on other rows.
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(target))


def feed(name: str, rows: int) -> dict[str, np.ndarray]:
    """Generated rows, the same for every engine."""
    generator = np.random.default_rng(7)
    if name == "text_embedding":
        ids = generator.integers(1000, 20000, (rows, TOKENS))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {"pixels": generator.uniform(-1, 1, (rows, 3, 224, 224)).astype(np.float32)}


@contextmanager
def triton(work: Path, profile: str | None) -> Iterator[Any]:
    """A Triton on ``work/repository``, on free ports, with this config profile."""
    from serving.triton.launch import LaunchOptions, TritonServer
    from serving.triton.ports import Ports, free_ports

    (work / "repository").mkdir()
    ports = Ports(*free_ports(3))
    options = LaunchOptions(work / "repository", work / "state", ports, config_name=profile)
    with TritonServer(options) as server:
        yield server
