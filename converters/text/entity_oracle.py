"""What ``transformers``' own token-classification pipeline answers, in a process of its own.

    python -m converters.text.entity_oracle FOLDER QUESTIONS.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from converters.original import (
    ask,
    fp32_noise,
    places_again,
    places_exact,
    require_no_past,
)


def find_entities(
    folder: Path, texts: list[str], too_long: list[str], limit: int, work_dir: Path
) -> dict[str, np.ndarray]:
    """The entities of all texts, one text at a time, an element each: ``row`` (which text),
    ``start``, ``end`` INT32, ``label`` text, ``score`` FP32. ``logits`` FP32 [tokens, labels] are
    those of all texts' tokens, ``logits_noise`` FP64 [labels], ``of_text`` BOOL [tokens] says which
    are no special tokens, and ``token_count`` INT32 [n] how many each text has. ``long_...`` is the
    same of the texts that are ``too_long``, cut to ``limit`` tokens."""
    questions = work_dir / "questions.json"
    questions.write_text(json.dumps({"texts": texts, "too_long": too_long, "limit": limit}))
    return ask("converters.text.entity_oracle", folder, questions, answers=work_dir / "oracle.npz")


def main(folder: str, questions: str, answers: str) -> None:
    from transformers import pipeline

    asked = json.loads(Path(questions).read_text())
    tagger: Any = pipeline(
        "token-classification",
        model=folder,
        device="cpu",
        aggregation_strategy="simple",
        # A folder of half precision is asked in FP32 too, as it is converted.
        dtype="float32",
    )
    tagger.tokenizer.model_max_length = asked["limit"]
    answers_of = _answers(tagger, asked["texts"])
    fresh = _require_no_past(folder, asked, answers_of)
    cut = {f"long_{name}": array for name, array in _answers(tagger, asked["too_long"]).items()}
    np.savez(answers, **answers_of, **cut, **_noise(fresh, asked["texts"], answers_of))


def _require_no_past(folder: str, asked: Any, reported: dict[str, np.ndarray]) -> Any:
    """The same once more, from a fresh one and in reverse: the answers may not depend on that. The
    fresh one."""
    from transformers import pipeline

    fresh: Any = pipeline("token-classification", model=folder, device="cpu", dtype="float32")
    fresh.tokenizer.model_max_length = asked["limit"]
    parts = np.split(reported["logits"], np.cumsum(reported["token_count"])[:-1])
    for place in places_again(len(parts)):
        again, _ = _tokens(fresh, asked["texts"][place])
        names = [asked["texts"][place]] * len(again)
        require_no_past(parts[place], again, range(len(again)), names)
    return fresh


def _noise(fresh: Any, texts: list[str], reported: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What FP32 rounds off, of the tokens of some texts."""
    chosen = places_exact(len(texts))
    parts = np.split(reported["logits"], np.cumsum(reported["token_count"])[:-1])

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        fresh.model.double()
        tokens = np.concatenate([_tokens(fresh, texts[place])[0] for place in chosen])
        return {"logits": tokens[positions]}

    return fp32_noise({"logits": np.concatenate([parts[place] for place in chosen])}, exact)


def _answers(tagger: Any, texts: list[str]) -> dict[str, np.ndarray]:
    found = [(row, entity) for row, text in enumerate(texts) for entity in tagger(text)]
    tokens = [_tokens(tagger, text) for text in texts]
    ids = [_ids(tagger, text) for text in texts]
    return {
        "row": np.array([row for row, _ in found], dtype=np.int32),
        "start": np.array([entity["start"] for _, entity in found], dtype=np.int32),
        "end": np.array([entity["end"] for _, entity in found], dtype=np.int32),
        "label": np.array([entity["entity_group"] for _, entity in found], dtype=np.str_),
        "score": np.array([entity["score"] for _, entity in found], dtype=np.float32),
        "logits": np.concatenate([logits for logits, _ in tokens]).astype(np.float32),
        "of_text": np.concatenate([of_text for _, of_text in tokens]),
        "token_ids": np.concatenate(ids),
        "token_count": np.array([len(of_text) for _, of_text in tokens], dtype=np.int32),
    }


def _ids(tagger: Any, text: str) -> np.ndarray:
    """The tokens that the pipeline gives the model, INT64 [length]."""
    (inputs,) = tagger.preprocess(text, **tagger._preprocess_params)
    return np.asarray(inputs["input_ids"][0].numpy(), dtype=np.int64)


def _tokens(tagger: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The logits of the text's tokens, and which of them are of the text."""
    (inputs,) = tagger.preprocess(text, **tagger._preprocess_params)
    answer = tagger.forward(inputs)
    return answer["logits"][0].numpy(), answer["special_tokens_mask"][0].numpy() == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
