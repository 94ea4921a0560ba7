"""Weights and activations in 8 bits, by scales measured beforehand on calibration samples.

The scales are constants of the graph, so that an answer does not depend on who shares its batch.
The choices below were measured, on MiniLM and EfficientNet-Lite0 (docs/precisions.md).

Weights are unsigned with the zero point 128, here and in the other 8-bit precisions. A CPU without
VNNI adds products of unsigned activations and *signed* weights in pairs of 16 bits, which overflow
(2 * 255 * 127): answers are silently wrong there. For unsigned weights ONNX Runtime has exact
kernels everywhere, and where there is VNNI it computes them as it does signed ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from converters.errors import ExportFailed
from converters.precisions.graph import count, load_tidy

Feeds = Callable[[], Iterable[Mapping[str, np.ndarray]]]

# Clip and Relu so that a convolution's range is measured behind its activation: without them
# EfficientNet-Lite0 keeps 57 % of its clear decisions instead of 97 %.
KINDS = ("MatMul", "Gemm", "Conv", "Clip", "Relu")
# Their answers stay FP32 until the next one rounds its input: MiniLM's mean cosine is 0.986 instead
# of 0.927, at the same speed. A convolution needs a rounded answer to be computed in INT8.
FP32_ANSWERS = ("MatMul", "Gemm")
# The first tenth of the convolutions see the raw picture through few channels: in FP32 they cost no
# speed, and 100 % of EfficientNet-Lite0's clear decisions are kept instead of 97 %.
FP32_CONVOLUTIONS = 0.1
CENTRE = 128  # the zero point of the weights


def write_int8(source: Path, target: Path, feeds: Feeds) -> None:
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
        op_types_to_quantize=list(KINDS),
        per_channel=True,
        # Unsigned: signed activations have no fast kernel on x86 (215 against 458 sentences/s).
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8,
        nodes_to_exclude=_first_convolutions(model.graph),
        extra_options={
            # The products inside attention stay FP32: neither side of them is a weight.
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": list(FP32_ANSWERS),
            "WeightSymmetric": True,
        },
    )
    written = onnx.load(target)
    if not count(written, "QuantizeLinear"):
        raise ExportFailed(
            "nothing was quantised: int8 is for Conv, MatMul and Gemm with constant weights, and "
            "this graph has none. Use --precision fp32"
        )
    _centre_dead_channels(written.graph)
    onnx.save(written, target)


def _centre_dead_channels(graph: onnx.GraphProto) -> None:
    """ONNX Runtime's quantiser gives a channel of zeros the zero point 0 and all others 128, and
    its QLinearConv then refuses to load: 128 for all, and for the zeros themselves."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not constants.keys() >= {*node.input}:
            continue
        weights, _, zeros = (constants[name] for name in node.input)
        points = numpy_helper.to_array(zeros)
        if points.dtype != np.uint8 or points.ndim != 1 or points.all():
            continue
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        values = numpy_helper.to_array(weights).copy()
        np.moveaxis(values, axis, 0)[points == 0] = CENTRE
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        zeros.CopyFrom(numpy_helper.from_array(np.full_like(points, CENTRE), zeros.name))


def _first_convolutions(graph: onnx.GraphProto) -> list[str]:
    names = [node.name for node in graph.node if node.op_type == "Conv"]
    return names[: int(len(names) * FP32_CONVOLUTIONS)]


def _reader(feeds: Feeds) -> object:
    """ONNX Runtime's calibration reader over ``feeds``; its MinMax keeps two numbers a tensor."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package ships no types
        def __init__(self) -> None:
            self.left: Iterator[Mapping[str, np.ndarray]] = iter(feeds())
            self.seen = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self.left, None)
            if feed is None and not self.seen:
                raise ExportFailed(
                    "int8 needs samples to measure its scales on, and there are none: "
                    "give --samples, some hundred real inputs"
                )
            self.seen += 1
            return None if feed is None else dict(feed)

    return Reader()
