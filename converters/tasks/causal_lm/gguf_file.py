"""A GGUF file: what it says of its model, and whether it can be served.

OpenVINO GenAI's reader builds the graph itself, for a few architectures and tensor types.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from converters.errors import SourceRefused, no_traceback
from converters.tasks.causal_lm.gguf_reader import GgufReader

# Each was read and compared with transformers (tests/converters/tasks/test_causal_lm.py).
ARCHITECTURES = ("llama", "qwen2", "qwen3")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF's token types
AS_IT_IS = ("F16", "Q8_0")  # matrices that the engine's reader takes without rounding them


@dataclass(frozen=True)
class GgufFile:
    """One file, opened; SourceRefused says why it cannot be served."""

    path: Path

    def __post_init__(self) -> None:
        remedy = "pass a complete GGUF file of version 2 or 3"
        with no_traceback(SourceRefused, f"{self.path} cannot be read", remedy):
            _ = self.reader
        if self.architecture not in ARCHITECTURES:
            raise SourceRefused(
                f"{self.path} is of the architecture {self.architecture!r}, which the engine does "
                f"not read: it reads {', '.join(ARCHITECTURES)}"
            )
        if int(self.value("split.count", 1)) > 1:
            raise SourceRefused(f"{self.path} is one part of a model: join its parts to one file")
        if self._is_scaled:
            raise SourceRefused(
                f"{self.path} scales its rotary embedding, which the engine's reader leaves out"
            )
        unread = sorted(self.matrix_types - _dequantized())
        if unread:
            raise SourceRefused(
                f"{self.path} has matrices in {', '.join(unread)}, which the package gguf cannot "
                "dequantize: quantize the original again, as Q8_0 or F16"
            )
        if self.value("tokenizer.ggml.model", "") != "gpt2":
            raise SourceRefused(
                f"{self.path} has a tokenizer that is not byte-level BPE: the engine's reader "
                "takes only that one"
            )

    @cached_property
    def reader(self) -> GgufReader:
        return GgufReader(self.path)

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key; ``default`` if the file does not have it."""
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    @property
    def architecture(self) -> str:
        return str(self.value("general.architecture", ""))

    @property
    def _is_scaled(self) -> bool:
        kind = self.value(f"{self.architecture}.rope.scaling.type", "none")
        names = {tensor.name for tensor in self.reader.tensors}
        return kind != "none" or "rope_freqs.weight" in names

    @cached_property
    def matrix_types(self) -> frozenset[str]:
        """The types of its matrices: ``Q4_1``."""
        tensors = self.reader.tensors
        return frozenset(one.tensor_type.name for one in tensors if len(one.shape) > 1)

    @property
    def precision(self) -> str:
        """``f16`` or ``q8_0`` if the file can be served as it is in that precision, else ''."""
        if not self.matrix_types <= frozenset(AS_IT_IS):
            return ""
        return "q8_0" if "Q8_0" in self.matrix_types else "f16"

    @property
    def context_length(self) -> int:
        """In tokens, the prompt included."""
        return int(self.value(f"{self.architecture}.context_length", 2048))

    @property
    def end_token(self) -> int:
        """The token that ends a generation; -1 if the file does not say."""
        return int(self.value("tokenizer.ggml.eos_token_id", -1))

    @property
    def template(self) -> str:
        """The chat template, Jinja2; '' for a model that was not trained for chat."""
        return str(self.value("tokenizer.chat_template", ""))

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """What a chat template may name: ``bos_token``, ``eos_token`` and so on."""
        tokens = self.value("tokenizer.ggml.tokens", [])
        names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
        ids = {name: self.value(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
        return {name: str(tokens[index]) for name, index in ids.items() if index is not None}

    @cached_property
    def markers(self) -> list[str]:
        """The control tokens that the chat template writes: in a message they would forge a
        turn."""
        tokens = self.value("tokenizer.ggml.tokens", [])
        types = self.value("tokenizer.ggml.token_type", [])
        control = {str(tokens[index]) for index, kind in enumerate(types) if kind == CONTROL}
        return written_by(self.template, control, self.special_tokens)


def written_by(template: str, tokens: Iterable[str], special: Mapping[str, str]) -> list[str]:
    """Those of the tokens that the template names, itself or as one of its ``special`` ones."""
    named = {special[name] for name in special if name in template}
    return sorted(token for token in tokens if token in template or token in named)


def _dequantized() -> frozenset[str]:
    """The types that the package ``gguf`` can dequantize."""
    names = set()
    for kind in gguf.GGMLQuantizationType:
        size = gguf.GGML_QUANT_SIZES[kind][1]  # bytes of one block
        with contextlib.suppress(NotImplementedError):
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
            names.add(kind.name)
    return frozenset(names)
