"""How far a precision's answers may be from the original's, by task and precision.

Each row says what was measured (``tidegate optimize`` repeats it; ONNX Runtime 1.31 on an x86 CPU
with VNNI) or, without real weights to measure, what the limit is derived from. The limits are about
twice what was measured, so that another model of the kind passes and a broken one (two labels
swapped, a last layer scaled wrongly) does not.

    python -m converters.proof.tolerance      prints the table of docs/precisions.md
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from math import inf
from typing import Any

from converters.errors import ConversionError


@dataclass(frozen=True)
class Shares:
    """How much of the original's own spread (``closeness.Departure``) may be error, for any task:
    answers that are constant, negated, zero or another sample's lose all of it.

    largest     of one number, in units of the spread
    lost        over all numbers; useful answers lose between 0 and 1
    column      the same for the worst element of an answer (a label, a tensor's element)
    gain        by how much less, or more, the answers may move than the original's
    resolution  elements that move less than this share of the typical element are measured as
                though they moved that much: 8-bit scales depend on the largest value of a tensor
    """

    largest: float
    lost: float
    column: float
    gain: float
    resolution: float = 0.0


# Measured: text_embedding's vectors, logits computed from them, EfficientNet-Lite0's logits; the
# largest of all. The limits are about twice that. FP32 gets a hundred times as much, being so far
# from the others, and 8-bit weights what small random models need: there the layers (``LAYERS``)
# show what is broken.
SHARES: dict[str, tuple[Shares, str]] = {
    "fp32": (Shares(3e-4, 1e-4, 3e-4, 1e-4), "measured 3e-5, 2e-6, 2e-5, 7e-8"),
    "fp16": (Shares(0.3, 0.025, 0.2, 0.012), "measured 0.13, 0.012, 0.08, 0.005"),
    "int8-weight-only": (
        Shares(2.0, 0.4, 0.8, 0.15, 1.0),
        "measured 0.2, 0.04, 0.1, 0.005; a tiny BERT 0.35",
    ),
    "int8-static": (Shares(4.0, 0.45, 0.95, 0.15, 1.0), "measured 2.1, 0.3, 0.73, 0.04"),
    "int8-per-row": (Shares(2.0, 0.4, 0.8, 0.15, 1.0), "measured 0.6, 0.08, 0.15, 0.005"),
    "int8-dynamic": (Shares(4.0, 0.4, 0.8, 0.15, 1.0), "measured 1.1, 0.2, 0.39, 0.01"),
}


@dataclass(frozen=True)
class LayerLimits:
    """How much of one operator's output may be error when it runs on the rounded graph's own
    inputs (``converters.proof.layers``), so that nothing has accumulated.

    exact   of an operator that is not rounded: its worst unit
    lost    of a layer that is rounded (a product with weights, a convolution): its whole output
    column  the same for its worst unit
    gain    by how much smaller, or larger, its output may be
    offset  the mean error of its worst unit, in units of what 8 bits are expected to round off
    """

    exact: float
    lost: float
    column: float
    gain: float
    offset: float = inf


# Measured on MiniLM and on tiny models with random weights, the largest of all. The limits are
# about three times that; a layer that is zeroed, transposed or has two units swapped has a
# ``column`` of 1 or more.
LAYERS: dict[str, tuple[LayerLimits, str]] = {
    "fp32": (LayerLimits(1e-4, 1e-4, 1e-3, 1e-4), "the same operators: measured 2e-7"),
    "fp16": (LayerLimits(5e-3, 5e-3, 0.02, 2e-3), "measured 1e-3, 1e-3, 4e-3, 6e-4"),
    "int8-weight-only": (
        LayerLimits(1e-4, 0.04, 0.25, 0.015, 5.0),
        "measured 0, 0.015, 0.093, 0.004, 1.6",
    ),
    "int8-static": (
        LayerLimits(1e-4, 0.15, 0.6, 0.015, 5.0),
        "measured 0, 0.055, 0.21, 0.004, 2.2",
    ),
    "int8-per-row": (
        LayerLimits(1e-4, 0.04, 0.25, 0.015, 5.0),
        "measured 0, 0.012, 0.06, 0.003, 1.5",
    ),
    "int8-dynamic": (
        LayerLimits(1e-4, 0.15, 0.6, 0.015, 5.0),
        "measured 0, 0.051, 0.2, 0.004, 1.9",
    ),
}

# A decision whose best score leads by less may flip in 8 bits, and cannot be relied on.
CLEAR = 0.05
# Twice the limit of FP16; rounding by the range of the batch moves an answer by 1e-2 or more.
INDEPENDENT = 2e-3


@dataclass(frozen=True)
class Tolerance:
    """The limits of one task at one precision.

    difference   largest absolute difference of one number of an answer: a probability, an element
                 of a unit vector; if answers have no fixed scale (tensors, regression), only
                 ``shares`` counts
    mean         the largest difference of each sample, averaged over the samples: it does not
                 depend on the number of classes or elements of an answer
    cosine       lowest cosine between a sample's whole answers
    agreement    smallest share of samples with the same decision: the likeliest class where the
                 original's lead is clear (``clear_margin``), the same nearest neighbour, span F1;
                 0 if a task makes no decision
    invariance   largest difference between an answer alone and in a batch or padded; ``inf`` if
                 nothing is promised and the measurement is graded instead (``graded``)
    shares       how much of the original's own spread may be error
    layers       how much of each operator's output may be error
    """

    difference: float
    mean: float
    cosine: float
    agreement: float
    invariance: float
    shares: Shares = SHARES["fp32"][0]
    layers: LayerLimits = LAYERS["fp32"][0]


_FP32 = Tolerance(1e-4, 1e-5, 0.99999, 1.0, 1e-4)
_VECTOR32 = Tolerance(1e-5, 1e-5, 0.99999, 1.0, 1e-5)
_SCORES16 = Tolerance(2e-3, 4e-4, 0.9999, 1.0, 1e-3)
_SCORES_WEIGHT_ONLY = Tolerance(0.05, 0.01, 0.995, 0.99, 1e-4)
_SCORES_STATIC = Tolerance(0.3, 0.05, 0.9, 0.97, 1e-4)
_SCORES_PER_ROW = Tolerance(0.1, 0.02, 0.99, 0.98, 1e-4)
_SCORES_DYNAMIC = Tolerance(0.25, 0.04, 0.93, 0.97, inf)

_PROBABILITIES = (
    "for outputs that are probabilities (as classification, the looser of text and image); for "
    "all outputs the shares below and the cosine"
)
_ROWS = (
    "as the scores of int8-weight-only: as close on average, and twice as close at worst "
    "(embedding)"
)
# Five small taggers trained for this (a BERT over Chinese characters on the People's Daily of
# January 1998; RoBERTa, DistilBERT, XLM-RoBERTa and ELECTRA on generated English; 2 to 4 layers)
# and two with random weights, up to 168 texts each, over the tokens of the texts: the difference of
# a score, its mean, the lowest cosine, the share of clear tokens with the same label, each the
# worst of all but one: ELECTRA in int8-static was measured with its special tokens, which are not
# compared any more, and is left out. The mean of fp16 was below what was printed (1e-4). The F1 of
# clear spans was 0.995 in int8-static, else 1. Text-classification's models are larger and round
# more, so the limits are theirs.
_TAGGERS = "seven small taggers: {}; the limits are those of text-classification, which rounds more"

LIMITS: dict[tuple[str, str], tuple[Tolerance, str]] = {
    ("embedding", "fp32"): (_VECTOR32, "two correct runs differ by 3e-7 (order of additions)"),
    ("embedding", "fp16"): (
        Tolerance(1e-3, 4e-4, 0.9999, 0.99, 1e-3),
        "measured 2e-4, 9e-5, 1.00000, 1.0, 6e-8; FP16 keeps 11 bits, a GPU may add differently",
    ),
    ("embedding", "int8-weight-only"): (
        Tolerance(0.02, 0.01, 0.995, 0.95, 1e-4),
        "measured 0.011, 0.005, 0.998, 0.98, 6e-8",
    ),
    ("embedding", "int8-static"): (
        Tolerance(0.08, 0.04, 0.92, 0.8, 1e-4),
        "measured 0.05, 0.027, 0.956, 0.84, 6e-8: one nearest neighbour in six changes",
    ),
    ("embedding", "int8-per-row"): (
        Tolerance(0.04, 0.015, 0.99, 0.95, 1e-4),
        "measured 0.022, 0.005, 0.995, 0.98, 8e-8 over 1,500 sentences",
    ),
    ("embedding", "int8-dynamic"): (
        Tolerance(0.07, 0.035, 0.95, 0.8, inf),
        "measured 0.042, 0.02, 0.976, 0.88; in another batch up to 0.06",
    ),
    ("text-classification", "fp32"): (_FP32, "two correct runs differ by 1e-6"),
    ("text-classification", "fp16"): (_SCORES16, "measured 4e-4, 4e-5, 1.00000, 1.0, 1e-7"),
    ("text-classification", "int8-weight-only"): (
        _SCORES_WEIGHT_ONLY,
        "measured 0.023, 0.003, 0.999, 1.0, 2e-7",
    ),
    ("text-classification", "int8-static"): (
        _SCORES_STATIC,
        "measured 0.16, 0.016, 0.968, 0.996, 1e-7",
    ),
    ("text-classification", "int8-per-row"): (_SCORES_PER_ROW, _ROWS),
    ("text-classification", "int8-dynamic"): (
        _SCORES_DYNAMIC,
        "measured 0.10, 0.011, 0.984, 1.0; in another batch up to 0.08",
    ),
    ("token-classification", "fp32"): (_FP32, "two correct runs differ by 1e-6"),
    ("token-classification", "fp16"): (
        _SCORES16,
        _TAGGERS.format("0.001, below 1e-4, 1.00000, 1.0"),
    ),
    ("token-classification", "int8-weight-only"): (
        _SCORES_WEIGHT_ONLY,
        _TAGGERS.format("0.021, 0.0007, 0.9994, 1.0"),
    ),
    ("token-classification", "int8-static"): (
        _SCORES_STATIC,
        _TAGGERS.format("0.05, 0.002, 0.995, 0.9996"),
    ),
    ("token-classification", "int8-per-row"): (
        _SCORES_PER_ROW,
        _TAGGERS.format("0.017, 0.0005, 0.9994, 1.0"),
    ),
    ("token-classification", "int8-dynamic"): (
        _SCORES_DYNAMIC,
        _TAGGERS.format("0.025, 0.001, 0.999, 1.0"),
    ),
    ("image-classification", "fp32"): (_FP32, "two correct runs differ by 2e-6"),
    ("image-classification", "fp16"): (
        Tolerance(0.02, 4e-3, 0.999, 1.0, 2e-3),
        "measured 0.008, 0.0015, 0.9998, 1.0, 0",
    ),
    ("image-classification", "int8-weight-only"): (
        Tolerance(0.05, 0.02, 0.995, 0.97, 1e-4),
        "a tiny ViT: mean 0.01; in a convolutional net only the last matrix changes: 0.0013",
    ),
    ("image-classification", "int8-static"): (
        Tolerance(0.25, 0.04, 0.8, 0.95, 1e-4),
        "measured 0.12, 0.019, 0.90, 0.98, 0; with the first convolutions in INT8 too, 0.77",
    ),
    ("image-classification", "int8-per-row"): (Tolerance(0.1, 0.03, 0.99, 0.95, 1e-4), _ROWS),
    ("image-classification", "int8-dynamic"): (
        Tolerance(0.05, 0.02, 0.995, 0.97, inf),
        "a tiny ViT: mean 0.0095; EfficientNet 0.002, in another batch up to 0.007",
    ),
    ("tensors", "fp32"): (_FP32, _PROBABILITIES),
    ("tensors", "fp16"): (Tolerance(0.02, 4e-3, 0.9995, 1.0, 2e-3), _PROBABILITIES),
    ("tensors", "int8-weight-only"): (Tolerance(0.05, 0.02, 0.995, 0.97, 1e-4), _PROBABILITIES),
    ("tensors", "int8-static"): (Tolerance(0.3, 0.05, 0.9, 0.95, 1e-4), _PROBABILITIES),
    ("tensors", "int8-per-row"): (Tolerance(0.1, 0.03, 0.99, 0.95, 1e-4), _PROBABILITIES),
    ("tensors", "int8-dynamic"): (Tolerance(0.25, 0.04, 0.93, 0.95, inf), _PROBABILITIES),
    ("tabular-classification", "fp32"): (
        Tolerance(1e-4, 1e-4, 0.99999, 1.0, 1e-4),
        "of the original's spread; thresholds and votes: any rounding may flip a decision",
    ),
    ("tabular-regression", "fp32"): (
        Tolerance(1e-4, 1e-4, 0.99999, 0.0, 1e-4),
        "of the original's spread; scikit-learn sums in FP64, the graph in FP32",
    ),
}


NUMBERS = ("difference", "mean", "cosine", "agreement", "invariance")


def tolerance(task: str, precision: str) -> Tolerance:
    """The limits; ConversionError, naming the valid choices, if there are none for this pair."""
    if (task, precision) in LIMITS:
        limits, _ = LIMITS[task, precision]
        return replace(limits, shares=SHARES[precision][0], layers=LAYERS[precision][0])
    supported = [other for name, other in LIMITS if name == task]
    if not supported:
        tasks = dict.fromkeys(name for name, _ in LIMITS)
        raise ConversionError(
            f"no tolerances for the task {task!r}: choose from {', '.join(tasks)}"
        )
    raise ConversionError(
        f"{task} does not support {precision!r}: choose from {', '.join(supported)}"
    )


def clear_margin(limits: Tolerance) -> float:
    """The lead above which a decision must not change: twice the ``difference`` that could flip it,
    at most ``CLEAR``."""
    return min(CLEAR, 2 * limits.difference)


def grade(precision: str) -> str:
    """What a precision promises about the batch, in words."""
    return graded(inf if precision == "int8-dynamic" else 0.0)


def graded(difference: float) -> str:
    """The same for a measurement: the largest difference between an answer alone and in a batch."""
    # NaN compares false: it promises nothing.
    if difference <= INDEPENDENT:
        return "answers do not depend on the batch"
    return "answers depend on the batch"


def table() -> str:
    """The limits in Markdown: all three tables."""
    names = ("task", "precision", "difference", "mean", "cosine", "agreement", "invariance", "why")
    shares = ("precision", "largest", "lost", "column", "gain", "resolution", "why")
    layers = ("precision", "exact", "lost", "column", "gain", "offset", "why")
    tasks = [*_head(names), *_rows()]
    spread = [*_head(shares), *_by_precision(SHARES)]
    return "\n".join([*tasks, "", *spread, "", *_head(layers), *_by_precision(LAYERS)]) + "\n"


def _head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def _rows() -> Iterator[str]:
    for (task, precision), (limits, why) in LIMITS.items():
        numbers = [getattr(limits, field) for field in NUMBERS]
        cells = ("-" if number == inf else f"{number:g}" for number in numbers)
        yield f"| {task} | {precision} | {' | '.join(cells)} | {why} |"


def _by_precision(limits: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    for precision, (allowed, why) in limits.items():
        cells = ("-" if value == inf else f"{value:g}" for value in astuple(allowed))
        yield f"| {precision} | {' | '.join(cells)} | {why} |"


if __name__ == "__main__":
    sys.stdout.write(table())
