"""The serving parameters of a pipeline, searched on this machine: the second half of
``tidegate optimize NAME``, and all of it with ``--only config``."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.app.paths import Paths

if TYPE_CHECKING:
    from serving.tuning.tune import Result

Say = Callable[[str], None]


@dataclass(frozen=True)
class ConfigSearchOptions:
    """``p99_ms`` None holds the default config's own p99 plus 10 %; ``commit`` also writes the
    serving parameters into the main config."""

    name: str
    budget_s: float
    p99_ms: float | None = None
    connections: int = 32
    samples: Path | None = None
    fresh: bool = False
    commit: bool = False


@dataclass(frozen=True)
class ConfigSearchReport:
    """``written`` are files, relative to the repository; ``committed`` are models."""

    result: "Result"
    written: Sequence[str]
    committed: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """The measurements and their outcome, in plain JSON types."""
        from serving.tuning.outcome import measurement

        result, winner = self.result, self.result.winner
        return {
            "name": result.name,
            "context": dict(result.context),
            "seconds": result.seconds,
            "is_complete": result.is_complete,
            "notes": list(result.notes),
            "trials": [trial.as_dict() for trial in result.trials],
            "moves": [
                {
                    "serving_parameter": move.serving_parameter,
                    "from": move.before.as_dict(),
                    "to": move.after.as_dict(),
                    "ratio_before": move.ratio_before,
                    "ratio_after": move.ratio_after,
                }
                for move in result.search.moves
            ],
            "finals": [trial.as_dict() for trial in result.finals],
            "control": result.control.as_dict() if result.control else None,
            "measurement": measurement(result, winner) if winner else None,
            "written": list(self.written),
            "committed": list(self.committed),
        }

    def lines(self) -> list[str]:
        """The report as lines of text."""
        from tidegate.app.config_search_report import lines

        return lines(self)


def tune(options: ConfigSearchOptions, paths: Paths, say: Say) -> ConfigSearchReport:
    """Search within the budget, measure the best once more, write ``configs/tuned.pbtxt``.

    Raises ServingError or ConversionError. Ctrl-C keeps the finished trials: the same
    options resume from there.
    """
    from modelspec.declaration import Declaration
    from serving.errors import ServingError
    from serving.repository.model_repository import ModelRepository
    from serving.tuning import tune as search
    from serving.tuning.outcome import commit, write_tuned
    from tidegate.app.config_search_samples import bodies
    from tidegate.app.rollout import deployment

    repository = ModelRepository(paths.repository)
    search.require_pipeline(repository, options.name)
    declaration = Declaration.of(repository.config(options.name))
    if declaration.endpoint is None:
        raise ServingError(str(declaration.error or f"{options.name} has no endpoint schema"))
    fields = declaration.endpoint.fields
    job_options = {
        key: value for key, value in asdict(options).items() if key not in ("samples", "commit")
    }
    job = search.Job(repository, paths.state, bodies=bodies(fields, options.samples), **job_options)
    result = search.tune(job, say)
    with deployment(paths, repository.path, say) as target:
        written = write_tuned(target, result)
        committed = commit(target, result) if options.commit else []
    return ConfigSearchReport(result, written, committed)
