"""The candidates: what a model could be served as."""

from collections.abc import Sequence
from dataclasses import dataclass

# The names of ONNX Runtime's levels, and their values in a Triton config: optimization.graph.level
# of the native backend and of serving/backends/onnxruntime.
LEVELS = {"disable": 2, "basic": -1, "extended": 1, "all": 0}
# Opt-in: the answers depend on who shares the batch.
BATCH_DEPENDENT = ("int8-dynamic",)
ORIGINAL = "original"


@dataclass(frozen=True, order=True)
class Candidate:
    """A precision, and ONNX Runtime's graph optimisation level. Candidates of the same precision
    share a file and run it differently.

    ``ORIGINAL`` as the precision means the model in its own framework, eagerly: all ratios are
    relative to it.
    """

    precision: str
    level: str = "all"

    @property
    def name(self) -> str:
        level = "" if self.level == "all" else f"@{self.level}"
        return f"{self.precision}{level}"


# Fastest first, as measured on a CPU (docs/precisions.md). FP32 costs nothing but its times: the
# conversion has written and proved it. A budget that ends early has then measured the likeliest
# picks.
PROMISING = ("fp32", "int8-per-row", "int8-static", "int8-weight-only", "int8-dynamic", "fp16")


def candidates(precisions: Sequence[str]) -> list[Candidate]:
    """All candidates for these precisions: each at the level used for serving, FP32 at every other
    level too."""
    ranked = [Candidate(precision) for precision in sorted(precisions, key=promise)]
    if "fp32" in precisions:
        ranked += [Candidate("fp32", level) for level in LEVELS if level != "all"]
    return ranked


def promise(precision: str) -> int:
    """The place of a precision in ``PROMISING``."""
    return PROMISING.index(precision) if precision in PROMISING else len(PROMISING)
