"""Weights and activations in 8 bits, by scales measured beforehand on calibration samples.

The scales are constants of the graph, so that an answer does not depend on who shares its batch.
The choices below were measured on MiniLM and EfficientNet-Lite0 (docs/precisions.md).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from converters.errors import ExportFailed
from converters.precisions.graph import count, load_tidy
from converters.precisions.unsigned import unsigned_weights

Feeds = Callable[[], Iterable[Mapping[str, np.ndarray]]]

# Clip and Relu are here so that the range of a convolution is measured after its activation:
# without them EfficientNet-Lite0 keeps 57 % of its clear decisions instead of 97 %.
OPERATORS = ("MatMul", "Gemm", "Conv", "Clip", "Relu")
# Their outputs stay FP32 until the next operator rounds its input: MiniLM's mean cosine is 0.986
# instead of 0.927, at the same speed. A convolution needs a rounded output to be computed in INT8.
FP32_OUTPUTS = ("MatMul", "Gemm")
# The first tenth of the convolutions process the raw image in few channels: FP32 costs no speed
# there, and keeps 100 % of EfficientNet-Lite0's clear decisions instead of 97 %.
FP32_CONVOLUTIONS = 0.1


def write_int8_static(source: Path, target: Path, feeds: Feeds) -> None:
    """ExportFailed if nothing can be quantised, or if ``feeds`` gives no calibration sample."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = load_tidy(source)
    tidy = target.with_name("tidy.onnx")
    onnx.save(model, tidy)
    quantize_static(
        str(tidy),
        str(target),
        _reader(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(OPERATORS),
        per_channel=True,
        # Unsigned: signed activations have no fast kernel on x86 (215 instead of 458 sentences/s).
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_first_convolutions(model.graph),
        extra_options={
            # The products inside attention stay FP32: neither operand is a weight.
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": list(FP32_OUTPUTS),
        },
    )
    written = onnx.load(target)
    if not count(written, "QuantizeLinear"):
        raise ExportFailed(
            "nothing was quantised: int8-static is for Conv, MatMul and Gemm with constant "
            "weights, and this graph has none. Use --precision fp32"
        )
    unsigned_weights(written.graph)
    onnx.save(written, target)


def _first_convolutions(graph: onnx.GraphProto) -> list[str]:
    names = [node.name for node in graph.node if node.op_type == "Conv"]
    return names[: int(len(names) * FP32_CONVOLUTIONS)]


def _reader(feeds: Feeds) -> object:
    """ONNX Runtime's calibration reader over ``feeds``; MinMax stores two numbers per tensor."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package ships no types
        def __init__(self) -> None:
            self.samples: Iterator[Mapping[str, np.ndarray]] = iter(feeds())
            self.count = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self.samples, None)
            if feed is None and not self.count:
                raise ExportFailed(
                    "int8-static needs samples to measure its scales on, and there are none: "
                    "give --samples, some hundred real inputs"
                )
            self.count += 1
            return None if feed is None else dict(feed)

    return Reader()
