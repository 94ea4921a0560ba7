"""What each precision costs on the two models that install from PyPI, measured now.

    python -m converters.precision_report [FOLDER ...]

A FOLDER is a finished conversion of ``text_embedding`` or ``image_classification``; without one,
the newest of each in the cache. The original is the FP32 graph, whose own proof lies beside it.
``text-classification`` is a topic classifier (logistic regression, on every other one of some 500
real sentences) over the sentence vectors, measured on the others. ``tensors`` are the raw logits
of the pictures. Every third sample calibrates int8; all are measured.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from converters.cache import cache_root
from converters.precision import PRECISIONS, write_variant
from converters.precisions.closeness import Closeness, closeness, same_decision, same_neighbour
from converters.texts.samples import corpus_folder, default_texts
from converters.tolerance import CLEAR

Feed = dict[str, np.ndarray]
PASSES = 20
ROWS = 8  # of the batch that the speed is taken with, one thread
TIMED_TOKENS = 32
TOPICS = ("money", "trivia", "science", "psychology", "sports", "movies", "history", "food")
HEADER = (
    f"{'task':21}{'precision':13}{'difference':>10}{'mean':>9}{'cosine':>9}{'agreement':>10}"
    f"{'invariance':>11}{'MB':>6}{'speed':>7}\n"
)


@dataclass(frozen=True)
class Subject:
    """A graph, samples of one row each, batches of the same samples in the same order, the batch
    for the clock, and what the graph's answers [n, ...] are compared as."""

    graph: Path
    alone: list[Feed]
    batches: list[Feed]
    timed: Feed
    views: Mapping[str, Callable[[np.ndarray, np.ndarray], Closeness]]


def main(folders: list[str]) -> None:
    sys.stdout.write(HEADER)
    for graph in [Path(each) / "model.onnx" for each in folders] or _newest():
        text = (graph.parent / "tokenizer.json").is_file()
        subject = _texts(graph) if text else _pictures(graph)
        with tempfile.TemporaryDirectory() as work:
            for line in _measure(subject, Path(work)):
                sys.stdout.write(line + "\n")
                sys.stdout.flush()


def _newest() -> list[Path]:
    """The newest sentence-embedding graph and the newest image graph in the cache."""
    found: dict[str, Path] = {}
    graphs = (cache_root() / "conversions").glob("*/model.onnx")
    for graph in sorted(graphs, key=lambda path: path.stat().st_mtime, reverse=True):
        if len(found) == 2:
            break
        pictures = (graph.parent / "samples").is_dir()
        first = "pixels" if pictures else _session(graph, 1).get_outputs()[0].name
        if first in ("pixels", "sentence_embedding"):
            found.setdefault(first, graph)
    return list(found.values())


def _measure(subject: Subject, work: Path) -> Iterator[str]:
    """A line for each precision and view."""
    wanted: np.ndarray | None = None
    base = 1.0
    for precision in PRECISIONS:
        target = work / "variant.onnx"
        write_variant(precision, subject.graph, target, lambda: subject.alone[::3])
        session = _session(target, 2)
        got = np.concatenate([session.run(None, feed)[0] for feed in subject.alone])
        together = np.concatenate([session.run(None, feed)[0] for feed in subject.batches])
        wanted = got if wanted is None else wanted
        seconds = _seconds(target, subject.timed)
        base = seconds if precision == "fp32" else base
        size = target.stat().st_size / 1e6
        for task, view in subject.views.items():
            near, shared = view(got, wanted), view(together, got)
            yield (
                f"{task:21}{precision:13}{near.difference:10.2g}{near.mean:9.2g}{near.cosine:9.5f}"
                f"{near.agreement:10.3f}{shared.difference:11.1g}{size:6.1f}{base / seconds:7.2f}"
            )


