"""The original of a model of plain tensors, asked in a process of its own.

A graph runs in an executor that shares nothing with ONNX Runtime, a torch module in torch, which is
imported only for one.
"""

from collections.abc import Sequence
from pathlib import Path

from converters.errors import SourceRefused
from converters.sources.graph_file import GraphFile
from converters.sources.tensor_source import Batch, ReferenceOutputs, TensorSource
from converters.tasks.tensors.graph_reference import ask_graph


def ask_original(source: TensorSource, groups: Sequence[Batch], folder: Path) -> ReferenceOutputs:
    """The original's outputs, computed one row at a time; SourceRefused if each call of a factory
    builds another model."""
    if isinstance(source, GraphFile):
        stored = [source.stored_types(group) for group in groups]
        return ask_graph(source.graph_path, stored, folder)
    from converters.sources.torch_factory import TorchFactory
    from converters.tasks.tensors.torch_reference import ask_module

    if not isinstance(source, TorchFactory):
        raise TypeError(f"no reference program for {type(source).__name__}")
    names = [output.name for output in source.outputs]
    outputs, weights = ask_module(source.source, names, groups, folder)
    if weights != source.settings():
        raise SourceRefused(
            f"{source.source} builds a different model each time it is called (random weights?): "
            "load trained weights, or seed it"
        )
    return outputs
