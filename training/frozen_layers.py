"""The lower layers of an encoder that are not trained: their outputs are computed once, and every
epoch trains the upper layers on them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from training.recipe import Progress

BATCH = 32
REPORT_EVERY = 100  # batches


class FrozenLayers:
    """The embeddings and the first ``layers`` layers of ``encoder``, a BertModel."""

    def __init__(self, encoder: Any, layers: int) -> None:
        self._encoder, self._layers = encoder, layers
        for part in (encoder.embeddings, *encoder.encoder.layer[:layers]):
            part.requires_grad_(False)

    def outputs(
        self, texts: Sequence[str], tokenizer: Any, max_tokens: int, report: Progress
    ) -> dict[str, Any]:
        """Text -> the last frozen layer's output, FP16 [tokens, width]: half the memory, and its
        rounding is far below the noise of dropout."""
        import torch

        rows = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        by_length = sorted(range(len(texts)), key=lambda index: len(rows[index]))
        batches = -(-len(texts) // BATCH)
        outputs = {}
        self._encoder.eval()
        with _only(self._encoder, self._encoder.encoder.layer[: self._layers]), torch.no_grad():
            for number in range(1, batches + 1):
                chosen = by_length[(number - 1) * BATCH : number * BATCH]
                fed = tokenizer.pad(
                    {"input_ids": [rows[index] for index in chosen]}, return_tensors="pt"
                )
                states = self._encoder(**fed).last_hidden_state.half()
                for index, state in zip(chosen, states, strict=True):
                    outputs[texts[index]] = state[: len(rows[index])].clone()
                if number % REPORT_EVERY == 0 or number == batches:
                    report(f"{self._layers} frozen layers: {number} of {batches} batches")
        return outputs

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within, the encoder goes on from what ``fed`` gives."""
        embeddings = self._encoder.embeddings
        self._encoder.embeddings = _given()
        try:
            with _only(self._encoder, self._encoder.encoder.layer[self._layers :]):
                yield
        finally:
            self._encoder.embeddings = embeddings


def fed(outputs: Sequence[Any]) -> Mapping[str, Any]:
    """What the encoder is called with for these texts, padded to the longest."""
    import torch

    states = torch.nn.utils.rnn.pad_sequence([one.float() for one in outputs], batch_first=True)
    mask = torch.zeros(states.shape[:2], dtype=torch.long)
    for row, one in zip(mask, outputs, strict=True):
        row[: len(one)] = 1
    return {"inputs_embeds": states, "attention_mask": mask}


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
