"""CUDA graphs: the launches of a whole run, recorded once and replayed as one.

A run of a small batch spends its time on launching kernels: MiniLM in FP16 with one row takes
0.50 ms as a graph on an H200, and 1.6 without (docs/gpu.md). A graph is captured for one shape, and
reads and writes fixed addresses on the GPU.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from ort_graph import Config, GraphTensor, ModelRefused, model_dims
from ort_session import run_options, string_parameters

Array = npt.NDArray[Any]
# The lengths, in elements, of all axes that the config leaves open: a graph is captured for each.
LENGTHS_PARAMETER = "cuda_graph_lengths"
# A replay that differs more than this from an ordinary run is another computation, not rounding:
# in FP16, the two may choose other kernels.
RELATIVE, ABSOLUTE = 2e-2, 5e-3


class CudaGraph:
    """One shape's graph. Nothing here is thread-safe; an instance of a model has one thread."""

    def __init__(self, session: Any, config: Config, device: tuple[str, int], number: int) -> None:
        self._session, self._device = session, device
        self._options = run_options(config, number)
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}

    def capture(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Capture for tensors of these shapes; ``outputs`` are those of an ordinary run."""
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(array, *self._device)
            self._inputs[name] = value
            self._binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype, *self._device
            )
            self._outputs[name] = value
            self._binding.bind_ortvalue_output(name, value)
        self._session.run_with_iobinding(self._binding, self._options)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names, for feeds of exactly the captured shapes and dtypes."""
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        self._session.run_with_iobinding(self._binding, self._options)
        return [self._outputs[name].numpy() for name in names]


def graph_shapes(
    config: Config, tensors: Iterable[GraphTensor], rows: Sequence[int]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """The input shapes to capture, by tensor name: each number of rows with each length.
    ModelRefused if there are no such shapes."""
    written = string_parameters(config).get(LENGTHS_PARAMETER, "")
    dims = {entry["name"]: model_dims(entry) for entry in config["input"]}
    is_open = any(-1 in shape for shape in dims.values())
    problem = ""
    if any(tensor.dtype == np.object_ for tensor in tensors):
        problem = "an input holds strings"
    elif is_open and not written:
        problem = f"inputs have open dims, and the parameter {LENGTHS_PARAMETER} does not say which"
    elif is_open and not all(length.strip().isdecimal() for length in written.split(",")):
        problem = f"the parameter {LENGTHS_PARAMETER} cannot be '{written}' (write 16,32,64)"
    if problem:
        raise ModelRefused(f"no CUDA graph can be captured: {problem}")
    lengths = [int(length) for length in written.split(",")] if is_open else [0]
    batched = config["max_batch_size"] > 0
    for count, length in itertools.product(rows, lengths):
        yield {
            name: (*((count,) if batched else ()), *(length if dim == -1 else dim for dim in shape))
            for name, shape in dims.items()
        }


def differ(replayed: Sequence[Array], ordinary: Sequence[Array]) -> bool:
    """Whether a replay gave other values than an ordinary run."""
    return not all(
        np.allclose(one, other, RELATIVE, ABSOLUTE, equal_nan=True)
        for one, other in zip(replayed, ordinary, strict=True)
    )
