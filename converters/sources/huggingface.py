"""A Hugging Face folder, opened as what it is: files from a stranger.

Weights are read from safetensors (or, where there are none, from a ``.bin`` with
``weights_only=True``); no pickle is unpickled and no code of the folder is ever run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from tokenizers import Tokenizer

from converters.errors import SourceMissing, SourceRefused

SAFETENSORS, SHARDS, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# No folder that a person made has more; the limit keeps a bomb from filling memory.
CONFIG_LIMIT_BYTES = 16 * 1024 * 1024
# Tokenizers say 1e30 when nobody told them.
UNSAID_TOKENS = 100_000
FALLBACK_TOKENS = 512


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A checked folder; ``config`` is its config.json."""

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "HuggingFaceFolder":
        """Check the folder; SourceMissing or SourceRefused says what is wrong and what to do."""
        if not path.is_dir():
            raise SourceMissing(f"{path} is not a folder: give the folder that holds config.json")
        config = _read_json(path / "config.json")
        if "auto_map" in config:
            raise SourceRefused(
                f"{path} wants to run code of its own (auto_map in config.json), which is never "
                "done: convert a model whose architecture transformers knows"
            )
        for weights in _weight_files(path):
            _check_weights(weights)
        return cls(path, config)

    def labels(self) -> tuple[str, ...]:
        """The class names in the model's order; SourceRefused when they do not match the head."""
        named = {int(key): str(value) for key, value in self.config.get("id2label", {}).items()}
        count = int(self.config.get("num_labels", len(named) or 2))
        if not named:
            return tuple(f"LABEL_{index}" for index in range(count))
        if sorted(named) != list(range(len(named))):
            raise SourceRefused(f"id2label in {self.path}/config.json skips a number: number all")
        return tuple(named[index] for index in range(len(named)))

    def model(self, auto_class: Any) -> torch.nn.Module:
        """The model in evaluation mode; SourceRefused with transformers' own reason."""
        try:
            model, report = auto_class.from_pretrained(
                self.path,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except Exception as error:  # transformers raises many kinds; all mean: not loadable
            raise SourceRefused(f"transformers cannot load {self.path}: {error}") from error
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise SourceRefused(
                f"{self.path} lacks weights that this task needs ({some}): they would be random. "
                "Give a model that was trained for the task"
            )
        module: torch.nn.Module = model.eval()
        return module

    def tokenizer(self) -> "TokenizerFile":
        """The fast tokenizer; SourceRefused when the folder has none and none can be made."""
        if not any((self.path / name).is_file() for name in VOCABULARIES):
            # transformers would make one up that knows no word, and the proof would find the
            # original just as senseless.
            raise SourceRefused(
                f"{self.path} has no tokenizer (none of {', '.join(VOCABULARIES)}): copy it from "
                "where the model was trained"
            )
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise SourceRefused(f"no tokenizer can be loaded from {self.path}: {error}") from error
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SourceRefused(f"the tokenizer of {self.path} has no fast form (tokenizer.json)")
        said = int(min(tokenizer.model_max_length, UNSAID_TOKENS))
        if said == UNSAID_TOKENS:
            said = int(self.config.get("max_position_embeddings", FALLBACK_TOKENS))
        return TokenizerFile(backend, int(tokenizer.pad_token_id or 0), said)


@dataclass(frozen=True)
class TokenizerFile:
    """``max_tokens`` is the longest text that the tokenizer says the model takes."""

    backend: Tokenizer
    pad_id: int
    max_tokens: int

    def save(self, path: Path) -> None:
        self.backend.save(str(path))


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise SourceMissing(f"there is no {path}: give a folder that has a config.json")
    if path.stat().st_size > CONFIG_LIMIT_BYTES:
        raise SourceRefused(f"{path} is over {CONFIG_LIMIT_BYTES} bytes: that is no config")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceRefused(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceRefused(f"{path} must hold a JSON object")
    return document


def _weight_files(path: Path) -> list[Path]:
    """The files that hold the weights, every one inside the folder."""
    if (path / SAFETENSORS).is_file():
        return [path / SAFETENSORS]
    if (path / SHARDS).is_file():
        shards = sorted(set(_read_json(path / SHARDS).get("weight_map", {}).values()))
        return [_inside(path, str(shard)) for shard in shards]
    if (path / BIN).is_file():
        return [path / BIN]
    raise SourceMissing(f"{path} has no weights: {SAFETENSORS} is what is read")


def _inside(folder: Path, name: str) -> Path:
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise SourceRefused(f"{SHARDS} names {name!r}, which lies outside the folder")
    if not file.is_file():
        raise SourceMissing(f"{SHARDS} names {name!r}, which is not there: copy all the shards")
    return file


def _check_weights(file: Path) -> None:
    """SourceRefused for a file that is cut off or is a pickle that does more than hold tensors."""
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, framework="pt") as opened:
                opened.keys()
        else:
            torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        raise SourceRefused(
            f"{file} cannot be read safely ({' '.join(str(error).split())[:200]}): copy it again, "
            "or save the model with save_pretrained(safe_serialization=True)"
        ) from error
