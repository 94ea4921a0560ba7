"""Run ``transformers``' own text-classification pipeline on pairs, in a process of its own.

    python -m converters.tasks.text_ranking.reference FOLDER REQUEST.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.reference_process import ask, fp32_noise, repeat_positions, require_stateless


def rank(
    folder: Path,
    pairs: list[tuple[str, str]],
    too_long: list[tuple[str, str]],
    limit: int,
    work_dir: Path,
) -> dict[str, np.ndarray]:
    """``scores`` FP32 [n, 1], one pair at a time, and ``token_count`` INT32 [n]; ``scores_noise``
    FP64 [1]; ``token_ids`` and ``token_types`` INT64, those of all pairs joined; ``long_scores``,
    ``long_token_ids`` and ``long_token_types`` of the ``too_long`` pairs, cut to ``limit`` tokens.
    """
    request_file = work_dir / "request.json"
    request_file.write_text(json.dumps({"pairs": pairs, "too_long": too_long, "limit": limit}))
    module = "converters.tasks.text_ranking.reference"
    return ask(module, folder, request_file, answers=work_dir / "reference.npz")


def main(folder: str, request_file: str, target: str) -> None:
    request = json.loads(Path(request_file).read_text())
    pairs, too_long = request["pairs"], request["too_long"]
    scorer = _scorer(folder)
    cut = {"truncation": True, "max_length": request["limit"]}
    encodings = [scorer.tokenizer(*pair, return_token_type_ids=True) for pair in pairs]
    long_encodings = [
        scorer.tokenizer(*pair, return_token_type_ids=True, **cut) for pair in too_long
    ]
    scores = _scores(scorer, pairs, {})
    positions = repeat_positions(len(pairs))
    # Again with a fresh pipeline and in reverse: the scores must not depend on either.
    fresh = _scorer(folder)
    again = _scores(fresh, [pairs[position] for position in positions], {})
    require_stateless(scores, again, positions, [" | ".join(pair) for pair in pairs])

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        fresh.model.double()
        return {"scores": _scores(fresh, [pairs[position] for position in positions], {})}

    np.savez(
        target,
        scores=scores,
        **fp32_noise({"scores": scores}, exact),
        token_count=np.array([len(row["input_ids"]) for row in encodings], dtype=np.int32),
        token_ids=_joined(encodings, "input_ids"),
        token_types=_joined(encodings, "token_type_ids"),
        long_token_ids=_joined(long_encodings, "input_ids"),
        long_token_types=_joined(long_encodings, "token_type_ids"),
        long_scores=_scores(scorer, too_long, cut),
    )


def _scorer(folder: str) -> Any:
    from transformers import pipeline

    # A half-precision folder also runs in FP32 here, as it does when it is converted.
    return pipeline("text-classification", model=folder, device="cpu", dtype="float32")


def _joined(encodings: list[Any], name: str) -> np.ndarray:
    return np.asarray(np.concatenate([row[name] for row in encodings]), dtype=np.int64)


def _scores(scorer: Any, pairs: list[list[str]], options: dict[str, Any]) -> np.ndarray:
    scores = np.zeros((len(pairs), 1), dtype=np.float32)
    for row, (query, passage) in enumerate(pairs):
        prediction = scorer(
            {"text": query, "text_pair": passage}, function_to_apply="sigmoid", **options
        )
        scores[row, 0] = (prediction[0] if isinstance(prediction, list) else prediction)["score"]
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
