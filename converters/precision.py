"""Variants of a proved FP32 graph: smaller or faster, and each to be proved again.

    write_precision("w8", source, target, feeds)

What a precision may differ by is in ``converters.tolerance``; what each is for, and what was
measured, in docs/precisions.md.
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
    "w8": "8-bit weights for matrix multiplications; answers do not depend on the batch",
    "int8": "8-bit weights and activations, calibrated; answers do not depend on the batch",
    "int8-rows": "8-bit, scaled by row: fast text on a CPU; answers do not depend on the batch",
    "int8-dynamic": "8-bit, scaled by each batch: fastest text on a CPU, answers depend on it",
}

Feeds = Callable[[], Iterable[Mapping[str, np.ndarray]]]


def write_precision(precision: str, source: Path, target: Path, feeds: Feeds) -> None:
    """Write ``target`` from the FP32 ONNX file ``source``: whole, or not at all.

    ``feeds`` is called only for int8 and int8-rows, and gives samples: one mapping each from the
    graph's input names to arrays with a batch axis. They are taken one at a time, so that memory
    does not grow with their number. The same source and samples give the same bytes.

    Raises ConversionError for an unknown precision and ExportFailed if this graph cannot be
    written so; both say what to do instead.
    """
    if precision not in PRECISIONS:
        raise ConversionError(
            f"there is no precision {precision!r}: choose from {', '.join(PRECISIONS)}"
        )
    # In the target's folder: what is finished then only has to be renamed.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".precision-") as work:
        made = Path(work) / "model.onnx"
        try:
            with _quiet():
                _write(precision, source, made, feeds)
                _require_loadable(made)
        except ConversionError:
            raise
        except Exception as error:  # the quantisers raise many kinds; a user does the same for all
            raise ExportFailed(
                f"the graph could not be written as {precision}: {_first_line(error)}. "
                "Use another --precision; fp32 always works"
            ) from error
        made.replace(target)


def _write(precision: str, source: Path, made: Path, feeds: Feeds) -> None:
    # Imported late: onnx and the quantisers take a second to load.
    from converters.precisions import (
        fp16,
        int8_dynamic,
        int8_per_row,
        int8_static,
        int8_weight_only,
    )

    writers: dict[str, Callable[[], object]] = {
        "fp32": lambda: shutil.copyfile(source, made),
        "fp16": lambda: fp16.write_fp16(source, made),
        "w8": lambda: int8_weight_only.write_w8(source, made),
        "int8": lambda: int8_static.write_int8(source, made, feeds),
        "int8-rows": lambda: int8_per_row.write_int8_rows(source, made, feeds),
        "int8-dynamic": lambda: int8_dynamic.write_int8_dynamic(source, made),
    }
    writers[precision]()


def _require_loadable(made: Path) -> None:
    """A graph with operators of ONNX Runtime's own is not for ``onnx.checker``: load it instead."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(str(made), options, providers=["CPUExecutionProvider"])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers print, log their every step, and one of them sets up the root logger."""
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
