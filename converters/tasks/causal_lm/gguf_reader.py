"""The package gguf's reader, faster. That one makes numpy views of each entry of a vocabulary by
itself: for SmolLM2's 49,152 tokens it takes 6.8 s each time a file is opened, and this one 0.5 s.
"""

from typing import Any

import gguf
import numpy as np

ARRAY, STRING = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING
_HEAD = 12  # bytes of an array's type and length
_LENGTH = 8  # bytes of a string's


class GgufReader(gguf.GGUFReader):
    """Gives what ``gguf.GGUFReader`` gives."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[gguf.GGUFValueType]]:
        """The bytes that a value takes, its parts, which of these are data, and its types."""
        if raw_type != ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        head: list[Any] = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, count = gguf.GGUFValueType(int(head[0][0])), int(head[1][0])
        if not count or kind == ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data, start = self.data.view(np.ndarray), orig_offs + _HEAD
        if kind == STRING:
            buffer, parts, end = memoryview(data.data), head, start
            for _ in range(count):
                begin = end + _LENGTH
                end = begin + int.from_bytes(buffer[begin - _LENGTH : begin], "little")
                if end > len(buffer):
                    raise ValueError("the file ends within its metadata")
                parts += (data[begin - _LENGTH : begin].view(np.uint64), data[begin:end])
            return end - orig_offs, parts, list(range(3, len(parts), 2)), [ARRAY, kind]
        dtype = np.dtype(self.gguf_scalar_to_np[kind])
        values = data[start : start + count * dtype.itemsize].view(dtype)
        if len(values) < count:
            raise ValueError("the file ends within its metadata")
        size = _HEAD + values.nbytes
        return size, [*head, *np.split(values, count)], list(range(2, count + 2)), [ARRAY, kind]
