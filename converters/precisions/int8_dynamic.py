"""Weights in 8 bits; activations are rounded by the range of their whole batch.

The fastest precision on a CPU, and the only one whose answers depend on who shares the batch:
opt-in only.
"""

from pathlib import Path

import onnx

from converters.errors import ExportFailed
from converters.precisions.graph import count, load_tidy
from converters.precisions.unsigned import unsigned_weights

# Not Conv: for it, int8-static has a fast kernel whose answers do not depend on the batch.
OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention")
INTEGER = ("MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention")


def write_int8_dynamic(source: Path, target: Path) -> None:
    """ExportFailed if the graph has no matrix multiplication with constant weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    tidy = target.with_name("tidy.onnx")
    onnx.save(load_tidy(source), tidy)
    quantize_dynamic(
        str(tidy),
        str(target),
        op_types_to_quantize=list(OPERATORS),
        # Per tensor, MiniLM's mean cosine is 0.955 instead of 0.991 (1,500 sentences).
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    written = onnx.load(target)
    if not count(written, *INTEGER):
        raise ExportFailed(
            "nothing was quantised: int8-dynamic is for matrix multiplications with constant "
            "weights, and this graph has none. For convolutions use --precision int8-static, else "
            "fp32"
        )
    unsigned_weights(written.graph)
    onnx.save(written, target)
