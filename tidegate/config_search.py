"""The serving parameters of a pipeline, searched on this machine: the second half of
``tidegate optimize NAME``. By itself: ``python -m tidegate.config_search NAME --budget 10m``."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.paths import Paths

if TYPE_CHECKING:
    from serving.tuning.tune import Result

Say = Callable[[str], None]
DEFAULT_BUDGET_S = 600.0


@dataclass(frozen=True)
class ConfigSearchOptions:
    """What was asked for: ``p99_ms`` None holds the default config's own p99 (and a tenth);
    ``commit`` writes the serving parameters into the main config too."""

    name: str
    budget_s: float
    p99_ms: float | None = None
    connections: int = 32
    samples: Path | None = None
    fresh: bool = False
    commit: bool = False


@dataclass(frozen=True)
class ConfigSearchReport:
    """``written`` and ``committed`` are paths by the repository, and models."""

    result: "Result"
    written: Sequence[str]
    committed: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """What was measured, and what came of it, in plain JSON types."""
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
        """The report for a person."""
        from tidegate.config_search_report import lines

        return lines(self)


def tune(options: ConfigSearchOptions, paths: Paths, say: Say) -> ConfigSearchReport:
    """Search within the budget, measure the best once more, write ``configs/tuned.pbtxt``.

    Raises ServingError or ConversionError. Ctrl-C keeps the trials that were finished: the same
    options goes on from there.
    """
    from serving.golden import request_fields
    from serving.repository import read_config
    from serving.tuning import tune as searching
    from serving.tuning.outcome import commit, write_tuned
    from tidegate.config_search_samples import bodies
    from tidegate.rollout import deployment

    repository = paths.repository
    searching.require_pipeline(repository, options.name)
    fields = request_fields(read_config(repository, options.name))
    asked = {
        key: value for key, value in asdict(options).items() if key not in ("samples", "commit")
    }
    job = searching.Job(repository, paths.state, bodies=bodies(fields, options.samples), **asked)
    result = searching.tune(job, say)
    with deployment(paths, repository) as where:
        written = write_tuned(where, result)
        committed = commit(where, result) if options.commit else []
    return ConfigSearchReport(result, written, committed)


def main() -> None:
    import click

    from tidegate.convert import clock
    from tidegate.signals import interrupt_on_sigterm

    @click.command("serving_parameters")
    @click.argument("name")
    @click.option("--budget", "budget_s", type=float, default=DEFAULT_BUDGET_S, help="Seconds.")
    @click.option("--p99-ms", type=float)
    @click.option("--connections", type=int, default=32)
    @click.option("--samples", type=click.Path(exists=True, path_type=Path))
    @click.option("--fresh", is_flag=True)
    @click.option("--commit", is_flag=True)
    def command(**options: Any) -> None:
        interrupt_on_sigterm()
        for line in tune(ConfigSearchOptions(**options), Paths.current(), clock()).lines():
            click.echo(line)

    command()


if __name__ == "__main__":
    main()
