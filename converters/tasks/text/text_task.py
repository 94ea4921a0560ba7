"""What every task that begins with a text shares: tokenizer, buckets, samples and graph."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer

from converters.cache import Progress
from converters.errors import SourceRefused
from converters.export.torch2onnx import export_token_model, token_example
from converters.proof.checks import Check
from converters.proof.exercised import rows_lines
from converters.proof.invariance import padding_checks, texts_for_buckets
from converters.proof.reference import Feed, Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.token_graph import TokenGraph, text_of_tokens
from converters.proof.token_table import TABLE, row_products, table_checks
from converters.sample_texts import read_texts
from converters.sources.huggingface import HuggingFaceFolder, TokenizerFile
from converters.sources.model_card import card_of
from converters.sources.token_model import (
    Logits,
    buckets_up_to,
    pad_id,
    require_batches,
    usable_tokens,
)
from converters.task import LAYER_SAMPLES, ConversionRequest, Eager, Task, TorchModule
from converters.tasks.text.answered import reference_texts
from converters.tasks.text.samples import corpus_texts, default_texts, multilingual_texts, odd_texts

INPUTS = ("input_ids", "attention_mask")
TOKENIZER = Path("pre") / "tokenizer.json"
CALIBRATION_TEXTS = 128
TIMED_TOKENS = 32
MANY_TEXTS = 1500
# Where layers are compared: the longest text, and the padding after each text, in tokens.
LAYER_TOKENS, LAYER_PADDING = 64, 3
EXCESS_TOKENS = 20  # tokens beyond the model's limit, in a text that must be cut


class TextTask(Task):
    """A Hugging Face folder whose graph takes INT64 ``input_ids`` and ``attention_mask``, both
    [n, length], and returns one FP32 tensor, ``output``."""

    output: ClassVar[str]
    # The arrays of a Reference's answers that have a row per text.
    per_text: ClassVar[tuple[str, ...]]
    has_mask = True

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        self.source = self.open_source(request.source)
        self.source.require_head(self.name, self.auto_class)
        self.samples = read_texts(request.samples) if request.samples else _default_samples()

    def open_source(self, source: str) -> HuggingFaceFolder:
        """The folder with the config and the weights; SourceMissing or SourceRefused."""
        return HuggingFaceFolder.open(Path(source))

    def files(self) -> list[Path]:
        return self.source.files()

    def card(self) -> dict[str, Any]:
        return {**super().card(), **card_of(self.source.path)}

    def settings(self) -> str:
        return "\n".join(self.samples)

    @cached_property
    def module(self) -> torch.nn.Module:
        """The original as one module: INPUTS -> ``output``, in evaluation mode."""
        import transformers

        model = self.source.model(getattr(transformers, self.auto_class))
        return Logits(model, self.tokenizer.inputs).eval()

    @cached_property
    def tokenizer(self) -> TokenizerFile:
        return self.source.tokenizer()

    def metadata(self) -> dict[str, Any]:
        return {"buckets": self.buckets, "pad_id": self.pad_id()}

    @cached_property
    def buckets(self) -> tuple[int, ...]:
        """The lengths in tokens that texts are padded to; the last is that of the longest text."""
        self._require_known_tokens()
        require_batches(self.module)
        return buckets_up_to(usable_tokens(self.module, self.tokenizer.max_tokens))

    @cached_property
    def table(self) -> torch.Tensor | None:
        """The model's embedding, FP32 [tokens, width]; None where it cannot be read."""
        model: Any = getattr(self.module, "model", self.module)
        try:
            table = model.get_input_embeddings()
        except (AttributeError, NotImplementedError):
            return None
        return table.weight.detach() if isinstance(table, torch.nn.Embedding) else None

    @property
    def table_rows(self) -> int | None:
        """How many rows (tokens) the model's embedding has; None where it cannot be read."""
        return None if self.table is None else len(self.table)

    def table_products(self) -> dict[str, np.ndarray]:
        """What ``table_checks`` compares a graph's table with: a part of ``ask``'s answers."""
        return {} if self.table is None else {TABLE: row_products(self.table.float().numpy())}

    def table_checks(self, graph: Path, reference: Reference) -> list[Check]:
        products = reference.outputs.get(TABLE)
        return [] if products is None else table_checks(graph, products)

    def _require_known_tokens(self) -> None:
        """SourceRefused when the tokenizer has words without a row in the model's embedding.
        Special tokens without one are accepted: the original, too, refuses a text with them."""
        rows = self.table_rows
        unknown = self.tokenizer.beyond(rows) if rows is not None else []
        if unknown:
            raise SourceRefused(
                f"the tokenizer has tokens that the model's embedding of {rows} rows does not "
                f"have, such as {unknown[0]!r}: both must belong to one model; after adding tokens "
                "call model.resize_token_embeddings(len(tokenizer)), train it, and save both again"
            )
        if rows is not None and not 0 <= self.pad_id() < rows:
            raise SourceRefused(
                f"texts are padded with token {self.pad_id()}, and the model's embedding has "
                f"{rows} rows: set pad_token in the tokenizer and pad_token_id in config.json to a "
                "token that the model has"
            )

    def pad_id(self) -> int:
        """The token that texts are padded with."""
        return pad_id(self.module.model, self.tokenizer.pad_id)

    def write_steps(self, folder: Path) -> None:
        self.tokenizer.save(folder / TOKENIZER)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The graph's inputs, INT64 [n, length]."""
        return INPUTS

    def export(self, target: Path) -> None:
        self._require_known_tokens()
        export_token_model(self.module, self.inputs, self.output, target)

    def torch_module(self) -> TorchModule:
        return TorchModule(self.module, token_example(self.inputs), (0, 1), (self.output,))

    def graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> TokenGraph:
        """``engine`` behind the original's own tokenizer file."""
        tokenizer, metadata = reference.folder / TOKENIZER, reference.metadata
        return TokenGraph(engine, tokenizer, metadata["buckets"][-1], metadata["pad_id"], runner)

    def texts(self, folder: Path, report: Progress) -> list[str]:
        """The samples, cut to the model's limit, then texts that fill each bucket."""
        limit = self.buckets[-1]
        tokens = self.tokenizer.counter()
        excess = sum(tokens(text) > limit for text in self.samples)
        if excess:
            report(f"{excess} samples are cut to {limit} tokens")
        cut = (
            text_of_tokens([text], tokens, limit) if tokens(text) > limit else text
            for text in self.samples
        )
        special = self.tokenizer.known(self.table_rows)
        odd_samples = [text for text in odd_texts(special) if tokens(text) <= limit]
        fitting = list(dict.fromkeys([*(text for text in cut if text), *odd_samples]))
        if not fitting:
            raise SourceRefused(
                f"no beginning of a sample fits the {limit} tokens that the model takes: give "
                "other --samples"
            )
        return [*fitting, *texts_for_buckets(fitting, self.buckets, tokens)]

    def too_long(self, texts: list[str]) -> list[str]:
        """A real text that is longer than the model takes, to prove ``truncate`` with."""
        length = self.buckets[-1] + EXCESS_TOKENS
        return [text_of_tokens(texts, self.tokenizer.counter(), length)]

    def exercised(self, reference: Reference) -> list[str]:
        texts = reference_texts(reference)
        tokenizer = self.tokenizer_in(reference)
        ids = np.concatenate(
            [np.array(tokenizer.encode(text).ids, dtype=np.int64) for text in texts]
        )
        non_ascii = sum(not text.isascii() for text in texts)
        return [
            self.whose(len(texts)),
            f"{non_ascii} texts are not plain ASCII; the longest has "
            f"{int(reference.outputs['token_count'].max())} of "
            f"{reference.metadata['buckets'][-1]} tokens",
            *rows_lines("tokens", ids, tokenizer.get_vocab_size()),
            *self.answer_lines(reference),
        ]

    def answer_lines(self, reference: Reference) -> list[str]:
        """The lines of ``exercised`` about the original's answers."""
        return []

    def tokenizer_in(self, reference: Reference) -> Tokenizer:
        """The reference's own tokenizer, with neither padding nor truncation."""
        tokenizer = Tokenizer.from_file(str(reference.folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def few(self, reference: Reference, rows: int) -> Reference:
        """About ``rows`` texts, evenly from short ones to the longest."""
        texts = reference_texts(reference)
        indexes = np.unique(np.linspace(0, len(texts) - 1, rows).astype(int))
        outputs = {name: reference.outputs[name][indexes] for name in self.per_text}
        return replace(reference, outputs={**reference.outputs, **outputs})

    def mask_checks(self, engine: Path, reference: Reference) -> list[Check]:
        graph, texts = self.graph(engine, reference), reference_texts(reference)
        return padding_checks(
            graph, texts[:8], reference.metadata["buckets"][:2], reference.tolerance
        )

    def feeds(self, reference: Reference) -> Iterator[Feed]:
        """Evenly from all texts: in the task's own set, the long and the odd ones come last."""
        graph = self.graph(reference.folder / "model.onnx", reference)
        for text in reference_texts(self.few(reference, CALIBRATION_TEXTS)):
            yield graph.feed([text])

    def layer_feeds(self, reference: Reference) -> Iterator[Feed]:
        """Each text is padded by a few tokens, so that a mask has something to hide."""
        graph = self.graph(reference.folder / "model.onnx", reference)
        texts = reference_texts(reference)
        limit = int(reference.metadata["buckets"][-1])
        short = [text for text in texts if graph.length(text) <= LAYER_TOKENS] or texts
        indexes = np.unique(np.linspace(0, len(short) - 1, LAYER_SAMPLES).astype(int))
        for text in (short[index] for index in indexes):
            yield graph.feed([text], min(limit, graph.length(text) + LAYER_PADDING))

    def eager(self) -> Eager:
        return lambda feed: self.module(*(torch.from_numpy(feed[name]) for name in INPUTS))

    def timed_feed(self, reference: Reference, rows: int) -> Feed:
        """Texts of 32 tokens (or the model's limit), none padded."""
        length = min(TIMED_TOKENS, int(reference.metadata["buckets"][-1]))
        texts = [feed["input_ids"][0] for feed in itertools.islice(self.feeds(reference), rows)]
        ids = np.stack([np.resize(texts[row % len(texts)], length) for row in range(rows)])
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def more_samples(self, target: Path) -> Path | None:
        if self.request.samples:
            return None
        target.write_text("\n".join(corpus_texts(MANY_TEXTS)) + "\n", encoding="utf-8")
        return target


def _default_samples() -> list[str]:
    """Other scripts in the middle: the first sample becomes the golden one, the last are the
    longest."""
    sentences = default_texts()
    return [*sentences[:8], *multilingual_texts(), *sentences[8:]]
