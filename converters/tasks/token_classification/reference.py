"""Run ``transformers``' own token-classification pipeline, in a process of its own.

    python -m converters.tasks.token_classification.reference FOLDER REQUEST.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.reference_process import (
    ask,
    fp32_noise,
    fp64_positions,
    repeat_positions,
    require_stateless,
)


def find_entities(
    folder: Path, texts: list[str], too_long: list[str], limit: int, work_dir: Path
) -> dict[str, np.ndarray]:
    """The entities of all texts, found one text at a time, with an element each in ``row`` (the
    text's index), ``start``, ``end`` INT32, ``label`` text and ``score`` FP32. ``logits`` FP32
    [tokens, labels] are those of all texts' tokens, ``logits_noise`` FP64 [labels], ``of_text``
    BOOL [tokens] is False for special tokens, ``token_ids`` INT64 [tokens], and ``token_count``
    INT32 [n] is how many tokens each text has. ``long_...`` are the same for the ``too_long``
    texts, cut to ``limit`` tokens."""
    request_file = work_dir / "request.json"
    request_file.write_text(json.dumps({"texts": texts, "too_long": too_long, "limit": limit}))
    return ask(
        "converters.tasks.token_classification.reference",
        folder,
        request_file,
        answers=work_dir / "reference.npz",
    )


def main(folder: str, request_file: str, target: str) -> None:
    from transformers import pipeline

    request = json.loads(Path(request_file).read_text())
    tagger: Any = pipeline(
        "token-classification",
        model=folder,
        device="cpu",
        aggregation_strategy="simple",
        # A half-precision folder also runs in FP32 here, as it does when it is converted.
        dtype="float32",
    )
    tagger.tokenizer.model_max_length = request["limit"]
    reported = _outputs(tagger, request["texts"])
    fresh = _require_stateless(folder, request, reported)
    cut = {f"long_{name}": array for name, array in _outputs(tagger, request["too_long"]).items()}
    np.savez(target, **reported, **cut, **_noise(fresh, request["texts"], reported))


def _require_stateless(folder: str, request: Any, reported: dict[str, np.ndarray]) -> Any:
    """Run some texts again with a fresh pipeline and in reverse, and return that pipeline. Ends the
    process where the logits depend on either."""
    from transformers import pipeline

    fresh: Any = pipeline("token-classification", model=folder, device="cpu", dtype="float32")
    fresh.tokenizer.model_max_length = request["limit"]
    parts = np.split(reported["logits"], np.cumsum(reported["token_count"])[:-1])
    for position in repeat_positions(len(parts)):
        again, _ = _token_logits(fresh, request["texts"][position])
        names = [request["texts"][position]] * len(again)
        require_stateless(parts[position], again, range(len(again)), names)
    return fresh


def _noise(fresh: Any, texts: list[str], reported: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What FP32 rounds off the logits, measured on the tokens of some texts."""
    samples = fp64_positions(len(texts))
    parts = np.split(reported["logits"], np.cumsum(reported["token_count"])[:-1])

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        fresh.model.double()
        tokens = np.concatenate([_token_logits(fresh, texts[sample])[0] for sample in samples])
        return {"logits": tokens[positions]}

    return fp32_noise({"logits": np.concatenate([parts[sample] for sample in samples])}, exact)


def _outputs(tagger: Any, texts: list[str]) -> dict[str, np.ndarray]:
    entities = [(row, entity) for row, text in enumerate(texts) for entity in tagger(text)]
    tokens = [_token_logits(tagger, text) for text in texts]
    ids = [_ids(tagger, text) for text in texts]
    return {
        "row": np.array([row for row, _ in entities], dtype=np.int32),
        "start": np.array([entity["start"] for _, entity in entities], dtype=np.int32),
        "end": np.array([entity["end"] for _, entity in entities], dtype=np.int32),
        "label": np.array([entity["entity_group"] for _, entity in entities], dtype=np.str_),
        "score": np.array([entity["score"] for _, entity in entities], dtype=np.float32),
        "logits": np.concatenate([logits for logits, _ in tokens]).astype(np.float32),
        "of_text": np.concatenate([of_text for _, of_text in tokens]),
        "token_ids": np.concatenate(ids),
        "token_count": np.array([len(of_text) for _, of_text in tokens], dtype=np.int32),
    }


def _ids(tagger: Any, text: str) -> np.ndarray:
    """The tokens that the pipeline gives the model, INT64 [length]."""
    (inputs,) = tagger.preprocess(text, **tagger._preprocess_params)
    return np.asarray(inputs["input_ids"][0].numpy(), dtype=np.int64)


def _token_logits(tagger: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The logits of the text's tokens, and which of these are not special tokens."""
    (inputs,) = tagger.preprocess(text, **tagger._preprocess_params)
    outputs = tagger.forward(inputs)
    return outputs["logits"][0].numpy(), outputs["special_tokens_mask"][0].numpy() == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
