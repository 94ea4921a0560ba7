"""A proved FP32 graph in other precisions: smaller or faster, each to be proved again.

    write_precision("int8-weight-only", source, target, feeds)

``converters.proof.tolerance`` has the limits within which each may differ from the original, and
docs/precisions.md what each is for and what was measured.
"""

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from converters.errors import ConversionError, ExportFailed

PRECISIONS: dict[str, str] = {
    "fp32": "the graph as it is: the original's answers",
    "fp16": "FP16 weights and arithmetic, half the size, for GPUs",
    "int8-weight-only": "8-bit weights of matrices; answers do not depend on the batch",
    "int8-static": "8-bit weights and activations, calibrated; answers do not depend on the batch",
    "int8-per-row": "8-bit, scaled by row: fast text on a CPU; answers do not depend on the batch",
    "int8-dynamic": "8-bit, scaled by each batch: fastest text on a CPU, answers depend on it",
}

Feeds = Callable[[], Iterable[Mapping[str, np.ndarray]]]


def write_precision(precision: str, source: Path, target: Path, feeds: Feeds) -> None:
    """Write ``target`` from the FP32 ONNX file ``source``: completely, or not at all.

    ``feeds`` is called only for int8-static and int8-per-row, and yields samples: mappings from the
    graph's input names to arrays with a batch axis. They are consumed one at a time, so that memory
    does not grow with their number. The same source and samples give the same bytes.

    Raises ConversionError for an unknown precision and ExportFailed if this graph cannot be written
    in the precision; both messages say what to do instead.
    """
    if precision not in PRECISIONS:
        raise ConversionError(
            f"there is no precision {precision!r}: choose from {', '.join(PRECISIONS)}"
        )
    # In the target's folder, so that a rename is enough once the file is complete.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".precision-") as work:
        output = Path(work) / "model.onnx"
        try:
            with _quiet():
                _write(precision, source, output, feeds)
                _require_loadable(output)
        except ConversionError:
            raise
        except Exception as error:  # the quantisers raise many types; one remedy fits all
            raise ExportFailed(
                f"the graph could not be written as {precision}: {_first_line(error)}. "
                "Use another --precision; fp32 always works"
            ) from error
        output.replace(target)


def _write(precision: str, source: Path, output: Path, feeds: Feeds) -> None:
    # Imported late: onnx and the quantisers take a second to load.
    from converters.precisions import (
        fp16,
        int8_dynamic,
        int8_per_row,
        int8_static,
        int8_weight_only,
    )

    writers: dict[str, Callable[[], object]] = {
        "fp32": lambda: shutil.copyfile(source, output),
        "fp16": lambda: fp16.write_fp16(source, output),
        "int8-weight-only": lambda: int8_weight_only.write_int8_weight_only(source, output),
        "int8-static": lambda: int8_static.write_int8_static(source, output, feeds),
        "int8-per-row": lambda: int8_per_row.write_int8_per_row(source, output, feeds),
        "int8-dynamic": lambda: int8_dynamic.write_int8_dynamic(source, output),
    }
    if precision not in ("fp32", "fp16"):
        _require_fp32_weights(source)
    writers[precision]()


def _require_fp32_weights(source: Path) -> None:
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if any(tensor.data_type in half and len(tensor.dims) > 1 for tensor in graph.initializer):
        raise ExportFailed(
            "the graph has weights in FP16, and 8 bits are written from FP32: export it in FP32, "
            "or leave --precision out"
        )


def _require_loadable(output: Path) -> None:
    """Load the graph: ``onnx.checker`` does not know ONNX Runtime's own operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers print, log every step, and one of them configures the root logger."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)
