"""The task ``tensors``: a torch module or an ONNX graph, served with its own tensors."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.cache import Progress, files_sha256
from converters.errors import SourceRefused
from converters.proof.checks import Check
from converters.proof.closeness import Closeness, spread_of
from converters.proof.exercised import rows_lines, spread_lines
from converters.proof.reference import Feed, Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.sources.batch_files import pack_batches, unpack_batches
from converters.sources.made_up_rows import made_up
from converters.sources.tensor_source import Batch, TensorSource, require_servable, to_feed
from converters.task import ConversionRequest, Eager, Task, TorchModule
from converters.tasks.tensors.checks import (
    TensorGraph,
    graph_checks,
    outputs_closeness,
    parity_checks,
)
from converters.tasks.tensors.reached import unreached
from converters.tasks.tensors.reference import ask_original
from converters.tasks.tensors.samples import read_npz, variations, whole_tables
from converters.tasks.tensors.served import served_checks
from modelspec.golden import Golden

INPUTS, OUTPUTS, NOISE = "in", "out", "noise"
GOLDEN_ELEMENTS = 8


class Tensors(Task):
    """Answers: groups of rows, packed as ``in``, ``out`` and ``noise``, and the ``executor``."""

    name: ClassVar[str] = "tensors"

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        self.source: TensorSource = open_source(request.source)
        require_servable(self.source.inputs, "input")
        require_servable(self.source.outputs, "output")
        names = {tensor.name for tensor in self.source.inputs}
        both = [tensor.name for tensor in self.source.outputs if tensor.name in names]
        if both:
            raise SourceRefused(
                f"{request.source} has an output of the same name as its input {both[0]!r}, and "
                "Triton cannot serve one tensor as both: give that output another name, or leave "
                "it out"
            )
        self.groups = self._groups()

    def _groups(self) -> list[Batch]:
        if self.request.samples:
            return read_npz(self.request.samples, self.source.inputs)
        example, inputs = self.source.example(), self.source.inputs
        groups = made_up(inputs) if example is None else variations(example, inputs)
        return whole_tables(groups, self.source.ids())

    def calibration(self, reference: Reference) -> Iterator[Feed]:
        example = self.source.example()
        if not self.request.samples and example is not None:
            for name, values in example.items():
                if values.dtype.kind == "f" and values.size and values.min() == values.max():
                    raise SourceRefused(
                        f"8-bit scales are measured on samples, and the example of input {name!r} "
                        f"is all {values.flat[0]:g}, which says nothing about the range of real "
                        "inputs: give --samples, or an example with real rows"
                    )
        return self.feeds(reference)

    def exercised(self, reference: Reference) -> list[str]:
        groups = unpack_batches(reference.outputs, INPUTS)
        count = sum(map(_rows, groups))
        lines = [f"{self.whose(count)}, answered by {reference.outputs['executor']}"]
        for name, counts in self.source.ids().items():
            lines += _id_lines(name, counts, [group[name] for group in groups])
        graph = reference.folder / "model.onnx"
        if graph.is_file():
            lines += unreached(graph, self.feeds(reference))
        for group in groups:
            lines += self._input_lines(group)
        for outputs in unpack_batches(reference.outputs, OUTPUTS):
            for name, values in outputs.items():
                lines += spread_lines(f"output {name}", values, reference.tolerance)
        return list(dict.fromkeys(lines))

    def _input_lines(self, group: Batch) -> Iterator[str]:
        for name, values in group.items():
            if values.dtype.kind in "fiu":
                yield f"input {name}: numbers from {values.min():.4g} to {values.max():.4g}"

    def files(self) -> list[Path]:
        return self.source.files()

    def packages(self) -> tuple[str, ...]:
        return self.source.packages()

    def settings(self) -> str:
        samples = files_sha256([self.request.samples]) if self.request.samples else "varied"
        return f"{samples} {self.source.settings()}"

    def metadata(self) -> dict[str, Any]:
        return {
            "inputs": [tensor.metadata() for tensor in self.source.inputs],
            "outputs": [tensor.metadata() for tensor in self.source.outputs],
            "half": self.source.computes_in_fp16(),
        }

    def export(self, target: Path) -> None:
        self.source.write(target)

    def torch_module(self) -> TorchModule | None:
        return self.source.torch_module()

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        reported = ask_original(self.source, self.groups, folder)
        _require_finite(reported.outputs, bool(self.request.samples))
        report(
            f"{self.request.name}: {sum(map(_rows, self.groups))} samples "
            f"answered by {reported.executor}"
        )
        return {
            **pack_batches(self.groups, INPUTS),
            **pack_batches(reported.outputs, OUTPUTS),
            **pack_batches(reported.noise, NOISE),
            "executor": np.array(reported.executor),
        }

    def feeds(self, reference: Reference) -> Iterator[Feed]:
        for group in unpack_batches(reference.outputs, INPUTS):
            for row in range(_rows(group)):
                yield to_feed({name: values[row : row + 1] for name, values in group.items()})

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        return graph_checks(TensorGraph(engine, reference.metadata, runner), reference)

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        return parity_checks(TensorGraph(engine, reference.metadata), reference)

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        return outputs_closeness(TensorGraph(engine, reference.metadata), reference)

    def eager(self) -> Eager | None:
        return self.source.eager()

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference)

    def golden(self, reference: Reference) -> Golden:
        inputs = unpack_batches(reference.outputs, INPUTS)[0]
        outputs = unpack_batches(reference.outputs, OUTPUTS)[0]
        expect = {name: _flat(values[0])[:GOLDEN_ELEMENTS] for name, values in outputs.items()}
        return Golden(
            request={
                tensor.name: _flat(inputs[tensor.name][0])
                if tensor.dims
                else inputs[tensor.name][0].item()
                for tensor in self.source.inputs
            },
            expect=expect,
            tolerance=_golden_tolerance(outputs, reference),
        )


def open_source(source: str) -> TensorSource:
    """The model that ``source`` names: ``module:factory``, an .onnx file or a folder with one."""
    path = Path(source)
    if path.suffix.lower() == ".onnx" or path.is_dir():
        from converters.sources.graph_file import GraphFile

        return GraphFile(path)
    if ":" not in source:
        raise SourceRefused(
            f"{source} is neither an .onnx file or folder nor package.module:factory: give one"
        )
    from converters.sources.torch_factory import TorchFactory

    return TorchFactory(source)


def _id_lines(name: str, counts: np.ndarray, inputs: Sequence[np.ndarray]) -> Iterator[str]:
    """How many of their ids the samples have, for each element of a row, or for all together."""
    if not counts.ndim:
        ids = np.concatenate([values.reshape(-1) for values in inputs])
        yield from rows_lines(f"input {name}", ids, int(counts))
        return
    for position in np.ndindex(counts.shape):
        if counts[position]:
            index = int(np.ravel_multi_index(position, counts.shape))
            ids = np.concatenate([values.reshape(len(values), -1)[:, index] for values in inputs])
            suffix = f"[{', '.join(map(str, position))}]" if position else ""
            yield from rows_lines(f"input {name}{suffix}", ids, int(counts[position]))


def _rows(group: Batch) -> int:
    return len(next(iter(group.values())))


def _flat(values: np.ndarray) -> list[object]:
    return list(np.ravel(values).tolist())


def _golden_tolerance(outputs: Batch, reference: Reference) -> float:
    """Ten times the largest difference that any output may have."""
    differences = [0.0]
    for values in outputs.values():
        if values.dtype.kind == "f" and values.size:
            spread, shares = spread_of(values), reference.tolerance.shares
            difference = shares.largest * float(spread.size.max()) + float(spread.floor.max())
            differences.append(difference)
    return 10 * max(differences)


def _require_finite(outputs: Sequence[Batch], from_user: bool) -> None:
    samples = "samples" if from_user else "made-up samples"
    for index, group in enumerate(outputs):
        for name, values in group.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0][0])
                raise SourceRefused(
                    f"the original itself returns NaN or infinity in output {name!r} for {samples} "
                    f"row {row} of group {index}: fix the model, or give other --samples"
                )
