"""The whole corpus."""

from collections.abc import Mapping
from pathlib import Path

from tests.serving.lint.corpus import batching, ensembles, folders, graphs, instances, tensors
from tests.serving.lint.corpus.case import Case, File

CASES: list[Case] = [
    case
    for part in (tensors, batching, instances, ensembles, folders, graphs)
    for case in part.CASES
]
SHARED: Mapping[str, Mapping[str, File]] = ensembles.shared()


def write(repository: Path) -> None:
    Case("part", True, SHARED["part"], SHARED).write(repository)
    for case in CASES:
        case.write(repository)
