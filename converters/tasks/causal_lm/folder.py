"""A Hugging Face folder of a Llama-style model, written as GGUF."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers

from converters.errors import SourceRefused
from converters.sources.huggingface import HuggingFaceFolder
from converters.tasks.causal_lm.gguf_file import (
    ARCHITECTURES,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    written_by,
)

# GGUF's names of the ways in which text is cut before BPE, by what tokenizer.json says.
_CUTS = {"digits": "smollm", "bytes": "gpt-2", "words": "llama-bpe", "qwen2": "qwen2"}


@dataclass(frozen=True)
class LanguageModelFolder:
    """A checked folder; SourceRefused says why it cannot be written as GGUF."""

    source: HuggingFaceFolder

    @classmethod
    def open(cls, path: Path) -> "LanguageModelFolder":
        folder = cls(HuggingFaceFolder.open(path))
        if folder.architecture not in ARCHITECTURES:
            raise SourceRefused(
                f"{path} is of the architecture {folder.architecture!r}, which the engine does not "
                f"read: it reads {', '.join(ARCHITECTURES)}. For a GPU, --engine vllm takes others"
            )
        config = folder.source.config
        scaling = config.get("rope_scaling") or {}
        if scaling.get("rope_type", scaling.get("type", "default")) != "default":
            raise SourceRefused(f"{path} scales its rotary embedding, which is not written as GGUF")
        if not (path / "tokenizer.json").is_file():
            raise SourceRefused(f"{path} has no tokenizer.json: save its tokenizer as a fast one")
        _ = folder.cut, folder.template
        return folder

    def files(self) -> list[Path]:
        return self.source.files()

    @property
    def architecture(self) -> str:
        return str(self.source.config.get("model_type", ""))

    @property
    def context_length(self) -> int:
        return int(self.source.config.get("max_position_embeddings", 2048))

    @cached_property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(
            self.source.path, local_files_only=True, trust_remote_code=False
        )

    @property
    def template(self) -> str:
        """Its chat template; '' if it has none, SourceRefused if it has several."""
        template = self.tokenizer.chat_template or ""
        if isinstance(template, dict):
            raise SourceRefused(
                f"{self.source.path} has {len(template)} chat templates ({', '.join(template)}), "
                "and a served model has one: keep that as chat_template.jinja, and remove the "
                "others (additional_chat_templates/, chat_template in tokenizer_config.json)"
            )
        return str(template)

    @property
    def special_tokens(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "pad_token")
        tokens = {name: getattr(self.tokenizer, name) for name in names}
        return {name: str(token) for name, token in tokens.items() if token}

    @property
    def markers(self) -> list[str]:
        """The control tokens that the chat template writes: in a message they would forge a
        turn."""
        added = self.tokenizer.added_tokens_decoder.values()
        control = [str(token) for token in added if token.special]
        return written_by(self.template, control, self.special_tokens)

    @cached_property
    def _tokens(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            (self.source.path / "tokenizer.json").read_text(encoding="utf-8")
        )
        return content

    @cached_property
    def cut(self) -> str:
        """GGUF's name of how its tokenizer cuts text; the proof compares the ids."""
        steps = self._tokens.get("pre_tokenizer") or {}
        parts = steps.get("pretokenizers", [steps])
        kinds = [part.get("type") for part in parts]
        text = json.dumps(parts)
        if self._tokens["model"].get("type") != "BPE" or "ByteLevel" not in kinds:
            raise SourceRefused(
                f"{self.source.path} has a tokenizer that is not byte-level BPE: the engine's "
                "reader takes only that one"
            )
        if "Digits" in kinds:
            return _CUTS["digits"]
        if "Split" not in kinds:
            return _CUTS["bytes"]
        return _CUTS["words" if "{1,3}" in text else "qwen2"]

    def write(self, target: Path) -> None:
        """Write it in F16, its vectors in F32."""
        model: Any = self.source.model(transformers.AutoModelForCausalLM)
        writer = gguf.GGUFWriter(target, self.architecture)
        self._write_settings(writer, model.config)
        self._write_tokenizer(writer, model.config.vocab_size, model.generation_config)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        for name, values in self._tensors(model):
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _write_settings(self, writer: Any, config: Any) -> None:
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        rope = getattr(config, "rope_parameters", None) or {}
        writer.add_name(self.source.path.name)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_rope_dimension_count(width)
        writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)

    def _write_tokenizer(self, writer: Any, rows: int, generation: Any) -> None:
        tokens = self.tokenizer.get_vocab()
        added = {token["content"]: token for token in self._tokens.get("added_tokens", [])}
        names = [f"[unused{index}]" for index in range(rows)]
        types = [USER_DEFINED] * rows
        for token, index in tokens.items():
            if index >= rows:
                raise SourceRefused(
                    f"{self.source.path} has the token {token!r} beyond its {rows} embeddings: the "
                    "tokenizer belongs to another model"
                )
            names[index] = token
            types[index] = NORMAL
            if token in added:
                types[index] = CONTROL if added[token]["special"] else USER_DEFINED
        merges = self._tokens["model"]["merges"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(names)
        writer.add_token_types(types)
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
        writer.add_add_bos_token(False)
        end = generation.eos_token_id
        end = end[0] if isinstance(end, list) else end
        end = self.tokenizer.eos_token_id if end is None else end
        if end is None:
            raise SourceRefused(f"{self.source.path} names no token that ends a text (eos_token)")
        writer.add_eos_token_id(end)
        for add, token in (
            (writer.add_bos_token_id, self.tokenizer.bos_token_id),
            (writer.add_pad_token_id, self.tokenizer.pad_token_id),
        ):
            if token is not None:
                add(token)
        if self.template:
            writer.add_chat_template(self.template)

    def _tensors(self, model: Any) -> Iterator[tuple[str, np.ndarray]]:
        config = model.config
        names = gguf.get_tensor_name_map(
            gguf.MODEL_ARCH[self.architecture.upper()], config.num_hidden_layers
        )
        for key, tensor in model.state_dict().items():
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise SourceRefused(f"{self.source.path} has a weight without a place: {key}")
            if name == "output.weight" and config.tie_word_embeddings:
                continue
            values = tensor.float().numpy()
            if self.architecture == "llama" and ".self_attn.q_proj." in key:
                values = permuted(values, config.num_attention_heads)
            if self.architecture == "llama" and ".self_attn.k_proj." in key:
                values = permuted(values, config.num_key_value_heads)
            yield name, values.copy() if values.ndim == 1 else values.astype(np.float16)


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * width, ...] of a projection in GGUF's order for Llama: the two halves of a head
    that are rotated together lie beside each other."""
    shape = (heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)
