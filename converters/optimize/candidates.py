"""The forms in which a model could be served."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Names of ONNX Runtime's levels, and how a Triton config writes them: optimization.graph.level of
# the native backend and of serving/backends/onnxruntime.
LEVELS = {"disable": 2, "basic": -1, "extended": 1, "all": 0}
# Opt-in: the answers depend on who shares the batch.
BATCH_DEPENDENT = ("int8-dynamic",)
ORIGINAL = "original"


@dataclass(frozen=True, order=True)
class Candidate:
    """A precision, ONNX Runtime's graph optimisation level, and whether the graph is pruned.

    ``ORIGINAL`` as the precision is the model in its own framework, eagerly: the row that all
    ratios are against.
    """

    precision: str
    level: str = "all"
    pruned: bool = False

    @property
    def name(self) -> str:
        level = "" if self.level == "all" else f"@{self.level}"
        return f"{self.precision}{'-pruned' if self.pruned else ''}{level}"

    @property
    def graph(self) -> tuple[str, bool]:
        """Candidates with the same are one file, run differently."""
        return self.precision, self.pruned


def candidates(precisions: Sequence[str], pruning: bool) -> list[Candidate]:
    """Every form for these precisions: each at the level that serving has, FP32 at every other
    level too, and where there is ``pruning`` each precision pruned first."""
    return list(_all(precisions, pruning))


# On a CPU, fastest first as they were measured (docs/precisions.md); FP32 is what all come from,
# FP16 is slower than that. A budget that ends early has measured what is likeliest to be picked.
PROMISING = ("fp32", "int8-rows", "int8", "w8", "int8-dynamic", "fp16")


def _promise(precision: str) -> int:
    return PROMISING.index(precision) if precision in PROMISING else len(PROMISING)


def _all(precisions: Sequence[str], pruning: bool) -> Iterator[Candidate]:
    for precision in sorted(precisions, key=_promise):
        yield Candidate(precision)
    for level in LEVELS:
        if level != "all" and "fp32" in precisions:
            yield Candidate("fp32", level)
    for precision in precisions if pruning else ():
        yield Candidate(precision, pruned=True)
