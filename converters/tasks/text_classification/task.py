"""The task ``text-classification``: a text -> a score for each of the model's labels."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.cache import Progress
from converters.proof.checks import Check
from converters.proof.closeness import Closeness
from converters.proof.exercised import label_lines, spread_lines
from converters.proof.reference import Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.tasks.text.answered import as_text_array, reference_texts
from converters.tasks.text.text_task import TextTask
from converters.tasks.text_classification import checks as classification_proof
from converters.tasks.text_classification.reference import classify
from converters.tasks.text_classification.served import served_checks
from modelspec.golden import Golden


class TextClassification(TextTask):
    """Answers: ``texts`` and ``too_long`` texts, and for both what ``classify`` returns."""

    name: ClassVar[str] = "text-classification"
    output: ClassVar[str] = "logits"
    per_text: ClassVar[tuple[str, ...]] = ("texts", "scores", "token_count")
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    def metadata(self) -> dict[str, Any]:
        labels = list(self.source.labels())
        function = _function(self.source.config, len(labels))
        return {**super().metadata(), "labels": labels, "function": function}

    def write_steps(self, folder: Path) -> None:
        super().write_steps(folder)
        labels = "\n".join(self.source.labels()) + "\n"
        (folder / "post" / "labels.txt").write_text(labels, encoding="utf-8")

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        texts = self.texts(folder, report)
        too_long = self.too_long(texts)
        outputs = classify(self.source.path, texts, too_long, self.buckets[-1], folder)
        texts_sent = {"texts": as_text_array(texts), "too_long": as_text_array(too_long)}
        return {**texts_sent, **outputs, **self.table_products()}

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        graph = self.graph(engine, reference, runner)
        return classification_proof.graph_checks(graph, reference_texts(reference), reference)

    def answer_lines(self, reference: Reference) -> list[str]:
        scores, labels = reference.outputs["scores"], reference.metadata["labels"]
        lines = list(spread_lines("scores", scores, reference.tolerance))
        if reference.metadata["function"] != "none":
            lines += label_lines(scores, labels, reference.tolerance)
        return lines

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        return classification_proof.parity_checks(self.graph(engine, reference), reference)

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        return classification_proof.scores_closeness(self.graph(engine, reference), reference)

    def golden(self, reference: Reference) -> Golden:
        scores, labels = reference.outputs["scores"][0], reference.metadata["labels"]
        best = int(scores.argmax())
        unit = classification_proof.score_unit(reference)
        return Golden(
            request={"text": reference_texts(reference)[0]},
            expect={"label": [labels[best]], "score": [float(scores[best])]},
            tolerance=10 * reference.tolerance.difference * unit,
        )

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference)


def _function(config: Any, labels: int) -> str:
    """As transformers' own pipeline chooses it."""
    problem_type = config.get("problem_type")
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"
