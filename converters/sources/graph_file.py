"""An ONNX file, or a folder with one and its external data: checked, and served as it is."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from converters.errors import SourceMissing, SourceRefused
from converters.sources.tensor_source import Group, Port, TensorSource, Told
from converters.tensors.graph_oracle import ask_reference
from converters.tensors.graph_probe import probe

# What protobuf, and so one file, can hold.
SIZE_LIMIT_BYTES = 2 * 1024**3 - 1
# Operators that leave ids what they are.
AS_THEY_ARE = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose")
DEPTH_LIMIT = 32  # graphs in graphs in graphs; exporters need three


class GraphFile(TensorSource):
    def __init__(self, path: Path) -> None:
        self.path = _find(path)
        model = _read(self.path)
        self._external = sorted({_inside(self.path, tensor) for tensor in _external(model.graph)})
        _require_small(self.path, self._external)
        found = probe(self.path)
        self.inputs = tuple(Port.from_facts(each) for each in found["inputs"])
        self.outputs = tuple(Port.from_facts(each) for each in found["outputs"])

    def files(self) -> list[Path]:
        return [self.path, *self._external]

    def example(self) -> Group | None:
        return None

    def computes_in_half(self) -> bool:
        model = onnx.load(self.path, load_external_data=False)
        return any(each.data_type == TensorProto.FLOAT16 for each in _tensors(model.graph))

    def tables(self) -> Mapping[str, int]:
        return tables_of(onnx.load(self.path, load_external_data=False).graph)

    def write(self, target: Path) -> None:
        """The very graph; external data is drawn in, so that the engine is one file."""
        if not self._external:
            target.write_bytes(self.path.read_bytes())
            return
        onnx.save(onnx.load(self.path), target)

    def ask(self, groups: Sequence[Group], folder: Path) -> Told:
        return ask_reference(self.path, groups, folder)


def tables_of(graph: onnx.GraphProto) -> dict[str, int]:
    """The graph's inputs that are, as they are or cast and reshaped, the indices of a Gather from a
    constant table, with the fewest rows that one of these tables has."""
    rows = {each.name: each.dims[0] for each in graph.initializer if each.dims}
    rows |= {
        node.output[0]: attribute.t.dims[0]
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and attribute.t.dims
    }
    origin = {each.name: each.name for each in graph.input if each.name not in rows}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in AS_THEY_ARE and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        if node.op_type != "Gather" or axis or node.input[0] not in rows:
            continue
        name = origin.get(node.input[1])
        if name is not None:
            found[name] = min(rows[node.input[0]], found.get(name, rows[node.input[0]]))
    return found


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
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
