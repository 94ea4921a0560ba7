"""Fine-tune a token classifier: a Hugging Face encoder with a new head, which says of each token
whether an entity begins or goes on there."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.frozen_layers import FrozenLayers
from training.recipe import Progress
from training.step_progress import StepProgress
from training.tagged_news import Span, TaggedText

OUTSIDE, IGNORED = "O", -100


@dataclass(frozen=True)
class Settings:
    """The encoder's learning rate rises over the first tenth of the steps and falls to 0; the new
    head's is ten times as high. The embeddings and the first ``frozen_layers`` layers stay as they
    are. Of the tokens of training ``masked`` of 1 are unknown, as some of a new text are. A text of
    more than ``longest`` tokens is not used."""

    epochs: int
    learning_rate: float = 3e-4
    tokens_per_batch: int = 1024  # with their padding
    frozen_layers: int = 0
    masked: float = 0.05
    longest: int = 200


@dataclass(frozen=True)
class _Example:
    """Token ids, and the number of each token's label."""

    ids: list[int]
    labels: list[int]


class Tagger:
    """``labels`` are those of entities. ``folder`` has the encoder and its tokenizer. For the same
    model from the same seed, create and train it within ``reproducible``."""

    def __init__(self, folder: Path, labels: Sequence[str], seed: int) -> None:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        self.labels = [OUTSIDE, *(f"{begin}-{label}" for label in labels for begin in "BI")]
        self._seed = seed
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModelForTokenClassification.from_pretrained(
            folder,
            local_files_only=True,
            id2label=dict(enumerate(self.labels)),
            label2id={label: index for index, label in enumerate(self.labels)},
        )

    def train(self, texts: Sequence[TaggedText], settings: Settings, report: Progress) -> None:
        import torch

        frozen = FrozenLayers(self._model.base_model, settings.frozen_layers)
        optimizer = torch.optim.AdamW(self._parameters(settings), weight_decay=0.01, fused=True)
        examples = [self._example(text) for text in texts]
        examples = [one for one in examples if len(one.ids) <= settings.longest]
        chance = random.Random(self._seed)  # noqa: S311 - nothing secret
        epochs = [_batches(examples, settings, chance) for _ in range(settings.epochs)]
        steps = sum(map(len, epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)
        )
        loss_of = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
        unknown = self._tokenizer.unk_token_id
        progress = StepProgress(settings.epochs, steps, report)
        self._model.train()
        with frozen.skipped():
            for epoch, batches in enumerate(epochs, start=1):
                for number, batch in enumerate(batches, start=1):
                    ids, mask, labels = _padded(batch, self._tokenizer.pad_token_id)
                    is_masked = torch.rand(ids.shape) < settings.masked
                    ids = torch.where(is_masked & (labels != IGNORED), unknown, ids)
                    logits = frozen.logits(self._model, frozen.states(ids, mask), mask)
                    loss = loss_of(logits.flatten(0, 1), labels.flatten())
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    progress.step(epoch, number, len(batches), float(loss.detach()))
        self._model.eval()

    def predict(self, texts: Sequence[str], batch: int = 32) -> list[tuple[Span, ...]]:
        """The entities of each text."""
        import torch

        self._model.eval()
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        entities: list[tuple[Span, ...]] = [()] * len(texts)
        with torch.no_grad():
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                fed = self._tokenizer(
                    [texts[row] for row in rows],
                    padding=True,
                    truncation=True,
                    return_offsets_mapping=True,
                    return_special_tokens_mask=True,
                    return_tensors="pt",
                )
                logits = self._model(
                    input_ids=fed["input_ids"], attention_mask=fed["attention_mask"]
                ).logits
                for index, row in enumerate(rows):
                    of_text = fed["special_tokens_mask"][index] == 0
                    best = logits[index][of_text].argmax(1).tolist()
                    offsets = fed["offset_mapping"][index][of_text].tolist()
                    entities[row] = joined([self.labels[one] for one in best], offsets)
        return entities

    def save(self, folder: Path) -> None:
        self._model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def _example(self, text: TaggedText) -> _Example:
        fed = self._tokenizer(text.text, return_offsets_mapping=True, verbose=False)
        labels = _labelled(fed["offset_mapping"], text.entities, self.labels)
        return _Example(fed["input_ids"], labels)

    def _parameters(self, settings: Settings) -> list[dict[str, Any]]:
        encoder = self._model.base_model
        trained = [one for one in encoder.parameters() if one.requires_grad]
        return [
            {"params": trained, "lr": settings.learning_rate},
            {"params": [*self._model.classifier.parameters()], "lr": 10 * settings.learning_rate},
        ]


def joined(labels: Sequence[str], offsets: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    """The entities of a text from its tokens' labels, joined as the served pipeline joins them."""
    spans: list[Span] = []
    previous = OUTSIDE
    for label, (start, end) in zip(labels, offsets, strict=True):
        entity = label[2:]
        if label != OUTSIDE:
            if label.startswith("B-") or previous[2:] != entity:
                spans.append((start, end, entity))
            else:
                spans[-1] = (spans[-1][0], end, entity)
        previous = label
    return tuple(spans)


def _labelled(
    offsets: Sequence[Sequence[int]], spans: Sequence[Span], names: Sequence[str]
) -> list[int]:
    """The number of each token's label; special tokens, nowhere in the text, have none."""
    numbers: list[int] = []
    position, begun = 0, False
    for start, end in offsets:
        while position < len(spans) and spans[position][1] <= start:
            position, begun = position + 1, False
        if start == end:
            numbers.append(IGNORED)
        elif position < len(spans) and end > spans[position][0]:
            numbers.append(names.index(f"{'I' if begun else 'B'}-{spans[position][2]}"))
            begun = True
        else:
            numbers.append(names.index(OUTSIDE))
    return numbers


def _batches(
    examples: Sequence[_Example], settings: Settings, chance: random.Random
) -> list[list[_Example]]:
    """Shuffled batches of about equally long texts, of so many tokens with their padding."""
    order = list(examples)
    chance.shuffle(order)
    pool = 64 * max(1, settings.tokens_per_batch // 32)
    batches: list[list[_Example]] = []
    for start in range(0, len(order), pool):
        batch: list[_Example] = []
        for example in sorted(order[start : start + pool], key=lambda one: len(one.ids)):
            if batch and len(example.ids) * (len(batch) + 1) > settings.tokens_per_batch:
                batches.append(batch)
                batch = []
            batch.append(example)
        batches.append(batch)
    chance.shuffle(batches)
    return batches


def _padded(batch: Sequence[_Example], pad: int) -> tuple[Any, Any, Any]:
    """Token ids, attention mask and labels, INT64 [texts, tokens]."""
    import torch

    length = max(len(example.ids) for example in batch)

    def rows(values: Sequence[list[int]], fill: int) -> Any:
        return torch.tensor([row + [fill] * (length - len(row)) for row in values])

    counts = torch.tensor([len(example.ids) for example in batch])
    mask = (torch.arange(length) < counts[:, None]).long()
    ids = rows([example.ids for example in batch], pad)
    return ids, mask, rows([example.labels for example in batch], IGNORED)
