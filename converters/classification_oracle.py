"""What ``transformers``' own text-classification pipeline answers, in a process of its own.

    python -m converters.classification_oracle FOLDER TEXTS.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from converters.original import ask


def classify(folder: Path, texts: list[str], work_dir: Path) -> np.ndarray:
    """Scores FP32 [n, labels] in the model's order, one text at a time."""
    questions = work_dir / "texts.json"
    questions.write_text(json.dumps(texts))
    module = "converters.classification_oracle"
    return ask(module, folder, questions, answers=work_dir / "oracle.npz")["scores"]


def main(folder: str, questions: str, answers: str) -> None:
    from transformers import pipeline

    classifier: Any = pipeline("text-classification", model=folder, device="cpu", top_k=None)
    named = classifier.model.config.id2label or {}
    order = {label: int(index) for index, label in named.items()}
    texts = json.loads(Path(questions).read_text())
    scores = np.zeros((len(texts), len(order)), dtype=np.float32)
    for row, text in enumerate(texts):
        for answer in classifier([text])[0]:
            scores[row, order[answer["label"]]] = answer["score"]
    np.savez(answers, scores=scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
