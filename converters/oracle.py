"""The original framework's own answers, computed in a process of its own.

    python -m converters.oracle FOLDER TEXTS.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from pathlib import Path

import numpy as np

from converters.original import ask


def embed(folder: Path, texts: list[str], work_dir: Path) -> dict[str, np.ndarray]:
    """``vectors`` FP32 [n, width] and ``token_count`` INT32 [n] by sentence-transformers."""
    questions, answers = work_dir / "texts.json", work_dir / "oracle.npz"
    questions.write_text(json.dumps(texts))
    return ask("converters.oracle", folder, questions, answers=answers)


def main(folder: str, questions: str, answers: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = json.loads(Path(questions).read_text())
    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    # One text at a time: the original, untouched by batching or padding.
    vectors = np.concatenate([model.encode([text], normalize_embeddings=True) for text in texts])
    limit = model.max_seq_length or 512
    count = [min(len(model.tokenizer(text)["input_ids"]), limit) for text in texts]
    np.savez(answers, vectors=vectors, token_count=np.array(count, dtype=np.int32))


if __name__ == "__main__":
    main(*sys.argv[1:])
