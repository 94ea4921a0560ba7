"""A transformer with a head -> one torch module over token ids, and the longest text it takes."""

import torch

from converters.errors import SourceRefused


class Logits(torch.nn.Module):
    """Token ids and mask INT64 [n, length] -> the head's logits FP32, [n, classes] or
    [n, length, classes]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def usable_tokens(module: torch.nn.Module, said: int) -> int:
    """The longest text that the model really takes: RoBERTa's position table, for one, has two
    entries that are no positions. SourceRefused when nothing near ``said`` works."""
    for length in (said, said - 1, said - 2):
        ids = torch.full((1, length), 5, dtype=torch.int64)
        try:
            with torch.no_grad():
                module(ids, torch.ones_like(ids))
        except (IndexError, RuntimeError):
            continue
        return length
    raise SourceRefused(
        f"the model does not run on {said} tokens, which its tokenizer says it takes"
    )


def buckets_up_to(limit: int) -> tuple[int, ...]:
    """The lengths that texts are padded to: powers of two from 16, the last the limit itself."""
    powers = [length for length in (16, 32, 64, 128, 256, 512, 1024, 2048) if length < limit]
    return (*powers, limit)
