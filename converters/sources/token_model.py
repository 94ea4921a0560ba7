"""A transformer with a head -> one torch module over token ids, and the longest text that it
accepts."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from converters.errors import SourceRefused

# The graph's possible inputs; the pipeline has no tensor for anything else that a tokenizer gives.
KNOWN_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
# Attention's cost grows with the square of the length, and every check runs at the longest.
LONGEST_TOKENS = 2048
PROBE_ID = 5  # an ordinary token of most vocabularies


class Logits(torch.nn.Module):
    """Token ids and mask INT64 [n, length] -> the head's logits FP32, [n, classes] or
    [n, length, classes]."""

    def __init__(self, model: torch.nn.Module, inputs: Sequence[str] = ()) -> None:
        """``inputs`` are the names of the tensors that the original's tokenizer gives the model."""
        super().__init__()
        self.model = model
        self._types = takes_token_types(model, inputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        types = {"token_type_ids": torch.zeros_like(input_ids)} if self._types else {}
        logits: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **types
        ).logits
        return logits


def takes_token_types(model: torch.nn.Module, inputs: Sequence[str]) -> bool:
    """Whether the original is given token types (zeros, for a single text). SourceRefused if it is
    given something that the pipeline has no tensor for."""
    unknown = sorted(set(inputs) - KNOWN_INPUTS)
    if unknown:
        raise SourceRefused(
            f"the model's tokenizer also gives it {', '.join(unknown)}, which a text alone does "
            "not provide: this architecture cannot be converted"
        )
    return "token_type_ids" in inputs and "token_type_ids" in _parameters(model)


def usable_tokens(module: torch.nn.Module, declared: int) -> int:
    """The longest text that the model really accepts: RoBERTa's position table, for one, has two
    entries that are not positions. SourceRefused if nothing near ``declared`` works."""
    declared = min(declared, LONGEST_TOKENS)
    for length in (declared, declared - 1, declared - 2):
        ids = probe_ids(module, 1, length)
        try:
            with torch.no_grad():
                module(ids, torch.ones_like(ids))
        except (IndexError, RuntimeError):
            continue
        return length
    raise SourceRefused(
        f"the model does not run on {declared} tokens, although its tokenizer declares that many"
    )


def probe_ids(module: object, rows: int, length: int) -> torch.Tensor:
    """Ids INT64 [rows, length] that any such model accepts: a token of its vocabulary, and at the
    end the token that ends a text if it has one (BART predicts from that one)."""
    model = getattr(module, "model", module)
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    count = len(table.weight) if isinstance(table, torch.nn.Embedding) else PROBE_ID + 1
    ids = torch.full((rows, length), min(PROBE_ID, count - 1), dtype=torch.int64)
    end = getattr(getattr(model, "config", None), "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < count:
        ids[:, -1] = end
    return ids


def require_batches(module: torch.nn.Module) -> None:
    """Raise SourceRefused if the model cannot process two texts at once: a decoder with a head on
    its last token does not know which that is unless it knows the padding."""
    ids = probe_ids(module, 2, 3)
    try:
        with torch.no_grad():
            module(ids, torch.ones_like(ids))
    except (ValueError, IndexError, RuntimeError) as error:
        raise SourceRefused(
            f"the model cannot process two texts at once ({error}): set pad_token in the tokenizer "
            "and pad_token_id in config.json, and save both again"
        ) from error


def pad_id(module: Any, tokenizer_pad_id: int) -> int:
    """The token that the model reads as padding; the tokenizer's if the model declares none."""
    declared = getattr(module.config, "pad_token_id", None)
    return declared if isinstance(declared, int) and declared >= 0 else tokenizer_pad_id


def buckets_up_to(limit: int) -> tuple[int, ...]:
    """The lengths that texts are padded to: powers of two from 16, then the limit itself."""
    powers = [length for length in (16, 32, 64, 128, 256, 512, 1024, 2048) if length < limit]
    return (*powers, limit)


def _parameters(model: torch.nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
