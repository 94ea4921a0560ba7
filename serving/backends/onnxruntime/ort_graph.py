"""The inputs and outputs of an ONNX graph, and whether a Triton config agrees with them.

    graph = Graph.read(session)
    complete_config(config, graph)      # what auto_complete_config does
    check_config(config, graph, warn)   # raises ModelRefused, naming model and tensor
    disagreements(config, graph, warn)  # all of them, for read-only checks (`tidegate lint`)

``config`` is Triton's ModelConfig as JSON. The rules are those of NVIDIA's native ONNX Runtime
backend, so that a config that loads here loads there.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Config = dict[str, Any]
Warn = Callable[[str], None]

# What the native backend sets if a graph can batch and the config does not set it.
DEFAULT_MAX_BATCH_SIZE = 4

# Triton's Python backend passes tensors as numpy arrays, so it cannot carry bfloat16 and the 8- and
# 4-bit floats, which numpy does not have. The native backend does not take them either.
CONFIG_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}

NUMPY_NAMES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(string)": "object"}


class ModelRefused(Exception):
    """The model cannot be loaded; the text says which part is wrong and what to do."""


@dataclass(frozen=True)
class Disagreement:
    """One difference between a config and its graph: its ``kind``, where it is, and what to do.

    ``side`` is "input" or "output"; side and tensor are "" if it concerns the whole model."""

    kind: str
    side: str
    tensor: str
    message: str
    fix: str


@dataclass(frozen=True)
class GraphTensor:
    """An input or output. An axis is a length, the name of an open axis, or None (open)."""

    name: str
    onnx_type: str
    axes: tuple[int | str | None, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.axes)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The dtype of its arrays; only for types that Triton can carry."""
        return np.dtype(NUMPY_NAMES.get(self.onnx_type, self.onnx_type[len("tensor(") : -1]))

    @property
    def config_type(self) -> str:
        """The config's name for the element type; ModelRefused if Triton cannot carry it."""
        if self.onnx_type in CONFIG_TYPES:
            return CONFIG_TYPES[self.onnx_type]
        if self.onnx_type.startswith("tensor("):
            raise ModelRefused(
                f"the graph says {self.onnx_type}, which Triton's Python backend cannot carry: "
                "cast it to FP32 or FP16 inside the graph"
            )
        raise ModelRefused(
            f"the graph says {self.onnx_type}, and Triton carries only tensors: export the model "
            "without it (skl2onnx: options={'zipmap': False}), or only list the outputs that are "
            "tensors in config.pbtxt"
        )


@dataclass(frozen=True)
class Graph:
    """The tensors of a graph by name; ``defaults`` are inputs with an initializer."""

    inputs: dict[str, GraphTensor]
    defaults: dict[str, GraphTensor]
    outputs: dict[str, GraphTensor]

    @classmethod
    def read(cls, session: Any) -> "Graph":
        return cls(
            _tensors(session.get_inputs()),
            _tensors(session.get_overridable_initializers()),
            _tensors(session.get_outputs()),
        )

    @property
    def can_batch(self) -> bool:
        tensors = (*self.inputs.values(), *self.outputs.values())
        return all(tensor.dims[:1] == (-1,) for tensor in tensors)


def complete_config(config: Config, graph: Graph) -> None:
    """Fill in what the user left open; what is written is kept."""
    if config["max_batch_size"] == 0 and graph.can_batch and not _spells_batch_axis(config, graph):
        config["max_batch_size"] = DEFAULT_MAX_BATCH_SIZE
    batched = config["max_batch_size"] > 0
    if config["max_batch_size"] > 1 and "sequence_batching" not in config:
        config.setdefault("dynamic_batching", {})
    _fill(config, "input", graph.inputs, batched)
    _fill(config, "output", graph.outputs, batched)


def is_complete(config: Config) -> bool:
    """Whether the config declares all its tensors completely."""
    sides = (config.get("input"), config.get("output"))
    return all(side and all(map(_is_declared, side)) for side in sides)


