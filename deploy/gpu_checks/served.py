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
IMAGE = "image_classification"
# EfficientNet-Lite's normalisation, (value - 127) / 128.
PER_STEP, OFFSET = 1 / 128, -127 / 128
# Serves the traced module in Triton's own Python backend, on the device of the config.
TORCH_STEP = """
import json
import torch
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
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


def stage(work: Path, what: tuple[str, str], runs_on: str, options: Any) -> dict[str, Any]:
    """Write ``what`` (model and precision) to ``work/repository``; returns its part of the
    report."""
    from converters.precisions.write import write_precision

    name, precision = what
    graph, served_as = published_graph(name), f"{name}_{precision}"
    folder, onnx = work / "repository" / served_as, work / f"{served_as}.onnx"
    (folder / "1").mkdir(parents=True)
    (folder / "configs").mkdir()
    write_precision(precision, graph, onnx, lambda: ())
    if name == IMAGE and runs_on == "onnxruntime":
        take_bytes(onnx)
    if runs_on == "torch":
        (folder / "1" / "model.py").write_text(TORCH_STEP)
        trace(name, precision, folder / "1" / "model.pt", options.cpu)
    else:
        (folder / "1" / "model.onnx").hardlink_to(onnx)
    for path, text in configs(graph.parent.parent, served_as, runs_on, options).items():
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


def take_bytes(onnx: Path) -> None:
    """Let the graph take pixels as UINT8 and normalise them itself: a quarter of the bytes on the
    way, which otherwise takes longer than the model."""
    import onnx as library
    from onnx import TensorProto, helper, numpy_helper

    model = library.load(onnx)
    graph, pixels = model.graph, model.graph.input[0]
    inner = f"{pixels.name}_normalised"
    for node in graph.node:
        node.input[:] = [inner if name == pixels.name else name for name in node.input]
    numbers = {"per_step": PER_STEP, "offset": OFFSET}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(number, np.float32), f"{inner}_{name}")
        for name, number in numbers.items()
    )
    steps = (
        helper.make_node("Cast", [pixels.name], [f"{inner}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{inner}_float", f"{inner}_per_step"], [f"{inner}_scaled"]),
        helper.make_node("Add", [f"{inner}_scaled", f"{inner}_offset"], [inner]),
    )
    for position, node in enumerate(steps):
        graph.node.insert(position, node)
    pixels.type.tensor_type.elem_type = TensorProto.UINT8
    library.save(model, onnx)


def configs(engine: Path, served_as: str, runs_on: str, options: Any) -> dict[str, str]:
    """The published engine's own configs, renamed, for batches up to the largest measured, with the
    instances and CUDA graphs that the options say."""
    from tritonclient.grpc import model_config_pb2

    from modelspec.pbtxt import parse, render

    texts = {}
    for path in ("config.pbtxt", "configs/gpu.pbtxt"):
        config = parse((engine / path).read_text(encoding="utf-8"))
        config.name, config.max_batch_size = served_as, LARGEST_BATCH
        config.ClearField("version_policy")
        if runs_on == "torch":
            config.backend = "python"
            config.ClearField("optimization")
        elif config.input[0].name == "pixels":
            config.input[0].data_type = model_config_pb2.TYPE_UINT8
        if path != "config.pbtxt":
            config.instance_group[0].count = options.instances
            config.optimization.cuda.graphs = options.cuda_graphs
            if "cuda_graph_lengths" in config.parameters:
                config.parameters["cuda_graph_lengths"].string_value = str(TOKENS)
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
    example = tuple(
        torch.from_numpy(array).to(device) for array in normalised(feed(name, 2)).values()
    )
    autocast = torch.autocast(device, torch.float16, enabled=precision == "fp16")
    with torch.inference_mode(), autocast, warnings.catch_warnings():
        # About constants in the trace: parity is measured on other rows.
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(target))


def feed(name: str, rows: int) -> dict[str, np.ndarray]:
    """Generated rows, the same for every engine; pixels are UINT8."""
    generator = np.random.default_rng(7)
    if name == "text_embedding":
        ids = generator.integers(1000, 20000, (rows, TOKENS))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {"pixels": generator.integers(0, 256, (rows, 3, 224, 224), dtype=np.uint8)}


def normalised(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows as the published graph takes them: pixels FP32, from -1 to 1."""
    return {
        name: array.astype(np.float32) * np.float32(PER_STEP) + np.float32(OFFSET)
        if array.dtype == np.uint8
        else array
        for name, array in rows.items()
    }


@contextmanager
def triton(work: Path, profile: str | None) -> Iterator[Any]:
    """A Triton on ``work/repository``, on free ports, with this config profile."""
    from serving.repository.model_repository import ModelRepository
    from serving.triton.launch import LaunchOptions, TritonServer
    from serving.triton.ports import Ports, free_ports

    (work / "repository").mkdir()
    ports = Ports(*free_ports(3))
    options = LaunchOptions(
        ModelRepository(work / "repository"), work / "state", ports, config_name=profile
    )
    with TritonServer(options) as server:
        yield server
