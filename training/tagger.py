"""Train a token classifier from scratch: a small ModernBERT that reads words and pieces of words.

Its attention is local, and positions are relative to each other, so that few texts teach it, and
a text that is longer than those of training is read alike. Where the words of a text are known, a
second head learns their boundaries and parts of speech from the same layers: it is dropped at the
end, and what the layers learnt from it stays.
"""

import math
import random
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.recipe import Progress
from training.tagged_news import Span, TaggedText

OUTSIDE, IGNORED = "O", -100
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_CHINESE = re.compile("[\u3400-\u9fff]+")
_LETTERS = re.compile("[A-Za-z]+")
_PIECES, _PIECE_SIZES = 2000, (2, 3, 4)  # of words in letters
_LONG_NAME = 3  # characters: most are foreign, such as 克林顿
_LEAST_WORD = 3  # occurrences of a word that is a token
_WITHIN_WORD = 0.1  # what a character in a word counts, against one that is a word


@dataclass(frozen=True)
class Settings:
    """``window`` is how many tokens attention sees, half to each side. Of the tokens of training
    ``masked`` of 1 are unknown, and of its words ``spelt`` of 1 are read by their characters, as
    words that are new will be. A text of more than ``longest`` tokens is not used."""

    epochs: int
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 96
    window: int = 32
    tokens_per_batch: int = 2048
    learning_rate: float = 4e-3
    dropout: float = 0.0
    masked: float = 0.08
    spelt: float = 0.15
    words_weight: float = 0.5
    longest: int = 160
    max_tokens: int = 512  # of a text that is served


def make_tokenizer(texts: Sequence[TaggedText], max_tokens: int) -> Any:
    """A fast tokenizer that cuts a text into the likeliest of the words that occur often, and what
    is left into characters and, of words in letters, short pieces. Full-width forms are read as the
    ordinary ones, case counts, and each digit, punctuation mark and space is a token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = list(_SPECIAL.values())
    scores = sorted(_scores(texts).items())
    # No trainer of the library: what these learn differs from run to run.
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in special), *scores], unk_id=1))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=False, strip_accents=True, lowercase=False
            ),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s"), "isolated"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    ends = [(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, model_max_length=max_tokens, **_SPECIAL)


def _scores(texts: Sequence[TaggedText]) -> dict[str, float]:
    """The logarithms of the probabilities of characters, words and pieces."""
    characters: Counter[str] = Counter()
    named: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in texts:
        plain = unicodedata.normalize("NFKC", text.text)
        characters.update({*plain})
        words.update(_LETTERS.findall(plain))
        # A personal name is read by its characters, as a new one has to be, unless it is long.
        for start, end, tag in text.words:
            word = unicodedata.normalize("NFKC", text.text[start:end])
            if tag == "nr" and len(word) < _LONG_NAME:
                named.update(word)
            elif _CHINESE.fullmatch(word):
                words[word] += 1
    counts = {
        one: _WITHIN_WORD * count + named[one] + words[one]
        for one, count in characters.items()
        if count > 1
    }
    counts |= {
        one: float(count) for one, count in words.items() if len(one) > 1 and count >= _LEAST_WORD
    }
    for piece, count in _pieces(words):
        counts[piece] = counts.get(piece, 0.0) + _WITHIN_WORD * count
    total = math.fsum(counts.values())  # whatever their order
    return {piece: math.log(count / total) for piece, count in sorted(counts.items())}


def _pieces(words: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent pieces of words in letters."""
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        if word.isascii():
            for size in _PIECE_SIZES:
                for start in range(len(word) - size + 1):
                    pieces[word[start : start + size]] += count
    return sorted(pieces.items(), key=lambda one: (-one[1], one[0]))[:_PIECES]


@dataclass(frozen=True)
class _Example:
    """Token ids, the number of each token's label and of its part of speech."""

    ids: list[int]
    labels: list[int]
    words: list[int]


