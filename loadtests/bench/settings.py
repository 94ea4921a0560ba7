"""How long to measure, and where things are."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
RESULTS = ROOT / "bench-results"
ENVIRONMENTS = ROOT / ".venv-bench"


@dataclass(frozen=True)
class Effort:
    """Each contender gets ``rounds`` passes of ``seconds`` each, in turn with the others."""

    rounds: int = 5
    seconds: int = 2
    connections: tuple[int, ...] = (1, 8, 32)  # of the tables that compare several
    perf_analyzer: str | None = None  # the program's path, if it is installed
    repository: Path = REPOSITORY  # the models to serve
