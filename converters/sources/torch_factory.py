"""``package.module:factory``: the user's own code that makes a torch module and example inputs.

That code is run: it is what the user asked for by naming it.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.errors import SourceMissing, SourceRefused
from converters.sources.tensor_source import Group, ReferenceOutputs, TensorInfo, TensorSource
from converters.tensors.ids import id_counts

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
OURS = ("tidegate", "converters", "ensembles", "modelspec", "serving", "gateway", "loadtests")
Tensors = Mapping[str, torch.Tensor]


class TorchFactory(TensorSource):
    def __init__(self, source: str) -> None:
        self.source = source
        factory, self._file = find_factory(source)
        self.module, self._example = made_by(source, factory)
        self._answers = answered(source, self.module, self._example)
        self.inputs = tuple(_port(source, *each) for each in self._example.items())
        taken = set(self._example)
        self.outputs = tuple(
            _port(source, f"{name}_out" if name in taken else name, tensor)
            for name, tensor in self._answers.items()
        )

    def files(self) -> list[Path]:
        """The factory's file, and those beside and below it that it imported."""
        return own_files(self._file)

    def settings(self) -> str:
        return weights_sha256(self.module)

    def example(self) -> Group:
        return {name: tensor.detach().numpy() for name, tensor in self._example.items()}

    @cached_property
    def _ids(self) -> Mapping[str, np.ndarray]:
        return id_counts(self.eager(), {name: each[:1] for name, each in self.example().items()})

    def ids(self) -> Mapping[str, np.ndarray]:
        return self._ids

    def eager(self) -> Callable[[Group], object]:
        return lambda feed: self.module(**{n: torch.from_numpy(v) for n, v in feed.items()})

    def write(self, target: Path) -> None:
        from converters.tensors.module2onnx import export_module

        export_module(self.module, self._example, self.outputs, target)

    def ask(self, groups: Sequence[Group], folder: Path) -> ReferenceOutputs:
        from converters.tensors.torch_oracle import ask_module

        names = [port.name for port in self.outputs]
        reported, weights = ask_module(self.source, names, groups, folder)
        if weights != self.settings():
            raise SourceRefused(
                f"{self.source} makes another model each time it is called (random weights?): load "
                "trained weights, or seed it"
            )
        return reported


def find_factory(source: str) -> tuple[Callable[[], Any], Path]:
    """The callable that ``source`` names, and its file; the current folder is looked in first, as
    ``python -m`` does."""
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
        raise SourceRefused(f"{source}: importing {module_name} fails: {_said(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise SourceMissing(
            f"{source}: {module_name} has no function {attribute!r}: check the name"
        )
    return factory, Path(inspect.getsourcefile(module) or module.__file__ or "")


def own_files(file: Path) -> list[Path]:
    """``file``, and what is loaded now from its folder, but for Tidegate itself."""
    folder, found = file.resolve().parent, {file.resolve()}
    for name, module in list(sys.modules.items()):
        source = getattr(module, "__file__", None)
        if source and name.partition(".")[0] not in OURS and source.endswith(".py"):
            found.add(Path(source).resolve())
    # torch.ops and torch.classes call themselves files that are not there.
    return sorted(path for path in found if path.is_relative_to(folder) and path.is_file())