def drop_empty_reshape(config: Config) -> None:
    """Remove ``reshape { shape: [] }``; the backend itself adds and drops those axes of length 1.

    Triton 2.51 crashes with SIGSEGV when a client sends zero rows to a Python-based model whose
    input has an empty reshape. Without it, Triton refuses such a request, and clients see the same
    shapes.
    """
    for entry in (*config.get("input", ()), *config.get("output", ())):
        if "reshape" in entry and not entry["reshape"].get("shape") and _all_ones(entry["dims"]):
            del entry["reshape"]


def check_config(config: Config, graph: Graph, warn: Warn) -> None:
    """ModelRefused, with the first disagreement, if the config and the graph disagree."""
    for disagreement in disagreements(config, graph, warn):
        side, tensor = disagreement.side, disagreement.tensor
        where = f" {side} tensor '{tensor}'" if side else ""
        message = f"{disagreement.message}: {disagreement.fix}"
        raise ModelRefused(f"model '{config['name']}'{where}: {message}")


def disagreements(config: Config, graph: Graph, warn: Warn) -> Iterator[Disagreement]:
    """All differences between a completed config and the graph, worst first."""
    yield from _unsupported(config)
    controls = set(_sequence_controls(config))
    written = {entry["name"] for entry in config["input"]} | controls
    for name in sorted(graph.inputs.keys() - written):
        yield Disagreement(
            "undeclared",
            "input",
            name,
            "the graph needs it but config.pbtxt does not list it",
            "add it, or leave out all inputs and let auto-complete list them",
        )
    for entry in config["input"]:
        yield from _entry(config, "input", entry, graph.inputs | graph.defaults, warn)
        yield from _optional(entry, graph)
    for entry in config["output"]:
        yield from _entry(config, "output", entry, graph.outputs, warn)


def is_squeezed(entry: Config, tensor: GraphTensor, batched: bool) -> bool:
    """Whether the config has axes of length 1 that the graph lacks: a scalar, or one value per row.

    Triton needs at least one dim per tensor, so rank 0 is written ``dims: [1]``.
    """
    is_bare = len(tensor.axes) == (1 if batched else 0)
    return is_bare and "reshape" not in entry and _all_ones(entry["dims"])


def _tensors(nodes: Iterable[Any]) -> dict[str, GraphTensor]:
    return {node.name: GraphTensor(node.name, node.type, tuple(node.shape)) for node in nodes}


def _all_ones(dims: Iterable[Any]) -> bool:
    return all(int(dim) == 1 for dim in dims)


def _named(config: Config, side: str, tensor: str) -> str:
    return f"model '{config['name']}' {side} tensor '{tensor}'"


def _is_declared(entry: Config) -> bool:
    return bool(entry.get("dims")) and entry.get("data_type", "TYPE_INVALID") != "TYPE_INVALID"


def _spells_batch_axis(config: Config, graph: Graph) -> bool:
    """Whether the user wrote dims of the graph's full rank, which means no batch axis."""
    tensors = graph.inputs | graph.outputs
    entries = (*config.get("input", ()), *config.get("output", ()))
    known = [entry for entry in entries if entry.get("dims") and entry["name"] in tensors]
    return any(len(entry["dims"]) == len(tensors[entry["name"]].axes) for entry in known)


def _fill(config: Config, side: str, tensors: dict[str, GraphTensor], batched: bool) -> None:
    # If the user listed some tensors, none are added: an output that is not listed is not served.
    entries = config.get(side) or [{"name": name} for name in tensors]
    for entry in entries:
        if entry["name"] in tensors and not _is_declared(entry):
            _describe(config, side, entry, tensors[entry["name"]], batched)
    config[side] = entries


def _describe(config: Config, side: str, entry: Config, tensor: GraphTensor, batched: bool) -> None:
    try:
        config_type = tensor.config_type
    except ModelRefused as reason:
        raise ModelRefused(f"{_named(config, side, tensor.name)}: {reason}") from None
    if entry.get("data_type", "TYPE_INVALID") == "TYPE_INVALID":
        entry["data_type"] = config_type
    if not entry.get("dims"):
        entry["dims"] = list(tensor.dims[1 if batched else 0 :]) or [1]


