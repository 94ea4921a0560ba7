"""The lower layers of an encoder that are not trained, whose outputs the upper layers are trained
on.

Both parts take products of matrices in BF16 (8 bits of precision, sums in FP32) on a processor that
has units for them, which takes a third of the time; the trained weights themselves stay FP32, and
so do the products where a model is measured and served.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from training.recipe import Progress

BATCH = 64
REPORT_EVERY = 50  # batches


class FrozenLayers:
    """The embeddings and the first ``layers`` layers of ``encoder``, a BertModel."""

    def __init__(self, encoder: Any, layers: int) -> None:
        import torch

        self._encoder, self._layers = encoder, layers
        self._has_bf16 = _has_bf16_units()
        for part in (encoder.embeddings, *encoder.encoder.layer[:layers]):
            part.requires_grad_(False)
        with _only(encoder, encoder.encoder.layer[:layers]):
            self._lower = copy.deepcopy(encoder).eval()
        self._lower.set_attn_implementation("eager")
        if self._has_bf16:
            self._lower.to(torch.bfloat16)

    def states(self, ids: Any, mask: Any) -> Any:
        """Token ids and attention mask, INT64 [texts, tokens] -> the last frozen layer's output,
        FP32 or BF16 [texts, tokens, width]."""
        import torch

        with torch.no_grad():
            return self._lower(input_ids=ids, attention_mask=mask).last_hidden_state

    def outputs(
        self, texts: Sequence[str], tokenizer: Any, max_tokens: int, report: Progress
    ) -> dict[str, Any]:
        """Text -> the last frozen layer's output, FP16 [tokens, width]: half the memory, and its
        rounding is far below that of what it is made from."""
        rows = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        by_length = sorted(range(len(texts)), key=lambda index: len(rows[index]))
        batches = -(-len(texts) // BATCH)
        outputs = {}
        for number in range(1, batches + 1):
            chosen = by_length[(number - 1) * BATCH : number * BATCH]
            fed = tokenizer.pad(
                {"input_ids": [rows[index] for index in chosen]}, return_tensors="pt"
            )
            states = self.states(fed["input_ids"], fed["attention_mask"]).half()
            for index, state in zip(chosen, states, strict=True):
                outputs[texts[index]] = state[: len(rows[index])].clone()
            if number % REPORT_EVERY == 0 or number == batches:
                report(f"{self._layers} frozen layers: {number} of {batches} batches")
        return outputs

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within, the encoder goes on from the states that it is given as ``inputs_embeds``."""
        embeddings = self._encoder.embeddings
        attention = self._encoder.config._attn_implementation
        self._encoder.embeddings = _given()
        # Torch 2.13's fused attention is slow in BF16: it takes half of the time.
        self._encoder.set_attn_implementation("eager")
        try:
            with _only(self._encoder, self._encoder.encoder.layer[self._layers :]):
                yield
        finally:
            self._encoder.embeddings = embeddings
            self._encoder.set_attn_implementation(attention)

    def logits(self, model: Any, states: Any, mask: Any) -> Any:
        """What ``model``, whose encoder this is, says from these states on, within ``skipped``:
        FP32 [texts, ...labels]."""
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self._has_bf16):
            logits = model(inputs_embeds=states.float(), attention_mask=mask).logits
        return logits.float()


def padded(outputs: Sequence[Any]) -> tuple[Any, Any]:
    """The states of these texts, padded to the longest, and their attention mask."""
    import torch

    states = torch.nn.utils.rnn.pad_sequence([one.float() for one in outputs], batch_first=True)
    mask = torch.zeros(states.shape[:2], dtype=torch.long)
    for row, one in zip(mask, outputs, strict=True):
        row[: len(one)] = 1
    return states, mask


def _has_bf16_units() -> bool:
    import torch

    capabilities: Mapping[str, bool] = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16"))


@contextmanager
def _only(encoder: Any, layers: Any) -> Iterator[None]:
    """Within, the encoder has these layers alone."""
    every = encoder.encoder.layer
    encoder.encoder.layer = layers
    try:
        yield
    finally:
        encoder.encoder.layer = every


def _given() -> Any:
    """In the place of the embeddings: what is given instead of tokens, as it is."""
    import torch

    class Given(torch.nn.Module):
        def forward(self, inputs_embeds: Any, **_: Any) -> Any:
            return inputs_embeds

    return Given()
