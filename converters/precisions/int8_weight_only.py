"""Weights in 8 bits, one scale for every 32 of them; activations are rounded per row at run time.

How a row is rounded depends on that row alone, so that an answer does not depend on who shares its
batch. The block size is 32: measured on MiniLM (ONNX Runtime 1.31, AVX-512 VNNI), blocks of 16, 32
and 64 give bit-identical results whatever else is in the batch; blocks of 128 and 256 add in
another order at the edge of a tile (1e-6), which the next layer's rounding amplifies to 9e-3, so
that 4 texts in 10 have another vector in another batch. Smaller blocks also round the activations
in smaller pieces: the lowest cosine is 0.994 at 128, 0.997 at 64, 0.998 at 32 and 0.999 at 16.
"""

from pathlib import Path

import onnx

from converters.errors import ExportFailed
from converters.precisions.graph import count, drop_unused, gemm_to_matmul, load_tidy

BLOCK = 32
INT8_ARITHMETIC = 4  # MatMulNBits' accuracy_level: multiply in INT8, not in FP32


def write_int8_weight_only(source: Path, target: Path) -> None:
    """ExportFailed if the graph has no matrix multiplication with constant weights."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = load_tidy(source)
    gemm_to_matmul(model.graph)
    quantizer = MatMulNBitsQuantizer(
        model, bits=8, block_size=BLOCK, is_symmetric=False, accuracy_level=INT8_ARITHMETIC
    )
    quantizer.process()
    written: onnx.ModelProto = quantizer.model.model
    if not count(written, "MatMulNBits"):
        raise ExportFailed(
            "nothing was quantised: int8-weight-only is for matrix multiplications with constant "
            "weights, and this graph has none. For convolutions use --precision int8-static, else "
            "fp32"
        )
    # A weight that two operators share is written once for each of them.
    drop_unused(written.graph)
    onnx.save(written, target)
