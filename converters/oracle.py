"""The original framework's own answers, computed in a process of its own.

    python -m converters.oracle FOLDER TEXTS.json ANSWERS.npz

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from converters.offline import OFFLINE


def embed(folder: Path, texts: list[str], work_dir: Path) -> dict[str, np.ndarray]:
    """``vectors`` FP32 [n, width] and ``token_count`` INT32 [n] by sentence-transformers."""
    questions, answers = work_dir / "texts.json", work_dir / "oracle.npz"
    questions.write_text(json.dumps(texts))
    command = [sys.executable, "-m", "converters.oracle", folder, questions, answers]
    run = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=OFFLINE, check=False
    )
    if run.returncode:
        raise ConversionError(f"the original model could not answer: {run.stderr.strip()[-1000:]}")
    with np.load(answers) as stored:
        return dict(stored)


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
