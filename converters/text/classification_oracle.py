"""What ``transformers``' own text-classification pipeline answers, in a process of its own.

    python -m converters.text.classification_oracle FOLDER QUESTIONS.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from converters.original import ask, fp32_noise, places_again, require_no_past


def classify(
    folder: Path, texts: list[str], too_long: list[str], limit: int, work_dir: Path
) -> dict[str, np.ndarray]:
    """``scores`` FP32 [n, labels] in the model's order, one text at a time, and ``token_count``
    INT32 [n]; ``scores_noise`` FP64 [labels]; ``token_ids`` INT64, all texts' in turn;
    ``long_scores`` of the texts that are ``too_long``, cut to ``limit`` tokens, and
    ``long_token_ids``."""
    questions = work_dir / "questions.json"
    questions.write_text(json.dumps({"texts": texts, "too_long": too_long, "limit": limit}))
    module = "converters.text.classification_oracle"
    return ask(module, folder, questions, answers=work_dir / "oracle.npz")


def main(folder: str, questions: str, answers: str) -> None:
    from transformers import pipeline

    asked = json.loads(Path(questions).read_text())
    classifier: Any = pipeline(
        "text-classification",
        model=folder,
        device="cpu",
        top_k=None,
        # A folder of half precision is asked in FP32 too, as it is converted.
        dtype="float32",
    )
    cut = {"truncation": True, "max_length": asked["limit"]}
    ids = [classifier.tokenizer(text)["input_ids"] for text in asked["texts"]]
    long_ids = [classifier.tokenizer(text, **cut)["input_ids"] for text in asked["too_long"]]
    scores = _scores(classifier, asked["texts"], {})
    positions = places_again(len(asked["texts"]))
    # The same once more, from a fresh one and in reverse: what it answers may not depend on that.
    fresh: Any = pipeline(
        "text-classification", model=folder, device="cpu", top_k=None, dtype="float32"
    )
    again = _scores(fresh, [asked["texts"][place] for place in positions], {})
    require_no_past(scores, again, positions, asked["texts"])

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        fresh.model.double()
        return {"scores": _scores(fresh, [asked["texts"][place] for place in positions], {})}

    np.savez(
        answers,
        scores=scores,
        **fp32_noise({"scores": scores}, exact),
        token_count=np.array([len(row) for row in ids], dtype=np.int32),
        token_ids=np.concatenate(ids).astype(np.int64),
        long_token_ids=np.concatenate(long_ids).astype(np.int64),
        long_scores=_scores(classifier, asked["too_long"], cut),
    )


def _scores(classifier: Any, texts: list[str], cut: dict[str, Any]) -> np.ndarray:
    named = classifier.model.config.id2label or {}
    order = {label: int(index) for index, label in named.items()}
    scores = np.zeros((len(texts), len(order)), dtype=np.float32)
    for row, text in enumerate(texts):
        for answer in classifier([text], **cut)[0]:
            scores[row, order[answer["label"]]] = answer["score"]
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
