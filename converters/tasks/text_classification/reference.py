"""Run ``transformers``' own text-classification pipeline, in a process of its own.

    python -m converters.tasks.text_classification.reference FOLDER REQUEST.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.reference_process import ask, fp32_noise, repeat_positions, require_stateless


def classify(
    folder: Path, texts: list[str], too_long: list[str], limit: int, work_dir: Path
) -> dict[str, np.ndarray]:
    """``scores`` FP32 [n, labels] in the model's order, one text at a time, and ``token_count``
    INT32 [n]; ``scores_noise`` FP64 [labels]; ``token_ids`` INT64, those of all texts joined;
    ``long_scores`` and ``long_token_ids`` of the ``too_long`` texts, cut to ``limit`` tokens."""
    request_file = work_dir / "request.json"
    request_file.write_text(json.dumps({"texts": texts, "too_long": too_long, "limit": limit}))
    module = "converters.tasks.text_classification.reference"
    return ask(module, folder, request_file, answers=work_dir / "reference.npz")


def main(folder: str, request_file: str, target: str) -> None:
    from transformers import pipeline

    request = json.loads(Path(request_file).read_text())
    classifier: Any = pipeline(
        "text-classification",
        model=folder,
        device="cpu",
        top_k=None,
        # A half-precision folder also runs in FP32 here, as it does when it is converted.
        dtype="float32",
    )
    cut = {"truncation": True, "max_length": request["limit"]}
    ids = [classifier.tokenizer(text)["input_ids"] for text in request["texts"]]
    long_ids = [classifier.tokenizer(text, **cut)["input_ids"] for text in request["too_long"]]
    scores = _scores(classifier, request["texts"], {})
    positions = repeat_positions(len(request["texts"]))
    # Again with a fresh pipeline and in reverse: the scores must not depend on either.
    fresh: Any = pipeline(
        "text-classification", model=folder, device="cpu", top_k=None, dtype="float32"
    )
    again = _scores(fresh, [request["texts"][position] for position in positions], {})
    require_stateless(scores, again, positions, request["texts"])

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        fresh.model.double()
        return {
            "scores": _scores(fresh, [request["texts"][position] for position in positions], {})
        }

    np.savez(
        target,
        scores=scores,
        **fp32_noise({"scores": scores}, exact),
        token_count=np.array([len(row) for row in ids], dtype=np.int32),
        token_ids=np.concatenate(ids).astype(np.int64),
        long_token_ids=np.concatenate(long_ids).astype(np.int64),
        long_scores=_scores(classifier, request["too_long"], cut),
    )


def _scores(classifier: Any, texts: list[str], options: dict[str, Any]) -> np.ndarray:
    id2label = classifier.model.config.id2label or {}
    indexes = {label: int(index) for index, label in id2label.items()}
    scores = np.zeros((len(texts), len(indexes)), dtype=np.float32)
    for row, text in enumerate(texts):
        for prediction in classifier([text], **options)[0]:
            scores[row, indexes[prediction["label"]]] = prediction["score"]
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
