"""How a candidate's answers compare with the original's: the proof's own checks, and the task's
metric over many real samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converters.proof.attempt import attempted
from converters.proof.checks import Check
from converters.proof.closeness import Closeness
from converters.proof.reference import Reference
from converters.proof.tolerance import INDEPENDENT, Tolerance, graded
from converters.task import Task

# Prefixes of the checks that measure whether an answer depends on its batch or its padding.
INVARIANCE = ("batch", "padding")


@dataclass(frozen=True)
class Accuracy:
    """``failed`` are the lines of the checks outside the tolerance of the precision; ``grade`` and
    ``invariant`` describe the dependence on the batch, as measured rather than promised. Without
    its proof (``proved``) a candidate has only the closeness of a few samples."""

    closeness: Closeness
    samples: int
    failed: tuple[str, ...]
    invariant: bool
    grade: str
    proved: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Accuracy":
        """What ``to_dict`` wrote."""
        closeness = Closeness(**fields["closeness"])
        return cls(**{**fields, "closeness": closeness, "failed": tuple(fields["failed"])})


def screen(task: Task, engine: Path, few: Reference) -> Accuracy:
    """Measure the task's metric on ``few`` samples: enough to show in a table, not to be picked."""
    closeness = task.closeness(engine, few)
    return Accuracy(closeness, _rows(few), (), invariant=False, grade="not proved", proved=False)


def compare(
    task: Task,
    engine: Path,
    precision: str,
    reference: Reference,
    many: Reference,
    proved: Sequence[Check] = (),
) -> Accuracy:
    """Prove the graph on ``reference``, and measure the task's metric on ``many``. ``proved`` are
    the checks of a graph that has its proof already."""
    strict = replace(reference, tolerance=measured_tolerance(task, precision))
    checks = list(proved) or attempted("the graph", lambda: task.prove_graph(engine, strict))
    about_batch = [check for check in checks if check.name.startswith(INVARIANCE)]
    others = [check for check in checks if not check.name.startswith(INVARIANCE)]
    invariant = bool(about_batch) and all(check.passed for check in about_batch)
    return Accuracy(
        closeness=task.closeness(engine, many),
        samples=_rows(many),
        failed=tuple(_failed(others)),
        invariant=invariant,
        grade=graded(0.0 if invariant else float("inf")),
    )


def measured_tolerance(task: Task, precision: str) -> Tolerance:
    """The tolerance of the precision; if it promises nothing about the batch, its invariance is
    measured against the limit that counts as independent."""
    limits = task.tolerance(precision)
    return replace(limits, invariance=min(limits.invariance, INDEPENDENT))


def _failed(checks: list[Check]) -> Iterator[str]:
    return (check.line().removeprefix("FAIL ") for check in checks if not check.passed)


def _rows(reference: Reference) -> int:
    """The number of samples that the original answered: the length of its longest array."""
    names = [name for name in ("texts", "names") if name in reference.outputs]
    if names:
        return len(reference.outputs[names[0]])
    return max((len(array) for array in reference.outputs.values() if array.ndim), default=0)
