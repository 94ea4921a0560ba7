"""An ONNX file, or a folder with one and its external data: checked, then served unchanged."""

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
from converters.export.tensor_info import TensorInfo
from converters.sources.graph_probe import probe
from converters.sources.tensor_source import Batch, TensorSource

# The most that protobuf, and so one file, can hold.
SIZE_LIMIT_BYTES = 2 * 1024**3 - 1
DEPTH_LIMIT = 32  # of graphs within graphs; exporters need three


class GraphFile(TensorSource):
    def __init__(self, path: Path) -> None:
        self.path = _find_graph(path)
        model = _read(self.path)
        self._external = sorted(
            {_external_file(self.path, tensor) for tensor in _external_tensors(model.graph)}
        )
        _require_small(self.path, self._external)
        # The graph that is run, served and proved: the file itself, or a copy whose BF16 inputs and
        # outputs are FP32.
        self.graph_path = self.path
        if _bf16_tensors(model.graph):
            folder = mkdtemp(prefix="tidegate-graph-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.graph_path = _without_bf16(self.path, Path(folder))
        metadata = probe(self.graph_path, self.path)
        declared = [TensorInfo.from_metadata(tensor) for tensor in metadata["inputs"]]
        # JSON has no FP16: such an input is served as FP32 and rounded inside the graph.
        self._fp16_inputs = frozenset(info.name for info in declared if info.dtype == "FP16")
        self.inputs = tuple(
            replace(info, dtype="FP32") if info.name in self._fp16_inputs else info
            for info in declared
        )
        self.outputs = tuple(TensorInfo.from_metadata(tensor) for tensor in metadata["outputs"])
        self._ids = {name: np.array(counts) for name, counts in metadata["ids"].items()}

    def files(self) -> list[Path]:
        return [self.path, *self._external]

    def example(self) -> Batch | None:
        return None

    def computes_in_fp16(self) -> bool:
        model = onnx.load(self.path, load_external_data=False)
        fp16_types = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        has_bf16_output = any(
            output.type.tensor_type.elem_type in fp16_types[1:] for output in model.graph.output
        )
        return has_bf16_output or any(
            tensor.data_type in fp16_types for tensor in _tensors(model.graph)
        )

    def ids(self) -> Mapping[str, np.ndarray]:
        return self._ids

    def write(self, target: Path) -> None:
        """Write the graph to ``target``: external data is embedded, so that the engine is one file,
        and FP16 inputs accept FP32."""
        if not self._external and not self._fp16_inputs:
            target.write_bytes(self.graph_path.read_bytes())
            return
        model = onnx.load(self.graph_path)
        for name in sorted(self._fp16_inputs):
            _accept_fp32(model.graph, name)
        onnx.save(model, target)

    def stored_types(self, group: Batch) -> Batch:
        """The group in the dtypes of the graph's own inputs: FP16 where it reads FP16."""
        return {
            name: values.astype(np.float16) if name in self._fp16_inputs else values
            for name, values in group.items()
        }


def _bf16_tensors(graph: onnx.GraphProto) -> list[str]:
    """The BF16 inputs and outputs, without weights that are also declared as inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    tensors = (info for info in (*graph.input, *graph.output) if info.name not in weights)
    return [
        info.name for info in tensors if info.type.tensor_type.elem_type == TensorProto.BFLOAT16
    ]


def _without_bf16(path: Path, folder: Path) -> Path:
    """Write the graph to ``folder`` with FP32 for each BF16 input and output, which neither NumPy
    nor JSON can hold: a Cast rounds an input, an output keeps its value."""
    model = onnx.load(path)
    names = _bf16_tensors(model.graph)
    for info in model.graph.input:
        if info.name in names:
            _accept_fp32(model.graph, info.name, TensorProto.BFLOAT16)
    for info in model.graph.output:
        if info.name not in names:
            continue
        inner_name = f"{info.name}__bf16"
        for node in model.graph.node:
            node.output[:] = [inner_name if name == info.name else name for name in node.output]
        _redirect(model.graph, info.name, inner_name)
        info.type.tensor_type.elem_type = TensorProto.FLOAT
        cast = helper.make_node("Cast", [inner_name], [info.name], to=TensorProto.FLOAT)
        model.graph.node.append(cast)
    onnx.save(model, folder / path.name)
    return folder / path.name


def _accept_fp32(graph: onnx.GraphProto, name: str, dtype: int = TensorProto.FLOAT16) -> None:
    """Make the input ``name`` FP32, with a Cast to the ``dtype`` that the graph reads."""
    inner_name = f"{name}__{'bf16' if dtype == TensorProto.BFLOAT16 else 'fp16'}"
    _redirect(graph, name, inner_name)
    info = next(tensor for tensor in graph.input if tensor.name == name)
    info.type.tensor_type.elem_type = TensorProto.FLOAT
    cast = helper.make_node("Cast", [name], [inner_name], to=dtype)
    graph.node.insert(0, cast)


def _redirect(graph: onnx.GraphProto, name: str, replacement: str) -> None:
    """Make every node that reads ``name``, in inner graphs too, read ``replacement``."""
    for node in graph.node:
        node.input[:] = [replacement if read == name else read for read in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _redirect(inner, name, replacement)


def _find_graph(path: Path) -> Path:
    if path.is_dir():
        graphs = sorted(path.glob("*.onnx"))
        if not graphs and (path / "config.json").is_file():
            raise SourceRefused(
                f"{path} has a config.json but no .onnx file, so it is not a model of plain "
                "tensors. Give the --task that it was trained for"
            )
        if len(graphs) != 1:
            raise SourceRefused(
                f"{path} has {len(graphs)} .onnx files: give the folder of one model, or the file"
            )
        path = graphs[0]
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give an .onnx file, or a folder with one")
    return path


def _read(path: Path) -> onnx.ModelProto:
    if path.stat().st_size > SIZE_LIMIT_BYTES:
        raise SourceRefused(f"{path} is over 2 GB, the limit of an ONNX file: use external data")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise SourceRefused(f"{path} is truncated, or not an ONNX file: export it again") from error
    if not model.graph.node or not model.graph.output:
        raise SourceRefused(
            f"{path} is truncated, or not an ONNX file (it has no graph): export it again"
        )
    return model


def _tensors(graph: onnx.GraphProto, depth: int = 0) -> Iterator[TensorProto]:
    """Yield every constant in the graph and the graphs within it."""
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


def _external_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    return (tensor for tensor in _tensors(graph) if tensor.data_location == TensorProto.EXTERNAL)


def _external_file(path: Path, tensor: TensorProto) -> Path:
    """The file with the tensor's data; SourceRefused if it is outside the model's folder,
    SourceMissing if it does not exist."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    file = (folder / location).resolve()
    if not location or not file.is_relative_to(folder) or Path(location).is_absolute():
        raise SourceRefused(
            f"{path}: the data of {tensor.name!r} is declared to be at {location!r}, outside the "
            "model's folder, where no file is read"
        )
    if not file.is_file():
        raise SourceMissing(
            f"{path}: the data of {tensor.name!r} is declared to be in {location!r}, which is not "
            "there: copy it beside the .onnx file"
        )
    _require_complete(path, tensor, file, entries)
    return file


def _require_complete(path: Path, tensor: TensorProto, file: Path, entries: dict[str, str]) -> None:
    try:
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    except ValueError:
        end = -1
    if not 0 <= end <= file.stat().st_size:
        raise SourceRefused(
            f"{path}: the data of {tensor.name!r} ends at byte {end} of {file.name}, which has "
            f"{file.stat().st_size} bytes: the file is truncated, copy it again"
        )


def _require_small(path: Path, external: Sequence[Path]) -> None:
    total = sum(file.stat().st_size for file in (path, *external))
    if total > SIZE_LIMIT_BYTES:
        raise SourceRefused(
            f"{path} and its data are {total} bytes: a model over 2 GB cannot be served as one "
            "ONNX file"
        )
