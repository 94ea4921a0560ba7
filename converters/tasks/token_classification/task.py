"""The task ``token-classification``: a text -> the entities in it, with scores."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.cache import Progress
from converters.errors import SourceRefused
from converters.proof.checks import Check
from converters.proof.closeness import Closeness
from converters.proof.exercised import label_lines, spread_lines
from converters.proof.reference import Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.tasks.text.answered import as_text_array, reference_texts
from converters.tasks.text.text_task import TextTask
from converters.tasks.token_classification import checks as entity_proof
from converters.tasks.token_classification.entities import (
    clear_texts,
    original_entities,
    token_scores,
)
from converters.tasks.token_classification.reference import find_entities
from converters.tasks.token_classification.served import served_checks
from modelspec.golden import Golden


class TokenClassification(TextTask):
    """Answers: ``texts`` and ``too_long`` texts, and for both what ``find_entities`` returns."""

    name: ClassVar[str] = "token-classification"
    output: ClassVar[str] = "logits"
    per_text: ClassVar[tuple[str, ...]] = ("texts", "token_count")
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"

    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), "labels": list(self.source.labels())}

    def write_steps(self, folder: Path) -> None:
        super().write_steps(folder)
        labels = json.dumps(self.source.labels(), ensure_ascii=False)
        (folder / "post" / "labels.json").write_text(labels, encoding="utf-8")

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        texts = self.texts(folder, report)
        too_long = self.too_long(texts)
        outputs = find_entities(self.source.path, texts, too_long, self.buckets[-1], folder)
        if not len(outputs["row"]):
            raise SourceRefused(
                f"the original finds no entity in any of {len(texts)} samples, so there is nothing "
                "to prove: give texts that have some with --samples"
            )
        texts_sent = {"texts": as_text_array(texts), "too_long": as_text_array(too_long)}
        return {**texts_sent, **outputs, **self.table_products()}

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        graph = self.graph(engine, reference, runner)
        return entity_proof.graph_checks(graph, reference_texts(reference), reference)

    def answer_lines(self, reference: Reference) -> list[str]:
        scores, labels = token_scores(reference.outputs["logits"]), reference.metadata["labels"]
        return [
            "of tokens: " + line
            for line in (
                *spread_lines("logits", reference.outputs["logits"], reference.tolerance),
                *label_lines(scores, labels, reference.tolerance),
            )
        ]

    def few(self, reference: Reference, rows: int) -> Reference:
        reduced = super().few(reference, rows)
        ends = np.cumsum(reference.outputs["token_count"])[:-1]
        indexes = [reference_texts(reference).index(text) for text in reference_texts(reduced)]
        parts = {
            name: np.concatenate(
                [np.split(reference.outputs[name], ends)[index] for index in indexes]
            )
            for name in ("logits", "of_text")
        }
        return replace(reduced, outputs={**reduced.outputs, **parts})

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        return entity_proof.parity_checks(self.graph(engine, reference), reference)

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        return entity_proof.spans_closeness(self.graph(engine, reference), reference)

    def golden(self, reference: Reference) -> Golden:
        """The shortest text with an entity and without an undecided token."""
        texts = reference_texts(reference)
        entities = original_entities(reference, len(texts))
        clear = clear_texts(reference, reference.tolerance)
        rows = [row for row in range(len(texts)) if entities[row].spans and clear[row]]
        row = min(rows, key=lambda row: len(texts[row]), default=0)
        spans = entities[row].spans if rows else ()
        return Golden(
            request={"text": texts[row]},
            expect={
                "count": [len(spans)],
                "start": [start for start, _, _ in spans],
                "end": [end for _, end, _ in spans],
                "label": [label for _, _, label in spans],
                "score": list(entities[row].scores),
            },
            tolerance=10 * reference.tolerance.difference,
        )

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference)
