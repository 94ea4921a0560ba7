"""What every text graph must keep, whatever its task: an answer depends on the text alone.

Not on who shares its batch, not on how far it is padded, not on when it is asked.
"""

from collections.abc import Callable, Sequence

import numpy as np

from converters.proof import Check, at_most, worst_difference
from converters.text.samples import text_of_tokens
from converters.text.token_graph import TokenGraph
from converters.tolerance import Tolerance

BATCH_SIZES = (1, 2, 64)


def invariance_checks(
    graph: TokenGraph, texts: list[str], buckets: Sequence[int], limit: float
) -> list[Check]:
    """Batch, padding in each bucket, dynamic axes and determinism on these few texts."""
    return [
        _batch_invariance(graph, texts, limit),
        *(_padding_invariance(graph, texts, bucket, limit) for bucket in buckets),
        _dynamic_axes(graph, texts, buckets),
        _determinism(graph, texts),
    ]


def padding_checks(
    graph: TokenGraph, texts: list[str], buckets: Sequence[int], allowed: Tolerance
) -> list[Check]:
    """Padding invariance alone, in units of how far the graph's own answers lie apart."""
    answers = np.concatenate([answer.reshape(-1) for answer in _alone(graph, texts)])
    limit = max(allowed.invariance, allowed.invariance * float(np.abs(answers).max()))
    return [_padding_invariance(graph, texts, bucket, limit) for bucket in buckets]


def texts_for_buckets(
    texts: list[str], buckets: Sequence[int], tokens: Callable[[str], int]
) -> list[str]:
    """A text that fills each bucket: real sentences joined and cut; ``tokens`` counts them."""
    turned = (texts[start % len(texts) :] + texts for start in range(len(buckets)))
    filling = (text_of_tokens(each, tokens, n) for each, n in zip(turned, buckets, strict=True))
    return [text for text in filling if text]


def worst_answer(
    name: str,
    got: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    limit: float,
    texts: Sequence[str],
) -> Check:
    """The largest difference between two answers a text, and the text it stands in."""
    if not len(got) == len(wanted) == len(texts):
        return Check(name, float("nan"), limit, False, f"{len(got)} rows for {len(texts)} texts")
    checks = [
        worst_difference(name, mine[None], theirs[None], limit, [text])
        for mine, theirs, text in zip(got, wanted, texts, strict=True)
    ]
    # A check that failed, and then the largest; NaN compares with nothing.
    return max(checks, key=lambda check: (not check.passed, np.nan_to_num(check.measured)))


def _alone(graph: TokenGraph, texts: Sequence[str], width: int | None = None) -> list[np.ndarray]:
    return [answer for text in texts for answer in graph.answer([text], width)]


def _batch_invariance(graph: TokenGraph, texts: list[str], limit: float) -> Check:
    """A text's answer must not depend on who shares its batch (same padding for both)."""
    width = max(graph.length(text) for text in texts)
    together, alone = graph.answer(texts, width), _alone(graph, texts, width)
    return worst_answer("batch invariance", together, alone, limit, texts)


def _padding_invariance(graph: TokenGraph, texts: list[str], bucket: int, limit: float) -> Check:
    fitting = [text for text in texts if graph.length(text) <= bucket]
    padded, alone = graph.answer(fitting, bucket), _alone(graph, fitting)
    return worst_answer(f"padding invariance at {bucket}", padded, alone, limit, fitting)


def _dynamic_axes(graph: TokenGraph, texts: list[str], buckets: Sequence[int]) -> Check:
    """Every batch size at the shortest, a middle and the longest length gives one row each."""
    wrong = 0
    token = graph.feed(texts[:1])["input_ids"][0, 0]
    for rows in BATCH_SIZES:
        for length in (1, buckets[len(buckets) // 2], buckets[-1]):
            ids = np.full((rows, length), token, dtype=np.int64)
            answers = graph.run(ids, np.ones_like(ids))
            per_token = answers.ndim == 3 and answers.shape[1] != length
            wrong += answers.shape[0] != rows or per_token or not np.isfinite(answers).all()
    return at_most("dynamic axes: shapes that went wrong", wrong, 0)


def _determinism(graph: TokenGraph, texts: list[str]) -> Check:
    return worst_answer("determinism", graph.answer(texts), graph.answer(texts), 0.0, texts)
