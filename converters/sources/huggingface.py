"""A Hugging Face folder, treated as untrusted files.

Weights are read from safetensors (or, where there are none, from a ``.bin`` with
``weights_only=True``); nothing is unpickled and no code from the folder is ever run.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from tokenizers import Tokenizer

from converters.errors import SourceMissing, SourceRefused
from converters.sources.adapter import why_not_adapter
from converters.sources.archive import require_no_bomb

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SAFETENSORS, SHARDS, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
# Weights in other frameworks' formats that such a folder may have instead.
OTHER_WEIGHTS = ("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin.index.json", "*.gguf")
LFS = b"version https://git-lfs"
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
# What defines a model beside its weights, wherever transformers looks for it: configs,
# vocabularies, and chat templates, which save_pretrained keeps out of tokenizer_config.json.
CHAT_TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")
SMALL_FILES = ("*.json", "*.txt", "*.model", *CHAT_TEMPLATES)
# The end of an architecture's name and its task; "" where there is none.
HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForQuestionAnswering": "",
    "ForMultipleChoice": "",
    "ForObjectDetection": "",
    "ForSemanticSegmentation": "",
}
# No real config is larger; the limit keeps a bomb from filling memory.
CONFIG_LIMIT_BYTES = 16 * 1024 * 1024
# Tokenizers report 1e30 when no limit was configured.
UNSET_TOKENS = 100_000
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
            raise SourceMissing(_not_a_folder(path))
        reason = why_not_adapter(path)
        if reason:
            raise SourceRefused(reason)
        config = _read_json(path / "config.json")
        if "auto_map" in config:
            raise SourceRefused(
                f"{path} would run its own code (auto_map in config.json), which is never allowed: "
                "convert a model whose architecture transformers knows"
            )
        checked_weights(path)
        return cls(path, config)

    def require_head(self, task: str, auto_class: str) -> None:
        """Raise SourceRefused if config.json names an architecture for another task: its weights
        would load but its outputs would be meaningless. Also for a model that scores pairs of
        texts."""
        if _reads_pairs(self.path, self.config) and task == "text-classification":
            raise SourceRefused(
                f"{self.path} is a CrossEncoder: it scores pairs of texts (a query and a passage), "
                "and text-classification sends a single text, for which its scores mean nothing: "
                "give --task text-ranking"
            )
        architectures = [str(name) for name in self.config.get("architectures") or ()]
        heads = {head for name in architectures for head in HEADS if name.endswith(head)}
        expected = auto_class.removeprefix("AutoModel")
        if expected and heads and expected not in heads:
            other = HEADS[sorted(heads)[0]]
            hint = f"give --task {other}" if other else "there is no task for it"
            raise SourceRefused(
                f"{self.path} was not trained for {task} but for another task (config.json: "
                f"{', '.join(architectures)}): {hint}"
            )

    def document(self, name: str) -> Mapping[str, Any]:
        """A JSON object from a file of the folder; SourceMissing or SourceRefused says what is
        wrong with it."""
        return _read_json(self.path / name)

    def files(self) -> list[Path]:
        """What determines the model's outputs: the weights, and each small text file beside
        them."""
        small = [
            path
            for pattern in (*SMALL_FILES, "*/config.json")
            for path in sorted(self.path.glob(pattern))
            if path.is_file()
        ]
        return sorted({*_weight_files(self.path), *small})

    def labels(self, distinct: bool = True) -> tuple[str, ...]:
        """The class names in the model's order; SourceRefused if they do not match the head, or if
        two are equal and they must be ``distinct`` (two of ImageNet's are called "crane")."""
        names = self._named_labels(distinct)
        count = int(self.config.get("num_labels", len(names) or 2))
        if not names:
            return tuple(f"LABEL_{index}" for index in range(count))
        if sorted(names) != list(range(len(names))):
            raise SourceRefused(
                f"id2label in {self.path}/config.json skips a number: number them all"
            )
        return tuple(names[index] for index in range(len(names)))

    def _named_labels(self, distinct: bool) -> dict[int, str]:
        """id2label by number; SourceRefused if a client could not tell two labels apart."""
        try:
            raw = dict(self.config.get("id2label") or {})
            names = {int(key): str(value) for key, value in raw.items()}
        except (ValueError, TypeError) as error:
            raise SourceRefused(
                f"id2label in {self.path}/config.json must map each number to a name: {error}"
            ) from error
        for index, label in names.items():
            if not label.strip() or label.splitlines() != [label]:
                raise SourceRefused(
                    f"label {index} in {self.path}/config.json is {label!r}: give each label a "
                    "one-line name"
                )
        if distinct and len(set(names.values())) < len(names):
            raise SourceRefused(
                f"two labels in {self.path}/config.json have the same name, so a response could "
                "not say which it means: give each a unique name in id2label"
            )
        return names

    def weights(self) -> list[Path]:
        """The files that hold the weights."""
        return _weight_files(self.path)

    def model(
        self, auto_class: Any, unused: str = "", replaced: Collection[str] = ()
    ) -> torch.nn.Module:
        """The model in evaluation mode, in FP32; SourceRefused with transformers' own reason. A
        missing weight is tolerated if its name begins with ``unused`` (nothing reads what it
        computes) or is in ``replaced`` (the caller sets it afterwards)."""
        try:
            model, report = auto_class.from_pretrained(
                self.path,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except Exception as error:  # transformers raises many types; all mean: not loadable
            raise SourceRefused(
                f"transformers cannot load {self.path}: {_reason(error)}. Its config.json and "
                "weights must belong to one model that this version knows"
            ) from error
        missing = {
            key for key in report["missing_keys"] if not unused or not key.startswith(unused)
        }.difference(replaced)
        if missing:
            examples = ", ".join(sorted(missing)[:3])
            raise SourceRefused(
                f"{self.path} lacks weights that this task needs ({examples}), which would be "
                "random: give a model that was trained for the task"
            )
        module: torch.nn.Module = model.eval()
        return module

    def tokenizer(self) -> "TokenizerFile":
        """The fast tokenizer; SourceRefused if the folder has none and none can be built."""
        self.require_vocabulary()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise SourceRefused(
                f"no tokenizer can be loaded from {self.path}: {_reason(error)}. Save it in its "
                "fast form where the model was trained: AutoTokenizer.from_pretrained(...)."
                "save_pretrained(FOLDER) writes tokenizer.json"
            ) from error
        return self.tokenizer_file(tokenizer)

    def require_vocabulary(self) -> None:
        """Raise SourceRefused if the folder has no tokenizer."""
        if not any((self.path / name).is_file() for name in VOCABULARIES):
            # transformers would create one with an empty vocabulary, and the proof would pass
            # because the original is just as meaningless.
            raise SourceRefused(
                f"{self.path} has no tokenizer (none of {', '.join(VOCABULARIES)}): copy it from "
                "where the model was trained"
            )

    def tokenizer_file(self, tokenizer: Any) -> "TokenizerFile":
        """A transformers tokenizer in the form that the served step needs; SourceRefused for a slow
        one."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SourceRefused(f"the tokenizer of {self.path} has no fast form (tokenizer.json)")
        max_tokens = int(min(tokenizer.model_max_length or UNSET_TOKENS, UNSET_TOKENS))
        if max_tokens == UNSET_TOKENS:
            max_tokens = int(self.config.get("max_position_embeddings", FALLBACK_TOKENS))
        special = tuple(map(str, dict.fromkeys(tokenizer.all_special_tokens)))
        if getattr(tokenizer, "split_special_tokens", False):
            backend = _as_plain_text(backend)
        probe = tokenizer("a")
        # The step reads from the file on which side a long text is truncated.
        backend.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
        if any(probe.get("token_type_ids", ())):
            raise SourceRefused(
                f"the tokenizer of {self.path} gives a single text token types other than 0, which "
                "the served tokenizer does not: this architecture cannot be converted"
            )
        return TokenizerFile(
            backend, int(tokenizer.pad_token_id or 0), max_tokens, tuple(probe), special
        )


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as it is served. ``max_tokens`` is the longest text that it declares for the
    model; ``inputs`` are the names of the tensors that it gives the model; ``special`` are its
    special tokens as text."""

    backend: Tokenizer
    pad_id: int
    max_tokens: int
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    special: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write it as a ``tokenizer.json``."""
        self.backend.save(str(path))

    def beyond(self, rows: int) -> list[str]:
        """The tokens, special ones excluded, whose id is ``rows`` or more."""
        special = {token.content for token in self.backend.get_added_tokens_decoder().values()
                   if token.special}  # fmt: skip
        ids = self.backend.get_vocab(with_added_tokens=True)
        return sorted(
            (token for token, index in ids.items() if index >= rows and token not in special),
            key=ids.__getitem__,
        )

    def known(self, rows: int | None) -> list[str]:
        """The ``special`` tokens that an embedding of ``rows`` rows has; None: all."""
        ids = self.backend.get_vocab(with_added_tokens=True)
        return [token for token in self.special if rows is None or ids.get(token, 0) < rows]

    def counter(self) -> Callable[[str], int]:
        """A function that counts a text's tokens, special tokens included, without truncation."""
        tokenizer = Tokenizer.from_str(self.backend.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return lambda text: len(tokenizer.encode(text).ids)


def _as_plain_text(backend: Tokenizer) -> Tokenizer:
    """The tokenizer that reads "[SEP]" in a text like any other word: ``split_special_tokens`` of
    transformers' class, which ``tokenizer.json`` cannot express. The tokens that begin and end a
    text are added by id, and stay."""
    document = json.loads(backend.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if not token["special"]]
    return Tokenizer.from_str(json.dumps(document))


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise SourceMissing(f"there is no {path}: give a folder that has a config.json")
    if path.stat().st_size > CONFIG_LIMIT_BYTES:
        raise SourceRefused(
            f"{path} is over {CONFIG_LIMIT_BYTES} bytes, which is too large for a config"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceRefused(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceRefused(f"{path} must hold a JSON object")
    return document


def _not_a_folder(path: Path) -> str:
    if HUB_ID.fullmatch(str(path)) and not path.exists():
        return (
            f"{path} is not a folder here. If it is a model on the Hugging Face Hub, download it "
            f"first: hf download {path} --local-dir {path.name}, and then convert ./{path.name}"
        )
    return f"{path} is not a folder: give the folder that holds config.json"


def _reads_pairs(path: Path, config: Mapping[str, object]) -> bool:
    """Whether it is a CrossEncoder as one of sentence-transformers' versions saves it."""
    if "sbert_ce_default_activation_function" in config or "sentence_transformers" in config:
        return True
    settings = path / "config_sentence_transformers.json"
    return settings.is_file() and _read_json(settings).get("model_type") == "CrossEncoder"


def _reason(error: Exception) -> str:
    """transformers' own message on one line, without references to what it printed elsewhere."""
    text = " ".join(str(error).split()).replace("For details look at the above report!", "")
    if "size mismatch" in text or "mismatched sizes" in text or "above report" in str(error):
        text += (
            " (the weights have other shapes than config.json says: both must belong to one model)"
        )
    return text.strip()[:500] or type(error).__name__


def checked_weights(path: Path) -> list[Path]:
    """The folder's weight files; SourceMissing or SourceRefused if they cannot be read safely."""
    files = _weight_files(path)
    for file in files:
        check_weights(file)
    return files


def _weight_files(path: Path) -> list[Path]:
    """The files that hold the weights, each of them inside the folder."""
    if (path / SAFETENSORS).is_file():
        return [path / SAFETENSORS]
    if (path / SHARDS).is_file():
        shards = _read_json(path / SHARDS).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise SourceRefused(
                f"weight_map in {path / SHARDS} does not map weights to files: copy it again"
            )
        return [_inside(path, str(shard)) for shard in sorted(set(map(str, shards.values())))]
    if (path / BIN).is_file():
        return [path / BIN]
    others = [file.name for pattern in OTHER_WEIGHTS for file in sorted(path.glob(pattern))]
    if others:
        raise SourceMissing(
            f"{path} has its weights in {others[0]}, and only {SAFETENSORS} is read: load the "
            "model where that file can be read, and save it with "
            "save_pretrained(safe_serialization=True)"
        )
    raise SourceMissing(f"{path} has no weights: copy its {SAFETENSORS}")


def _inside(folder: Path, name: str) -> Path:
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise SourceRefused(f"{SHARDS} names {name!r}, which is outside the folder")
    if not file.is_file():
        raise SourceMissing(f"{SHARDS} names {name!r}, which is not there: copy all the shards")
    return file


def check_weights(file: Path) -> None:
    """Raise SourceRefused for a truncated file, or a pickle that holds more than tensors."""
    require_no_bomb(file)
    with file.open("rb") as stream:
        if stream.read(len(LFS)) == LFS:
            raise SourceRefused(
                f"{file} is a git-lfs pointer, not the weights: run git lfs pull in its folder, or "
                "download the model with hf download"
            )
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, framework="pt") as weights:
                weights.keys()
        else:
            torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        raise SourceRefused(
            f"{file} cannot be read safely ({' '.join(str(error).split())[:200]}): copy it again, "
            "or save the model with save_pretrained(safe_serialization=True)"
        ) from error