def made_by(source: str, factory: Callable[[], Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The module in evaluation mode, and its example inputs by name, at least two rows each."""
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise SourceRefused(f"{source} fails: {_said(error)}") from error
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], torch.nn.Module):
        raise SourceRefused(
            f"{source} returns {type(made).__name__}: return (module, example_inputs), a "
            "torch.nn.Module and a tuple or dict of tensors"
        )
    module, inputs = made
    _require_plain(source, module)
    named = _named_inputs(source, module, inputs)
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise SourceRefused(f"{source}: input {name!r} is a {type(tensor).__name__}, no tensor")
        if tensor.ndim == 0:
            raise SourceRefused(f"{source}: input {name!r} has no axis: the first is the batch")
    rows = {len(tensor) for tensor in named.values()}
    if len(rows) != 1 or rows == {0}:
        sizes = {name: list(tensor.shape) for name, tensor in named.items()}
        raise SourceRefused(
            f"{source}: the first axis of every input is the batch, and theirs differ or are "
            f"empty: {sizes}"
        )
    # A size of one would be baked into the graph as a constant.
    grown = {
        n: t.cpu() if len(t) > 1 else t.cpu().repeat(2, *[1] * (t.ndim - 1))
        for n, t in named.items()
    }
    return module.cpu().eval(), grown


def _require_plain(source: str, module: torch.nn.Module) -> None:
    """SourceRefused for modules that cannot be exported or compared, with what to do."""
    if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
        raise SourceRefused(
            f"{source} returns TorchScript (torch.jit.script or trace), which torch.onnx.export no "
            "longer takes: return the torch.nn.Module that it was made from"
        )
    weights = [*module.named_parameters(), *module.named_buffers()]
    for name, each in weights:
        if each.is_meta:
            raise SourceRefused(
                f"{source}: {name} is on the meta device, which holds no weights: make the module "
                "on the CPU and load its weights"
            )
        if each.dtype in (torch.bfloat16, torch.float16) or each.is_complex():
            raise SourceRefused(
                f"{source}: {name} is {each.dtype}, and ONNX Runtime computes few operators in it "
                "on a CPU: return module.float(), and choose --precision fp16 for half the size"
            )
        if each.is_quantized or each.layout != torch.strided:
            raise SourceRefused(
                f"{source}: {name} is quantised or sparse, which cannot be exported: return the "
                "FP32 module, and choose --precision int8"
            )


def _named_inputs(source: str, module: torch.nn.Module, inputs: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError) as error:
        raise SourceRefused(
            f"{source}: forward() does not say what it takes: write it in Python"
        ) from error
    taken = [
        name
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    if isinstance(inputs, Mapping) and inputs:
        strange = [name for name in inputs if name not in taken]
        if strange:
            raise SourceRefused(f"{source}: forward() has no argument {strange[0]!r}: {taken}")
        return {str(name): inputs[name] for name in taken if name in inputs}
    if isinstance(inputs, tuple | list) and 0 < len(inputs) <= len(taken):
        return dict(zip(taken, inputs, strict=False))
    raise SourceRefused(
        f"{source}: the example inputs are {type(inputs).__name__}, and forward() takes {taken}: "
        "give a tuple or a dict of tensors for it"
    )


def answered(source: str, module: torch.nn.Module, inputs: Tensors) -> dict[str, torch.Tensor]:
    """The module's answer by name: a dict's own names, else ``output`` or ``output_0``, ..."""
    try:
        with torch.inference_mode():
            answer = module(**inputs)
    except Exception as error:
        raise SourceRefused(f"{source}: the module fails on its example: {_said(error)}") from error
    named = named_outputs(answer)
    rows = len(next(iter(inputs.values())))
    _require_rows(source, named, rows)
    for size in (1, 3):
        some = {name: torch.cat([tensor, tensor])[:size] for name, tensor in inputs.items()}
        try:
            with torch.inference_mode():
                _require_rows(source, named_outputs(module(**some)), size)
        except SourceRefused:
            raise
        except Exception as error:  # batch norm without statistics raises ValueError for one row
            raise SourceRefused(
                f"{source}: the module takes {rows} rows and not {size} (it computes with the "
                "batch: its size as a number, or batch norm that keeps no running statistics): "
                f"{_said(error)}"
            ) from error
    return named


def _require_rows(source: str, named: Mapping[str, Any], rows: int) -> None:
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0 or len(tensor) != rows:
            shape = (
                list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            )
            raise SourceRefused(
                f"{source}: output {name!r} is {shape} for {rows} rows: every output must be a "
                "tensor with the batch as its first axis"
            )


def named_outputs(answer: Any) -> dict[str, Any]:
    """A module's answer by name."""
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, tuple | list):
        fields = getattr(answer, "_fields", [f"output_{i}" for i in range(len(answer))])
        return dict(zip(fields, answer, strict=True))
    return {"output": answer}


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over the module's form and every weight and buffer."""
    digest = hashlib.sha256(repr(module).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def _port(source: str, name: str, tensor: torch.Tensor) -> TensorInfo:
    if tensor.dtype not in V2_TYPES:
        raise SourceRefused(
            f"{source}: {name!r} is {tensor.dtype}, which cannot be served: cast it inside"
        )
    dims = tuple(map(int, tensor.shape[1:]))
    return TensorInfo(name, V2_TYPES[tensor.dtype], dims, flat=not dims)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
