"""A GGUF file written again with its matrices in F16 or Q8_0.

OpenVINO GenAI's reader rounds what some block types hold: in Q4_1 each block's minimum becomes a
multiple of its scale. F16 and Q8_0 it takes as they are, so files in anything else are dequantized
here and written in one of those.
"""

from pathlib import Path

import gguf
import numpy as np

from converters.errors import ExportFailed
from converters.tasks.causal_lm.gguf_file import GgufFile

F16, F32, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F16", "F32", "Q8_0"))
BLOCK = 32  # values of one scale in Q8_0
_FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
# The writer makes its own, for the file that it writes.
_OURS = frozenset(("general.architecture", "general.file_type", "general.alignment"))


def write_gguf(source: GgufFile, target: Path, precision: str) -> None:
    """Write ``target`` with the metadata of ``source``, its matrices in ``precision`` (``f16`` or
    ``q8_0``) and its vectors in F32. ExportFailed where F16 cannot hold a weight."""
    reader = source.reader
    writer = gguf.GGUFWriter(target, source.architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in _OURS:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(_FILE_TYPES[precision])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values, raw_dtype=F32)
            continue
        kind = Q8_0 if precision == "q8_0" and values.shape[-1] % BLOCK == 0 else F16
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ExportFailed(f"{source.path} has weights in {tensor.name} that F16 cannot hold")
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
