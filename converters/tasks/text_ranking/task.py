"""The task ``text-ranking``: a query and a passage -> how relevant the passage is, from 0 to 1, by
a cross-encoder (a sequence classifier with one label that reads both together)."""

import itertools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer

from converters.cache import Progress
from converters.errors import SourceRefused
from converters.proof.checks import Check
from converters.proof.closeness import Closeness
from converters.proof.exercised import spread_lines
from converters.proof.reference import Feed, Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.token_graph import text_of_tokens
from converters.proof.tolerance import Tolerance, tolerance
from converters.sources.token_model import Logits, takes_token_types
from converters.task import ConversionRequest, Eager
from converters.tasks.text.answered import as_text_array, reference_texts
from converters.tasks.text.samples import corpus_texts, odd_texts
from converters.tasks.text.text_task import (
    EXCESS_TOKENS,
    INPUTS,
    TIMED_TOKENS,
    TOKENIZER,
    TextTask,
)
from converters.tasks.text_classification import checks as classification_proof
from converters.tasks.text_ranking.pairs import (
    SEPARATOR,
    TYPES,
    PairGraph,
    PairTokenizer,
    joined,
    parts,
)
from converters.tasks.text_ranking.reference import rank
from converters.tasks.text_ranking.served import served_checks
from modelspec.golden import Golden

QUERY_TOKENS = 6  # of the query in a pair that fills a bucket
LABEL = "relevant"  # the one label's name in the last step, which no client sees


