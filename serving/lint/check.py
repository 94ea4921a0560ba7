"""All checks over a whole repository."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from serving.errors import ServingError
from serving.lint import faces, folders, graph, load, tensors, variants, wiring
from serving.lint.finding import Finding, Severity, info
from serving.lint.reading import Model, Repository, read

_ORDER = list(Severity)


def lint(repository: Path, cores: int = 0, on_demand: Collection[str] = ()) -> list[Finding]:
    """Every finding, errors first; ServingError if there is no such folder.

    ``cores`` is what the serving machine has (0: as many as this one). Models ``on_demand`` are
    built when they are first served, so they may lack their versions.
    """
    if not repository.is_dir():
        raise ServingError(f"there is no folder {repository}")
    models = read(repository)
    found: list[Finding] = []
    for model in models.values():
        findings = list(_of(model, models, cores or os.cpu_count() or 1))
        findings += _variants(model, models, cores or os.cpu_count() or 1)
        unbuilt = model.name in on_demand and not model.versions
        found.extend(_not_built(findings) if unbuilt else findings)
    return sorted(found, key=lambda each: (_ORDER.index(each.severity), each.place, each.code))


def _of(model: Model, models: Repository, cores: int) -> Iterator[Finding]:
    yield from folders.check(model)
    yield from tensors.check(model)
    yield from wiring.check(model, models)
    yield from load.check(model, cores)
    yield from faces.check(model)
    yield from graph.check(model)


def _variants(model: Model, models: Repository, cores: int) -> Iterator[Finding]:
    yield from variants.check(model, models, lambda one, all_: _of(one, all_, cores))


def _not_built(findings: list[Finding]) -> Iterator[Finding]:
    for each in findings:
        if each.code in ("version-missing", "pin-missing", "file-missing"):
            yield info("not-built", each.place, "is not built yet", "tidegate convert, or up, does")
        else:
            yield each
