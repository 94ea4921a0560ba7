"""Fine-tune a text classifier: a Hugging Face encoder with a new head."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.frozen_layers import FrozenLayers, padded
from training.recipe import Progress
from training.step_progress import StepProgress

Pair = tuple[str, str]  # a text and its label


@dataclass(frozen=True)
class Settings:
    """``max_tokens`` of a text are read. The encoder's learning rate rises over the first tenth of
    the steps and falls to 0; the new head's is ten times as high. The embeddings and the first
    ``frozen_layers`` layers stay as they are, if there are any, and are computed once. Of
    ``similar_lengths`` batches at a time the texts are sorted by length, to save padding; 1 leaves
    them as they come."""

    epochs: int
    batch: int = 16
    learning_rate: float = 1e-4
    max_tokens: int = 64
    smoothing: float = 0.05  # of the labels
    frozen_layers: int = 0
    similar_lengths: int = 1


class Classifier:
    """``labels`` in the order of the outputs. ``folder`` has the encoder and its tokenizer. For the
    same model from the same seed, create and train it within ``reproducible``."""

    def __init__(self, folder: Path, labels: Sequence[str], seed: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._seed, self._labels = seed, list(labels)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type="single_label_classification",
        )

    def train(self, pairs: Sequence[Pair], settings: Settings, report: Progress) -> None:
        """Rare labels count for more: by the square root of how much rarer they are."""
        with self._logits_in_training(pairs, settings, report) as logits_of:
            self._train(pairs, settings, report, logits_of)
        self._model.eval()

    def _train(
        self,
        pairs: Sequence[Pair],
        settings: Settings,
        report: Progress,
        logits_of: Callable[[Sequence[str]], Any],
    ) -> None:
        import torch

        batches = -(-len(pairs) // settings.batch)
        steps = settings.epochs * batches
        optimizer = torch.optim.AdamW(self._parameters(settings), weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)
        )
        counts = [sum(label == one for _, label in pairs) for one in self._labels]
        weights = [(len(pairs) / len(counts) / count) ** 0.5 for count in counts]
        loss_of = torch.nn.CrossEntropyLoss(
            torch.tensor(weights), label_smoothing=settings.smoothing
        )
        shuffled = random.Random(self._seed)  # noqa: S311 - nothing secret
        order = list(pairs)
        progress = StepProgress(settings.epochs, steps, report)
        self._model.train()
        for epoch in range(1, settings.epochs + 1):
            shuffled.shuffle(order)
            for number, batch in enumerate(in_batches(order, settings, shuffled), start=1):
                actual = torch.tensor([self._labels.index(label) for _, label in batch])
                texts = [text for text, _ in batch]
                loss = loss_of(logits_of(texts), actual)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.step(epoch, number, batches, float(loss.detach()))

    @contextmanager
    def _logits_in_training(
        self, pairs: Sequence[Pair], settings: Settings, report: Progress
    ) -> Iterator[Callable[[Sequence[str]], Any]]:
        """Texts -> FP32 [texts, labels]; what is frozen is computed before."""
        if not settings.frozen_layers:
            yield lambda texts: self._logits(texts, settings.max_tokens)
            return
        frozen = FrozenLayers(self._model.base_model, settings.frozen_layers)
        texts = [text for text, _ in pairs]
        outputs = frozen.outputs(texts, self._tokenizer, settings.max_tokens, report)
        with frozen.skipped():
            yield lambda texts: frozen.logits(
                self._model, *padded([outputs[text] for text in texts])
            )

    def predict(self, texts: Sequence[str], batch: int = 32) -> list[str]:
        """The likeliest label of each text, which is read as far as it is when it is served."""
        import torch

        self._model.eval()
        labels = [""] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        with torch.no_grad():
            for start in range(0, len(texts), batch):
                chosen = by_length[start : start + batch]
                logits = self._logits([texts[index] for index in chosen])
                for index, label in zip(chosen, logits.argmax(1).tolist(), strict=True):
                    labels[index] = self._labels[label]
        return labels

    def save(self, folder: Path) -> None:
        self._model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def _logits(self, texts: Sequence[str], max_tokens: int | None = None) -> Any:
        """FP32 [texts, labels]; without ``max_tokens`` of a text, the tokenizer's limit is read."""
        fed = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        return self._model(**fed).logits

    def _parameters(self, settings: Settings) -> list[dict[str, Any]]:
        head = {id(parameter) for parameter in self._model.classifier.parameters()}
        trained = (one for one in self._model.parameters() if one.requires_grad)
        encoder = [one for one in trained if id(one) not in head]
        return [
            {"params": encoder, "lr": settings.learning_rate},
            {"params": [*self._model.classifier.parameters()], "lr": 10 * settings.learning_rate},
        ]


def in_batches(
    order: Sequence[Pair], settings: Settings, shuffled: random.Random
) -> Iterator[Sequence[Pair]]:
    """All pairs, in batches; with ``similar_lengths`` in another order of the batches too."""
    size = settings.batch
    if settings.similar_lengths == 1:
        yield from (order[start : start + size] for start in range(0, len(order), size))
        return
    together = size * settings.similar_lengths
    for start in range(0, len(order), together):
        chunk = sorted(order[start : start + together], key=lambda pair: len(pair[0]))
        batches = [chunk[first : first + size] for first in range(0, len(chunk), size)]
        shuffled.shuffle(batches)
        yield from batches