class PairLogits(Logits):
    """Token ids, mask and, if the model takes them, types INT64 [n, length] -> its logit FP32
    [n, 1]."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        more = {TYPES: types} if self._types else {}
        logits: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **more
        ).logits
        return logits


class TextRanking(TextTask):
    """Answers: ``texts`` and ``too_long``, each a pair, and for both what ``rank`` returns."""

    name: ClassVar[str] = "text-ranking"
    output: ClassVar[str] = "logits"
    per_text: ClassVar[tuple[str, ...]] = ("texts", "scores", "token_count")
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        labels = self.source.labels()
        if len(labels) != 1:
            raise SourceRefused(
                f"{request.source} has {len(labels)} labels, and a cross-encoder that scores "
                "relevance has one: give --task text-classification"
            )
        self.samples = _pairs_of(self.samples, given=bool(request.samples))

    @cached_property
    def module(self) -> torch.nn.Module:
        import transformers

        model = self.source.model(getattr(transformers, self.auto_class))
        return PairLogits(model, self.tokenizer.inputs).eval()

    @cached_property
    def has_types(self) -> bool:
        """Whether the model is told which tokens are the query's and which the passage's."""
        module: Any = self.module
        if not takes_token_types(module.model, self.tokenizer.inputs):
            return False
        if self.pad_id() >= int(getattr(module.model.config, "type_vocab_size", 2)):
            raise SourceRefused(
                f"texts are padded with token {self.pad_id()}, which is no token type of the "
                "model: this architecture cannot be converted"
            )
        return True

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*INPUTS, TYPES) if self.has_types else INPUTS

    def metadata(self) -> dict[str, Any]:
        return {
            **super().metadata(),
            "has_types": self.has_types,
            # Of the last step, and of the checks that a classifier's proof has.
            "labels": [LABEL],
            "function": "sigmoid",
        }

    def tolerance(self, precision: str) -> Tolerance:
        """As for text-classification: the same model, with one label."""
        return tolerance("text-classification", precision)

    def write_steps(self, folder: Path) -> None:
        super().write_steps(folder)
        (folder / "post" / "labels.txt").write_text(f"{LABEL}\n", encoding="utf-8")

    def graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> PairGraph:
        metadata = reference.metadata
        return PairGraph(
            engine,
            reference.folder / TOKENIZER,
            metadata["buckets"][-1],
            metadata["pad_id"],
            runner,
            has_types=metadata["has_types"],
        )

    def counter(self) -> Callable[[str], int]:
        """A function that counts a pair's tokens, special tokens included."""
        tokenizer = Tokenizer.from_str(self.tokenizer.backend.to_str())
        tokenizer.no_truncation()
        pairs = PairTokenizer(tokenizer)
        return lambda pair: len(pairs.encode(pair).ids)

    def texts(self, folder: Path, report: Progress) -> list[str]:
        """The pairs that fit the model, odd texts on both sides, then pairs that fill each
        bucket."""
        tokens, limit = self.counter(), self.buckets[-1]
        odd = odd_texts(self.tokenizer.known(self.table_rows))
        queries = [parts(pair)[0] for pair in self.samples]
        pairs = [
            *self.samples,
            *(joined(queries[index % len(queries)], text) for index, text in enumerate(odd)),
            *(joined(text, queries[index % len(queries)]) for index, text in enumerate(odd)),
        ]
        fitting = [pair for pair in dict.fromkeys(pairs) if tokens(pair) <= limit]
        if len(fitting) < len(pairs):
            report(f"{len(pairs) - len(fitting)} pairs are longer than {limit} tokens: left out")
        if not fitting:
            raise SourceRefused(
                f"no sample fits the {limit} tokens that the model takes: give other --samples"
            )
        filling = (
            self._filling(fitting, bucket, start) for start, bucket in enumerate(self.buckets)
        )
        return list(dict.fromkeys([*fitting, *filter(None, filling)]))

    def too_long(self, texts: list[str]) -> list[str]:
        """A pair whose passage is too long, and one whose query is."""
        length = self.buckets[-1] + EXCESS_TOKENS
        pair = self._filling(texts, length, 0)
        query, passage = parts(pair)
        return [pair, joined(passage, query)]

    def _filling(self, pairs: list[str], length: int, start: int) -> str:
        """A pair of almost ``length`` tokens, nearly all of them the passage's; "" if none fits."""
        tokens = self.counter()
        rotated = pairs[start % len(pairs) :] + pairs
        queries = sorted((parts(pair)[0] for pair in rotated), key=len)
        query = next(
            (text for text in queries if tokens(joined(text, "")) <= QUERY_TOKENS), queries[0]
        )
        passages = [parts(pair)[1] for pair in rotated]
        passage = text_of_tokens(passages, lambda text: tokens(joined(query, text)), length)
        return joined(query, passage) if passage else ""

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        texts = self.texts(folder, report)
        too_long = self.too_long(texts)
        outputs = rank(
            self.source.path,
            [*map(parts, texts)],
            [*map(parts, too_long)],
            self.buckets[-1],
            folder,
        )
        texts_sent = {"texts": as_text_array(texts), "too_long": as_text_array(too_long)}
        return {**texts_sent, **outputs, **self.table_products()}

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        graph = self.graph(engine, reference, runner)
        return classification_proof.graph_checks(graph, reference_texts(reference), reference)

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        return classification_proof.parity_checks(self.graph(engine, reference), reference)

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        return classification_proof.scores_closeness(self.graph(engine, reference), reference)

    def tokenizer_in(self, reference: Reference) -> Any:
        return PairTokenizer(super().tokenizer_in(reference))

    def answer_lines(self, reference: Reference) -> list[str]:
        return list(spread_lines("scores", reference.outputs["scores"], reference.tolerance))

    def golden(self, reference: Reference) -> Golden:
        query, passage = parts(reference_texts(reference)[0])
        return Golden(
            request={"query": query, "text": passage},
            expect={"score": [float(reference.outputs["scores"][0, 0])]},
            tolerance=10 * reference.tolerance.difference,
        )

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference)

    def eager(self) -> Eager:
        return lambda feed: self.module(*(torch.from_numpy(feed[name]) for name in self.inputs))

    def timed_feed(self, reference: Reference, rows: int) -> Feed:
        """Pairs of 32 tokens (or the model's limit), none padded."""
        length = min(TIMED_TOKENS, int(reference.metadata["buckets"][-1]))
        feeds = list(itertools.islice(self.feeds(reference), rows))
        together = {
            name: np.stack(
                [np.resize(feeds[row % len(feeds)][name][0], length) for row in range(rows)]
            )
            for name in feeds[0]
        }
        return {**together, "attention_mask": np.ones_like(together["input_ids"])}

    def more_samples(self, target: Path) -> Path | None:
        if self.request.samples:
            return None
        texts = corpus_texts(800)
        pairs = (f"{query}\t{passage}" for query, passage in itertools.pairwise(texts))
        target.write_text("\n".join(pairs) + "\n", encoding="utf-8")
        return target


def _pairs_of(samples: list[str], *, given: bool) -> list[str]:
    """The samples as pairs: the user's have a tab between query and passage; of ours, each text is
    a query for the next one."""
    if not given:
        texts = [text.replace("\t", " ").replace(SEPARATOR, " ") for text in samples]
        return [joined(text, passage) for text, passage in itertools.pairwise(texts)]
    pairs = [joined(*line.split("\t", 1)) for line in samples if "\t" in line]
    if len(pairs) < len(samples):
        raise SourceRefused(
            f"{len(samples) - len(pairs)} samples are no pairs: write a query, a tab and a passage "
            "on each line"
        )
    return pairs
