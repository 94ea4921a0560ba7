"""``package.module:factory``: the user's own code that builds a torch module and example inputs.

That code is run, because the user asks for it by naming it.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from converters.errors import SourceMissing, SourceRefused
from converters.export.module2onnx import PositionalModule, export_module, named_outputs
from converters.export.tensor_info import TensorInfo
from converters.sources.ids import id_counts
from converters.sources.own_code import OwnCode, own_code
from converters.sources.tensor_source import Batch, TensorSource
from converters.task import TorchModule

V2_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
Tensors = Mapping[str, torch.Tensor]


class TorchFactory(TensorSource):
    def __init__(self, source: str) -> None:
        self.source = source
        factory, self._factory_module = find_factory(source)
        self.module, self._example = made_by(source, factory)
        self._outputs = run_example(source, self.module, self._example)
        self.inputs = tuple(_tensor_info(source, *item) for item in self._example.items())
        input_names = set(self._example)
        self.outputs = tuple(
            _tensor_info(source, f"{name}_out" if name in input_names else name, tensor)
            for name, tensor in self._outputs.items()
        )

    def files(self) -> list[Path]:
        """The factory's file, and the user's other files that it imports, wherever they are."""
        return list(self._code.files)

    def packages(self) -> tuple[str, ...]:
        return self._code.distributions

    @cached_property
    def _code(self) -> OwnCode:
        return own_code(self._factory_module)

    def settings(self) -> str:
        return weights_sha256(self.module)

    def example(self) -> Batch:
        return {name: tensor.detach().numpy() for name, tensor in self._example.items()}

    @cached_property
    def _ids(self) -> Mapping[str, np.ndarray]:
        return id_counts(self.eager(), {name: rows[:1] for name, rows in self.example().items()})

    def ids(self) -> Mapping[str, np.ndarray]:
        return self._ids

    def eager(self) -> Callable[[Batch], object]:
        return lambda feed: self.module(
            **{name: torch.from_numpy(values) for name, values in feed.items()}
        )

    def torch_module(self) -> TorchModule:
        module = PositionalModule(self.module, list(self._example))
        names = tuple(tensor.name for tensor in self.outputs)
        return TorchModule(module.eval(), self._example, (0,), names)

    def write(self, target: Path) -> None:
        export_module(self.module, self._example, self.outputs, target)


def find_factory(source: str) -> tuple[Callable[[], Any], ModuleType]:
    """The callable that ``source`` names, and its module; the current folder is searched first, as
    ``python -m`` does. SourceMissing or SourceRefused if there is none."""
    module_name, _, attribute = source.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        raise SourceMissing(
            f"{source}: there is no module {missing!r} in {here} or installed: check the name, or "
            "run this where it can be imported"
        ) from error
    except (Exception, SystemExit) as error:
        raise SourceRefused(
            f"{source}: importing {module_name} fails: {_one_line(error)}"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise SourceMissing(
            f"{source}: {module_name} has no function {attribute!r}: check the name"
        )
    return factory, module


def made_by(source: str, factory: Callable[[], object]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The module in evaluation mode, and its example inputs by name, at least two rows each.
    SourceRefused says what is wrong with what the factory returns."""
    try:
        result = factory()
    except (Exception, SystemExit) as error:
        raise SourceRefused(f"{source} fails: {_one_line(error)}") from error
    if (
        not isinstance(result, tuple)
        or len(result) != 2
        or not isinstance(result[0], torch.nn.Module)
    ):
        raise SourceRefused(
            f"{source} returns {type(result).__name__}: return (module, example_inputs), a "
            "torch.nn.Module and a tuple or dict of tensors"
        )
    module, inputs = result
    _require_plain(source, module)
    tensors = _named_inputs(source, module, inputs)
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise SourceRefused(
                f"{source}: input {name!r} is a {type(tensor).__name__}, not a tensor"
            )
        if tensor.ndim == 0:
            raise SourceRefused(
                f"{source}: input {name!r} has no axis: the first must be the batch"
            )
    rows = {len(tensor) for tensor in tensors.values()}
    if len(rows) != 1 or rows == {0}:
        sizes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise SourceRefused(
            f"{source}: the first axis of every input is the batch, and these differ or are empty: "
            f"{sizes}"
        )
    # The export would bake a batch of one into the graph as a constant.
    batches = {
        name: tensor.cpu() if len(tensor) > 1 else tensor.cpu().repeat(2, *[1] * (tensor.ndim - 1))
        for name, tensor in tensors.items()
    }
    return module.cpu().eval(), batches


