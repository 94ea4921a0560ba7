"""The serving parameters of a pipeline, searched on this machine: the second half of
``tidegate optimize NAME``, and all of it with ``--only config``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.app.paths import Paths
from tidegate.app.progress import Progress

if TYPE_CHECKING:
    from tidegate.app.config_search_report import ConfigSearchReport


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


def tune(options: ConfigSearchOptions, paths: Paths, report: Progress) -> "ConfigSearchReport":
    """Search within the budget, measure the best once more, write ``configs/tuned.pbtxt``.

    Raises ServingError or ConversionError. Ctrl-C keeps the finished trials: the same
    options resume from there.
    """
    from modelspec.declaration import Declaration
    from serving.errors import ServingError
    from serving.repository.model_repository import ModelRepository
    from serving.tuning import tune as search
    from serving.tuning.outcome import commit, write_tuned
    from tidegate.app.config_search_report import ConfigSearchReport
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
    result = search.tune(job, report)
    with deployment(paths, repository, report) as deployed:
        written = write_tuned(deployed, result)
        committed = commit(deployed, result) if options.commit else []
    return ConfigSearchReport(result, written, committed)
