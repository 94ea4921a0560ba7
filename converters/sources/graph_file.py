"""An ONNX file, or a folder with one and its external data: checked, and served as it is."""

import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from converters.errors import SourceMissing, SourceRefused
from converters.sources.tensor_source import Group, ReferenceOutputs, TensorInfo, TensorSource
from converters.tensors.graph_oracle import ask_reference
from converters.tensors.graph_probe import probe

# What protobuf, and so one file, can hold.
SIZE_LIMIT_BYTES = 2 * 1024**3 - 1
DEPTH_LIMIT = 32  # graphs in graphs in graphs; exporters need three


class GraphFile(TensorSource):
    def __init__(self, path: Path) -> None:
        self.path = _find(path)
        model = _read(self.path)
        self._external = sorted({_inside(self.path, tensor) for tensor in _external(model.graph)})
        _require_small(self.path, self._external)
        # What is asked, served and proved: the file, or with BF16 made FP32 at its ends.
        self._asked = self.path
        if _bf16_ports(model.graph):
            folder = mkdtemp(prefix="tidegate-graph-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._asked = _without_bf16(self.path, Path(folder))
        found = probe(self._asked, self.path)
        taken = [TensorInfo.from_facts(each) for each in found["inputs"]]
        # JSON has no FP16: such an input is served as FP32, and rounded inside the graph.
        self._half = frozenset(port.name for port in taken if port.dtype == "FP16")
        self.inputs = tuple(
            replace(port, dtype="FP32") if port.name in self._half else port for port in taken
        )
        self.outputs = tuple(TensorInfo.from_facts(each) for each in found["outputs"])
        self._ids = {name: np.array(counts) for name, counts in found["ids"].items()}

    def files(self) -> list[Path]:
        return [self.path, *self._external]

    def example(self) -> Group | None:
        return None

    def computes_in_half(self) -> bool:
        model = onnx.load(self.path, load_external_data=False)
        halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        rounded = any(p.type.tensor_type.elem_type in halves[1:] for p in model.graph.output)
        return rounded or any(each.data_type in halves for each in _tensors(model.graph))

    def ids(self) -> Mapping[str, np.ndarray]:
        return self._ids

    def write(self, target: Path) -> None:
        """The very graph; external data is drawn in, so that the engine is one file, and FP16
        inputs are made of FP32 ones."""
        if not self._external and not self._half:
            target.write_bytes(self._asked.read_bytes())
            return
        model = onnx.load(self._asked)
        for name in sorted(self._half):
            _take_fp32(model.graph, name)
        onnx.save(model, target)

    def ask(self, groups: Sequence[Group], folder: Path) -> ReferenceOutputs:
        halved = [
            {
                name: values.astype(np.float16) if name in self._half else values
                for name, values in group.items()
            }
            for group in groups
        ]
        return ask_reference(self._asked, halved, folder)


def _bf16_ports(graph: onnx.GraphProto) -> list[str]:
    """The inputs and outputs of BF16, weights that are listed as inputs left out."""
    weights = {each.name for each in graph.initializer}
    ports = (each for each in (*graph.input, *graph.output) if each.name not in weights)
    return [p.name for p in ports if p.type.tensor_type.elem_type == TensorProto.BFLOAT16]


def _without_bf16(path: Path, folder: Path) -> Path:
    """The graph in ``folder`` with FP32 for every BF16 input and output, which neither NumPy nor
    JSON can hold: an input is rounded by a Cast, an output is what it was."""
    model = onnx.load(path)
    named = _bf16_ports(model.graph)
    for port in model.graph.input:
        if port.name in named:
            _take_fp32(model.graph, port.name, TensorProto.BFLOAT16)
    for port in model.graph.output:
        if port.name not in named:
            continue
        inside = f"{port.name}__bf16"
        for node in model.graph.node:
            node.output[:] = [inside if each == port.name else each for each in node.output]
        _read_instead(model.graph, port.name, inside)
        port.type.tensor_type.elem_type = TensorProto.FLOAT
        cast = helper.make_node("Cast", [inside], [port.name], to=TensorProto.FLOAT)
        model.graph.node.append(cast)
    onnx.save(model, folder / path.name)
    return folder / path.name


def _take_fp32(graph: onnx.GraphProto, name: str, kind: int = TensorProto.FLOAT16) -> None:
    """The input ``name`` as FP32, with a Cast to the ``kind`` that the graph reads."""
    inside = f"{name}__{'bf16' if kind == TensorProto.BFLOAT16 else 'fp16'}"
    _read_instead(graph, name, inside)
    port = next(each for each in graph.input if each.name == name)
    port.type.tensor_type.elem_type = TensorProto.FLOAT
    cast = helper.make_node("Cast", [name], [inside], to=kind)
    graph.node.insert(0, cast)


def _read_instead(graph: onnx.GraphProto, name: str, other: str) -> None:
    """Whatever reads ``name``, in the graphs within this one too, reads ``other``."""
    for node in graph.node:
        node.input[:] = [other if each == name else each for each in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _read_instead(inner, name, other)


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
        if not found and (path / "config.json").is_file():
            raise SourceRefused(
                f"{path} has a config.json and no .onnx file: it is no model of plain tensors. "
                "Give the --task that it was trained for"
            )
        if len(found) != 1:
            raise SourceRefused(
                f"{path} has {len(found)} .onnx files: give the folder of one model, or the file"
            )
        path = found[0]
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give an .onnx file, or a folder with one")
    return path


def _read(path: Path) -> onnx.ModelProto:
    if path.stat().st_size > SIZE_LIMIT_BYTES:
        raise SourceRefused(f"{path} is over 2 GB, which no ONNX file can be: use external data")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise SourceRefused(f"{path} is cut off, or no ONNX file: export it again") from error
    if not model.graph.node or not model.graph.output:
        raise SourceRefused(
            f"{path} is cut off, or no ONNX file (it has no graph): export it again"
        )
    return model


def _tensors(graph: onnx.GraphProto, depth: int = 0) -> Iterator[TensorProto]:
    """Every constant in the graph and the graphs within it."""
    if depth > DEPTH_LIMIT:
        raise SourceRefused(f"its graphs are nested more than {DEPTH_LIMIT} deep")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner, depth + 1)


def _external(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    return (each for each in _tensors(graph) if each.data_location == TensorProto.EXTERNAL)


def _inside(path: Path, tensor: TensorProto) -> Path:
    """The file with the tensor's data; SourceRefused when it lies outside the model's folder."""
    settings = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = settings.get("location", ""), path.parent.resolve()
    file = (folder / location).resolve()
    if not location or not file.is_relative_to(folder) or Path(location).is_absolute():
        raise SourceRefused(
            f"{path}: the data of {tensor.name!r} is said to lie at {location!r}, outside the "
            "model's folder: such a file is never read"
        )
    if not file.is_file():
        raise SourceMissing(
            f"{path}: the data of {tensor.name!r} is said to lie in {location!r}, which is not "
            "there: copy it beside the .onnx file"
        )
    _require_whole(path, tensor, file, settings)
    return file


def _require_whole(path: Path, tensor: TensorProto, file: Path, settings: dict[str, str]) -> None:
    try:
        end = int(settings.get("offset", 0)) + int(settings.get("length", 0))
    except ValueError:
        end = -1
    if not 0 <= end <= file.stat().st_size:
        raise SourceRefused(
            f"{path}: the data of {tensor.name!r} ends at byte {end} of {file.name}, which has "
            f"{file.stat().st_size}: it is cut off, copy it again"
        )


def _require_small(path: Path, external: Sequence[Path]) -> None:
    total = sum(file.stat().st_size for file in (path, *external))
    if total > SIZE_LIMIT_BYTES:
        raise SourceRefused(
            f"{path} and its data are {total} bytes: over 2 GB is not served as one ONNX file"
        )