def _require_plain(source: str, module: torch.nn.Module) -> None:
    """Raise SourceRefused for a module that cannot be exported or compared."""
    if any(isinstance(inner, torch.jit.ScriptModule) for inner in module.modules()):
        raise SourceRefused(
            f"{source} returns TorchScript (torch.jit.script or trace), which torch.onnx.export no "
            "longer accepts: return the torch.nn.Module that it was made from"
        )
    weights = [*module.named_parameters(), *module.named_buffers()]
    for name, weight in weights:
        if weight.is_meta:
            raise SourceRefused(
                f"{source}: {name} is on the meta device, which holds no weights: make the module "
                "on the CPU and load its weights"
            )
        if weight.dtype in (torch.bfloat16, torch.float16) or weight.is_complex():
            raise SourceRefused(
                f"{source}: {name} is {weight.dtype}, in which ONNX Runtime computes few operators "
                "on a CPU: return module.float(), and use --precision fp16 for half the size"
            )
        if weight.is_quantized or weight.layout != torch.strided:
            raise SourceRefused(
                f"{source}: {name} is quantised or sparse, which cannot be exported: return the "
                "FP32 module, and use --precision int8-static"
            )


def _named_inputs(source: str, module: torch.nn.Module, inputs: object) -> dict[str, Any]:
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError) as error:
        raise SourceRefused(
            f"{source}: forward() has no readable signature: write it in Python"
        ) from error
    arguments = [
        name
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if isinstance(inputs, Mapping) and inputs:
        unknown = [name for name in inputs if name not in arguments]
        if unknown:
            raise SourceRefused(
                f"{source}: forward() has no argument {unknown[0]!r}; it takes {arguments}"
            )
        return {str(name): inputs[name] for name in arguments if name in inputs}
    if isinstance(inputs, tuple | list) and 0 < len(inputs) <= len(arguments):
        return dict(zip(arguments, inputs, strict=False))
    raise SourceRefused(
        f"{source}: the example inputs are {type(inputs).__name__}, and forward() takes "
        f"{arguments}: give a tuple or a dict of tensors for it"
    )


def run_example(source: str, module: torch.nn.Module, inputs: Tensors) -> dict[str, torch.Tensor]:
    """The module's outputs for its example, by name: a dict's own names, else ``output`` or
    ``output_0``, ... SourceRefused if it does not run on other batch sizes too."""
    try:
        with torch.inference_mode():
            result = module(**inputs)
    except Exception as error:
        raise SourceRefused(
            f"{source}: the module fails on its example: {_one_line(error)}"
        ) from error
    outputs = named_outputs(result)
    rows = len(next(iter(inputs.values())))
    _require_batch_axis(source, outputs, rows)
    for size in (1, 3):
        batch = {name: torch.cat([tensor, tensor])[:size] for name, tensor in inputs.items()}
        try:
            with torch.inference_mode():
                _require_batch_axis(source, named_outputs(module(**batch)), size)
        except SourceRefused:
            raise
        except Exception as error:  # batch norm without statistics raises ValueError for one row
            raise SourceRefused(
                f"{source}: the module runs on {rows} rows but not on {size} (it depends on the "
                "batch: its size as a number, or batch norm that keeps no running statistics): "
                f"{_one_line(error)}"
            ) from error
    return outputs


def _require_batch_axis(source: str, outputs: Mapping[str, object], rows: int) -> None:
    for name, tensor in outputs.items():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0 or len(tensor) != rows:
            shape = (
                list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            )
            raise SourceRefused(
                f"{source}: output {name!r} is {shape} for {rows} rows: every output must be a "
                "tensor with the batch as its first axis"
            )


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over the module's structure and every weight and buffer."""
    digest = hashlib.sha256(repr(module).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def _tensor_info(source: str, name: str, tensor: torch.Tensor) -> TensorInfo:
    if tensor.dtype not in V2_TYPES:
        raise SourceRefused(
            f"{source}: {name!r} is {tensor.dtype}, which cannot be served: cast it inside the "
            "module"
        )
    dims = tuple(map(int, tensor.shape[1:]))
    return TensorInfo(name, V2_TYPES[tensor.dtype], dims, flat=not dims)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
