"""Run sentence-transformers itself, in a process of its own.

    python -m converters.tasks.embedding.reference FOLDER REQUEST.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.reference_process import ask, fp32_noise, repeat_positions, require_stateless


def embed(
    folder: Path, texts: list[str], too_long: list[str], limit: int, work_dir: Path
) -> dict[str, np.ndarray]:
    """``vectors`` FP32 [n, width], ``vectors_noise`` FP64 [width], ``token_count`` INT32 [n] and
    ``token_ids`` INT64; ``long_vectors`` and ``long_token_ids`` of the ``too_long`` texts, cut to
    ``limit`` tokens as sentence-transformers cuts them."""
    request_file = work_dir / "request.json"
    request_file.write_text(json.dumps({"texts": texts, "too_long": too_long, "limit": limit}))
    module = "converters.tasks.embedding.reference"
    return ask(module, folder, request_file, answers=work_dir / "reference.npz")


def main(folder: str, request_file: str, target: str) -> None:
    from sentence_transformers import SentenceTransformer

    request = json.loads(Path(request_file).read_text())
    model = _opened(SentenceTransformer, folder, request["limit"])
    vectors = _vectors(model, request["texts"])
    positions = repeat_positions(len(request["texts"]))
    # Again with a fresh model and in reverse: the vectors must not depend on either.
    fresh = _opened(SentenceTransformer, folder, request["limit"])
    again = _vectors(fresh, [request["texts"][position] for position in positions])
    require_stateless(vectors, again, positions, request["texts"])

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        return {
            "vectors": _vectors(
                fresh.double(), [request["texts"][position] for position in positions]
            )
        }

    ids = [_ids(model, text) for text in request["texts"]]
    np.savez(
        target,
        vectors=vectors.astype(np.float32),
        **fp32_noise({"vectors": vectors}, exact),
        token_count=np.array([len(row) for row in ids], dtype=np.int32),
        token_ids=np.concatenate(ids).astype(np.int64),
        long_token_ids=np.concatenate([_ids(model, text) for text in request["too_long"]]),
        long_vectors=_vectors(model, request["too_long"]).astype(np.float32),
    )


def _ids(model: Any, text: str) -> np.ndarray:
    """The tokens that ``encode`` gives the model, INT64 [length]."""
    return np.asarray(model.preprocess([text])["input_ids"], dtype=np.int64).reshape(-1)


def _opened(model_class: Any, folder: str, limit: int) -> Any:
    model = model_class(
        folder,
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        # A half-precision folder also runs in FP32 here, as it does when it is converted.
        model_kwargs={"dtype": "float32"},
    )
    if type(model[0]).__name__ == "StaticEmbedding":
        model[0].tokenizer.enable_truncation(limit)  # it has no limit of its own
        return model.float()
    model.max_seq_length = limit
    return model


def _vectors(model: Any, texts: list[str]) -> np.ndarray:
    """One text at a time: the original, untouched by batching or padding."""
    rows = [model.encode([text], show_progress_bar=False) for text in texts]
    return np.concatenate(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
