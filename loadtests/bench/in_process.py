"""The same model without a server: ``python -m loadtests.bench.in_process OPTIONS`` -> JSON.

Run in its own process, so that nothing carries over from an earlier setting. Prints texts per
second: tokenised one by one, padded to the longest of the batch, the answers discarded.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

CALLERS = 32


def session(model: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def feeds(tokenizer: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask``, INT64 [n, longest]."""
    rows = [tokenizer.encode(text).ids for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def rate(run: Any, batches: Iterator[Sequence[str]], seconds: float) -> float:
    """Texts per second, over about ``seconds``."""
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        texts = next(batches)
        run(texts)
        done += len(texts)
    return done / elapsed


def endless_batches(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Batches as a program could form them for 32 callers: texts of similar length together."""
    source = cycle(texts)
    while True:
        window = list(islice(source, CALLERS))
        ordered = sorted(window, key=len) if size > 1 else window
        yield from (ordered[start : start + size] for start in range(0, CALLERS, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "tokenizer", "texts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("threads", "batch", "seconds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    tokenizer.no_padding()
    engine = session(options.model, options.threads)
    batches = endless_batches(json.loads(options.texts.read_text()), options.batch)

    def run(texts: Sequence[str]) -> None:
        engine.run(["sentence_embedding"], feeds(tokenizer, texts))

    rate(run, batches, 0.5)  # warm
    rps = rate(run, batches, options.seconds)
    print(json.dumps({"rps": rps}))  # noqa: T201 (the caller reads it)


if __name__ == "__main__":
    main()