def _unsupported(config: Config) -> Iterator[Disagreement]:
    unsupported = {
        "batch_input": config.get("batch_input"),
        "batch_output": config.get("batch_output"),
        "sequence_batching.state": config.get("sequence_batching", {}).get("state"),
    }
    for field, value in unsupported.items():
        if value:
            yield Disagreement(
                "unsupported",
                "",
                "",
                f"config.pbtxt uses {field}, which Triton's Python backend does not offer",
                "serve this model with the native ONNX Runtime backend, or remove the field",
            )


def _sequence_controls(config: Config) -> Iterable[str]:
    """Inputs that Triton's sequence batcher adds to each request."""
    batching = config.get("sequence_batching", {})
    return (control["name"] for control in batching.get("control_input", ()))


def _entry(
    config: Config, side: str, entry: Config, tensors: dict[str, GraphTensor], warn: Warn
) -> Iterator[Disagreement]:
    name = entry["name"]
    tensor = tensors.get(name)
    if tensor is None:
        message = f"config.pbtxt lists it, but the graph has {sorted(tensors)}"
        yield Disagreement("unknown", side, name, message, "correct the name")
        return
    try:
        graph_type = tensor.config_type
    except ModelRefused as reason:
        message, _, fix = str(reason).partition(": ")
        yield Disagreement("type", side, name, message, fix)
        return
    if entry["data_type"] != graph_type:
        message = f"config.pbtxt says {entry['data_type']}, the graph says {graph_type}"
        yield Disagreement("type", side, name, message, f"write data_type: {graph_type}")
    yield from _dims(config, side, entry, tensor, warn)


def _dims(
    config: Config, side: str, entry: Config, tensor: GraphTensor, warn: Warn
) -> Iterator[Disagreement]:
    name, batched = tensor.name, config["max_batch_size"] > 0
    if not tensor.axes:
        # ONNX Runtime describes a scalar and a tensor without a declared shape in the same way.
        if not _all_ones(entry["dims"]):
            where = _named(config, side, name)
            warn(f"{where}: the graph declares no shape, so dims {entry['dims']} are not checked")
    elif batched and tensor.dims[0] != -1:
        yield Disagreement(
            "batch",
            side,
            name,
            f"config.pbtxt says max_batch_size {config['max_batch_size']}, the graph fixes the "
            f"first axis, {list(tensor.dims)}",
            "write max_batch_size: 0, or export the graph with a dynamic first axis",
        )
    elif not is_squeezed(entry, tensor, batched) and not _agree(side, entry, tensor, batched):
        yield Disagreement(
            "shape",
            side,
            name,
            f"config.pbtxt says dims {model_dims(entry)}, the graph says {list(tensor.dims)}"
            + (" of which the first is the batch axis" if batched else ""),
            f"write dims: {list(tensor.dims[1 if batched else 0 :])}",
        )


def model_dims(entry: Config) -> list[int]:
    """The dims that the graph gets: those of the reshape, if there is one."""
    shape = entry["reshape"].get("shape", []) if "reshape" in entry else entry["dims"]
    return [int(dim) for dim in shape]


def _agree(side: str, entry: Config, tensor: GraphTensor, batched: bool) -> bool:
    written = (-1, *model_dims(entry)) if batched else tuple(model_dims(entry))
    if side == "output":
        # As strict as the native backend: an output's open dims must be exactly the graph's.
        return written == tensor.dims
    pairs = zip(written, tensor.dims, strict=False)
    return len(written) == len(tensor.dims) and all(axis in (-1, dim) for dim, axis in pairs)


def _optional(entry: Config, graph: Graph) -> Iterator[Disagreement]:
    if entry.get("optional") and entry["name"] not in graph.defaults:
        yield Disagreement(
            "optional",
            "input",
            entry["name"],
            "config.pbtxt says optional, but the graph has no default for it",
            "remove optional, or give the graph an initializer of that name",
        )