class Tagger:
    """``labels`` are those of entities. For the same model from the same seed, create and train it
    within ``reproducible``."""

    def __init__(
        self, tokenizer: Any, labels: Sequence[str], settings: Settings, seed: int
    ) -> None:
        from transformers import ModernBertConfig, ModernBertForTokenClassification

        self.labels = [OUTSIDE, *(f"{begin}-{label}" for label in labels for begin in "BI")]
        self._tokenizer, self._settings, self._seed = tokenizer, settings, seed
        special = tokenizer.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]"])
        pad, begin, end = special
        self._model: Any = ModernBertForTokenClassification(
            ModernBertConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.hidden,
                intermediate_size=settings.inner,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                max_position_embeddings=settings.max_tokens,
                layer_types=["sliding_attention"] * settings.layers,
                local_attention=settings.window,
                embedding_dropout=settings.dropout,
                mlp_dropout=settings.dropout,
                classifier_dropout=settings.dropout,
                pad_token_id=pad,
                bos_token_id=begin,
                cls_token_id=begin,
                eos_token_id=end,
                sep_token_id=end,
                id2label=dict(enumerate(self.labels)),
                label2id={label: index for index, label in enumerate(self.labels)},
            )
        )

    def train(self, texts: Sequence[TaggedText], settings: Settings, report: Progress) -> None:
        import torch

        parts = ["", *sorted({tag for text in texts for *_, tag in text.words})]
        tags = [f"{begin}-{part}" for part in parts for begin in "BI"]
        examples = [self._example(text, tags) for text in texts]
        examples = [one for one in examples if len(one.ids) <= settings.longest]
        words_head = torch.nn.Linear(settings.hidden, len(tags))
        parameters = [*self._model.parameters(), *words_head.parameters()]
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        chance = random.Random(self._seed)  # noqa: S311 - nothing secret
        characters = self._characters()
        epochs = [
            _batches(
                [_spelt(one, characters, settings.spelt, chance) for one in examples],
                settings,
                chance,
            )
            for _ in range(settings.epochs)
        ]
        steps = sum(map(len, epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (0.05 * steps)) * (1 - step / steps)
        )
        loss_of = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
        unknown = self._tokenizer.unk_token_id
        self._model.train()
        for epoch, batches in enumerate(epochs, start=1):
            began, total = time.monotonic(), 0.0
            for number, batch in enumerate(batches, start=1):
                ids, mask, labels, words = _padded(batch, self._tokenizer.pad_token_id)
                is_masked = torch.rand(ids.shape) < settings.masked
                ids = torch.where(is_masked & (labels != IGNORED), unknown, ids)
                hidden = self._model.model(input_ids=ids, attention_mask=mask).last_hidden_state
                hidden = self._model.drop(self._model.head(hidden))
                logits = self._model.classifier(hidden)
                loss = loss_of(logits.flatten(0, 1), labels.flatten())
                if (words != IGNORED).any():
                    of_words = loss_of(words_head(hidden).flatten(0, 1), words.flatten())
                    loss = loss + settings.words_weight * of_words
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
                if number % 50 == 0 or number == len(batches):
                    report(
                        f"epoch {epoch} of {settings.epochs}, {number} of {len(batches)} batches: "
                        f"loss {total / number:.3f}, {time.monotonic() - began:.0f} s"
                    )
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

    def _characters(self) -> dict[int, list[int]]:
        """The tokens of the characters of each word that is a token."""
        vocabulary = self._tokenizer.get_vocab()
        special = set(_SPECIAL.values())
        return {
            number: [vocabulary.get(one, self._tokenizer.unk_token_id) for one in word]
            for word, number in vocabulary.items()
            if len(word) > 1 and word not in special
        }

    def _example(self, text: TaggedText, tags: Sequence[str]) -> _Example:
        fed = self._tokenizer(text.text, return_offsets_mapping=True)
        offsets = fed["offset_mapping"]
        labels = _labelled(offsets, text.entities, self.labels, outside=0)
        words = _labelled(offsets, text.words, tags, outside=IGNORED)
        return _Example(fed["input_ids"], labels, words)


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
    offsets: Sequence[Sequence[int]], spans: Sequence[Span], names: Sequence[str], outside: int
) -> list[int]:
    """The number of each token's name; special tokens, which are nowhere in the text, have none."""
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
            numbers.append(outside)
    return numbers


def _spelt(
    example: _Example, characters: dict[int, list[int]], share: float, chance: random.Random
) -> _Example:
    """The example with this share of its words as their characters."""
    spelt = _Example([], [], [])
    for number, label, word in zip(example.ids, example.labels, example.words, strict=True):
        tokens = characters.get(number, [number])
        if len(tokens) > 1 and chance.random() > share:
            tokens = [number]
        spelt.ids.extend(tokens)
        spelt.labels.extend([label, *[_inside(label)] * (len(tokens) - 1)])
        spelt.words.extend([word, *[word if word < 0 else word | 1] * (len(tokens) - 1)])
    return spelt


def _inside(label: int) -> int:
    """The label of what follows in the same entity: ``O``, then ``B-`` and ``I-`` in turn."""
    return label + label % 2 if label > 0 else label


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


def _padded(batch: Sequence[_Example], pad: int) -> tuple[Any, Any, Any, Any]:
    """Token ids, attention mask, labels and words, INT64 [texts, tokens]."""
    import torch

    length = max(len(example.ids) for example in batch)

    def rows(name: str, fill: int) -> Any:
        values = [getattr(example, name) for example in batch]
        return torch.tensor([row + [fill] * (length - len(row)) for row in values])

    ids = rows("ids", pad)
    counts = torch.tensor([len(example.ids) for example in batch])
    mask = (torch.arange(length) < counts[:, None]).long()
    return ids, mask, rows("labels", IGNORED), rows("words", IGNORED)