def _texts(graph: Path) -> Subject:
    texts = default_texts()
    # And longer ones, of 2 to 16 sentences.
    texts += [" ".join(texts[start : start + (2 << start)]) for start in range(4)]
    split, topics, names = len(texts), *_labelled()
    alone, batches, timed = _tokenised(graph.parent / "tokenizer.json", [*texts, *topics])
    vectors = np.concatenate([_session(graph, 2).run(None, feed)[0] for feed in alone[split:]])
    decide = _topic_classifier(vectors[::2], names[::2])

    def embedding(got: np.ndarray, wanted: np.ndarray) -> Closeness:
        mine, theirs = got[:split], wanted[:split]
        return closeness(mine, theirs, same_neighbour(mine, theirs))

    def classification(got: np.ndarray, wanted: np.ndarray) -> Closeness:
        mine, theirs = decide(got[split + 1 :: 2]), decide(wanted[split + 1 :: 2])
        return closeness(mine, theirs, same_decision(mine, theirs, CLEAR))

    views = {"embedding": embedding, "text-classification": classification}
    return Subject(graph, alone, batches, timed, views)


def _labelled() -> tuple[list[str], np.ndarray]:
    """Every second line of some topics of the corpus, and the topic of each."""
    import yaml

    texts: list[str] = []
    names: list[str] = []
    for topic in TOPICS:
        content = (corpus_folder() / "english" / f"{topic}.yml").read_text(encoding="utf-8")
        lines = [str(line) for talk in yaml.safe_load(content)["conversations"] for line in talk]
        texts += lines[:100:2]
        names += [topic] * len(lines[:100:2])
    return texts, np.array(names)


def _topic_classifier(vectors: np.ndarray, names: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=30, max_iter=2000).fit(vectors, names)
    return lambda rows: np.asarray(fitted.predict_proba(rows))


def _tokenised(tokenizer: Path, texts: list[str]) -> tuple[list[Feed], list[Feed], Feed]:
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.enable_truncation(256)
    rows = [reader.encode(text).ids for text in texts]
    batches = [_padded(rows[start : start + 16], 64) for start in range(0, len(rows), 16)]
    timed = _padded([(row * TIMED_TOKENS)[:TIMED_TOKENS] for row in rows[:ROWS]], TIMED_TOKENS)
    return [_padded([row], 0) for row in rows], batches, timed


def _padded(rows: list[list[int]], length: int) -> Feed:
    ids = np.zeros((len(rows), max(length, *map(len, rows), 1)), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def _pictures(graph: Path) -> Subject:
    from converters.pictures.efficientnet_oracle import classify

    # The name under `asked` is the file that the original can read.
    shown = [graph.parent / "asked" / path.name for path in (graph.parent / "samples").iterdir()]
    paths = sorted(
        path if path.exists() else graph.parent / "samples" / path.name for path in shown
    )
    with tempfile.TemporaryDirectory() as work:
        pixels = classify(paths, Path(work))["pixels"]

    def classification(got: np.ndarray, wanted: np.ndarray) -> Closeness:
        mine, theirs = _softmax(got), _softmax(wanted)
        return closeness(mine, theirs, same_decision(mine, theirs, CLEAR))

    def tensors(got: np.ndarray, wanted: np.ndarray) -> Closeness:
        return closeness(got, wanted, 1.0, relative=True)

    alone, batches = (
        [{"pixels": pixels[at : at + n]} for at in range(0, len(pixels), n)] for n in (1, 16)
    )
    views = {"image-classification": classification, "tensors": tensors}
    return Subject(graph, alone, batches, {"pixels": pixels[:ROWS]}, views)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _seconds(graph: Path, feed: Feed) -> float:
    """The quickest of a few passes: others use this machine too."""
    session, passes = _session(graph, 1), []
    for _ in range(PASSES + 1):
        begun = time.perf_counter()
        session.run(None, feed)
        passes.append(time.perf_counter() - begun)
    return min(passes)


if __name__ == "__main__":
    main(sys.argv[1:])
