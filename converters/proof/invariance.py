"""What holds for every text graph, whatever its task: the output depends on the text alone.

Not on the other texts in the batch, not on how far it is padded, not on when it runs.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from converters.proof.checks import Check, at_most, worst_difference
from converters.proof.token_graph import TokenGraph, text_of_tokens
from converters.proof.tolerance import Tolerance

# So many texts together: all shapes up to the middle length, and few rows at the longest, where a
# batch of 64 takes as long as all other checks. Batch invariance runs mixed lengths there.
BATCH_SIZES, LONG_BATCH_SIZES = (1, 2, 64), (1, 2)
# Of the texts that are padded to more tokens than SHORT: so many of the shortest and the longest.
SHORT, FROM_EACH_END = 64, 3


def invariance_checks(
    graph: TokenGraph, texts: list[str], buckets: Sequence[int], limit: float
) -> list[Check]:
    """Batch invariance, padding to each bucket, dynamic axes and determinism on these texts."""
    alone = dict(zip(texts, _alone(graph, texts), strict=True))
    return [
        _batch_invariance(graph, texts, limit),
        *(_padding_invariance(graph, alone, bucket, limit) for bucket in buckets),
        _dynamic_axes(graph, texts, buckets),
        _determinism(graph, texts),
    ]


def padding_checks(
    graph: TokenGraph, texts: list[str], buckets: Sequence[int], tolerance: Tolerance
) -> list[Check]:
    """Only padding invariance, in units of the graph's largest output where that is above 1."""
    alone = dict(zip(texts, _alone(graph, texts), strict=True))
    outputs = np.concatenate([output.reshape(-1) for output in alone.values()])
    limit = max(tolerance.invariance, tolerance.invariance * float(np.abs(outputs).max()))
    return [_padding_invariance(graph, alone, bucket, limit) for bucket in buckets]


def texts_for_buckets(
    texts: list[str], buckets: Sequence[int], tokens: Callable[[str], int]
) -> list[str]:
    """One text that fills each bucket: real sentences joined and cut; ``tokens`` counts a text's
    tokens."""
    rotations = (texts[start % len(texts) :] + texts for start in range(len(buckets)))
    texts_by_bucket = (
        text_of_tokens(rotation, tokens, bucket)
        for rotation, bucket in zip(rotations, buckets, strict=True)
    )
    return [text for text in texts_by_bucket if text]


def worst_output(
    name: str,
    actual: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    limit: float,
    texts: Sequence[str],
) -> Check:
    """The largest difference between two outputs for the same text, and that text."""
    if not len(actual) == len(expected) == len(texts):
        return Check(name, float("nan"), limit, False, f"{len(actual)} rows for {len(texts)} texts")
    checks = [
        worst_difference(name, output[None], reference_output[None], limit, [text])
        for output, reference_output, text in zip(actual, expected, texts, strict=True)
    ]
    # The largest of the failed checks, else of all; NaN would not compare.
    return max(checks, key=lambda check: (not check.passed, np.nan_to_num(check.measured)))


def _alone(graph: TokenGraph, texts: Sequence[str], width: int | None = None) -> list[np.ndarray]:
    return [output for text in texts for output in graph.infer([text], width)]


def _batch_invariance(graph: TokenGraph, texts: list[str], limit: float) -> Check:
    """A text's output must not depend on the rest of its batch (same padding for both): all short
    texts together, and some of all lengths."""
    short = [text for text in texts if graph.length(text) <= SHORT]
    together: list[np.ndarray] = []
    alone: list[np.ndarray] = []
    compared: list[str] = []
    for batch in filter(None, (short, _from_each_end(graph, texts))):
        width = max(graph.length(text) for text in batch)
        together += graph.infer(batch, width)
        alone += _alone(graph, batch, width)
        compared += batch
    return worst_output("batch invariance", together, alone, limit, compared)


def _from_each_end(graph: TokenGraph, texts: Sequence[str]) -> list[str]:
    """A few of the shortest and of the longest texts."""
    ordered = sorted(texts, key=graph.length)
    if len(ordered) <= 2 * FROM_EACH_END:
        return ordered
    return [*ordered[:FROM_EACH_END], *ordered[-FROM_EACH_END:]]


def _padding_invariance(
    graph: TokenGraph, alone: Mapping[str, np.ndarray], bucket: int, limit: float
) -> Check:
    """``alone`` has each text's output without padding."""
    fitting = [text for text in alone if graph.length(text) <= bucket]
    if bucket > SHORT:
        fitting = _from_each_end(graph, fitting)
    padded, unpadded = graph.infer(fitting, bucket), [alone[text] for text in fitting]
    return worst_output(f"padding invariance at {bucket}", padded, unpadded, limit, fitting)


def _dynamic_axes(graph: TokenGraph, texts: list[str], buckets: Sequence[int]) -> Check:
    """Every batch size at the shortest and a middle length, and some at the longest, return a row
    per text."""
    failures = 0
    token = graph.feed(texts[:1])["input_ids"][0, 0]
    for length, sizes in (
        (1, BATCH_SIZES),
        (min(SHORT, buckets[len(buckets) // 2]), BATCH_SIZES),
        (buckets[-1], LONG_BATCH_SIZES),
    ):
        for rows in sizes:
            ids = np.full((rows, length), token, dtype=np.int64)
            output = graph.run(ids, np.ones_like(ids))
            per_token = output.ndim == 3 and output.shape[1] != length
            failures += output.shape[0] != rows or per_token or not np.isfinite(output).all()
    return at_most("dynamic axes: shapes that went wrong", failures, 0)


def _determinism(graph: TokenGraph, texts: list[str]) -> Check:
    few = _from_each_end(graph, texts)
    return worst_output("determinism", graph.infer(few), graph.infer(few), 0.0, few)
