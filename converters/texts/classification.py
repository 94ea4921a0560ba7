"""The task ``text-classification``: a text -> a score for each of the model's labels."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.cache import Say
from converters.closeness import Closeness
from converters.exercised import label_lines, spread_lines
from converters.proof import Check
from converters.runner import OpenRunner, onnx_runner
from converters.task import Case
from converters.texts import classification_proof
from converters.texts.answered import as_text_array, case_texts
from converters.texts.classification_oracle import classify
from converters.texts.served_classification import served_checks
from converters.texts.task import TextTask
from modelspec.golden import Golden


class TextClassification(TextTask):
    """Answers: ``texts`` and ``too_long`` texts, and of both what ``classify`` returns."""

    name: ClassVar[str] = "text-classification"
    output: ClassVar[str] = "logits"
    per_text: ClassVar[tuple[str, ...]] = ("texts", "scores", "token_count")
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    def facts(self) -> dict[str, Any]:
        labels = list(self.source.labels())
        function = _function(self.source.config, len(labels))
        return {**super().facts(), "labels": labels, "function": function}

    def write_steps(self, folder: Path) -> None:
        super().write_steps(folder)
        labels = "\n".join(self.source.labels()) + "\n"
        (folder / "post" / "labels.txt").write_text(labels, encoding="utf-8")

    def ask(self, folder: Path, say: Say) -> dict[str, np.ndarray]:
        texts = self.texts(folder, say)
        too_long = self.too_long(texts)
        answers = classify(self.source.path, texts, too_long, self.buckets[-1], folder)
        return {"texts": as_text_array(texts), "too_long": as_text_array(too_long), **answers}

    def prove_graph(
        self, engine: Path, case: Case, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        graph = self.graph(engine, case, runner)
        return classification_proof.graph_checks(graph, case_texts(case), case)

    def answer_lines(self, case: Case) -> list[str]:
        scores, labels = case.answers["scores"], case.facts["labels"]
        lines = list(spread_lines("scores", scores, case.tolerance))
        if case.facts["function"] != "none":
            lines += label_lines(scores, labels, case.tolerance)
        return lines

    def parity_checks(self, engine: Path, case: Case) -> list[Check]:
        return classification_proof.parity_checks(self.graph(engine, case), case)

    def closeness(self, engine: Path, case: Case) -> Closeness:
        return classification_proof.scores_closeness(self.graph(engine, case), case)

    def golden(self, case: Case) -> Golden:
        scores, labels = case.answers["scores"][0], case.facts["labels"]
        best = int(scores.argmax())
        return Golden(
            request={"text": case_texts(case)[0]},
            expect={"label": [labels[best]], "score": [float(scores[best])]},
            tolerance=10 * case.tolerance.difference * classification_proof.score_unit(case),
        )

    def prove_served(self, address: str, case: Case) -> list[Check]:
        return served_checks(address, case)


def _function(config: Any, labels: int) -> str:
    """As transformers' own pipeline chooses it."""
    kind = config.get("problem_type")
    if kind == "regression":
        return "none"
    return "sigmoid" if kind == "multi_label_classification" or labels == 1 else "softmax"
