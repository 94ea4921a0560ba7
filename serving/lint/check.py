"""All checks over a whole repository."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from serving.errors import ServingError
from serving.lint import (
    backends,
    batching,
    config_profiles,
    endpoint_schemas,
    folders,
    graph,
    instances,
    load,
    newer,
    outside,
    tensors,
    wiring,
)
from serving.lint.finding import Finding, Severity, error, info
from serving.lint.newer import TRITON
from serving.lint.reading import Model, Models, read
from serving.repository.model_repository import ModelRepository

_ORDER = list(Severity)


@dataclass(frozen=True)
class Server:
    """The serving machine: its ``cores``, and its Triton's version."""

    cores: int
    triton: tuple[int, int] = TRITON


def lint(
    repository: ModelRepository,
    cores: int = 0,
    on_demand: Collection[str] = (),
    triton: tuple[int, int] = TRITON,
) -> list[Finding]:
    """All findings, errors first; ServingError if there is no such folder.

    ``cores`` is the serving machine's number of cores (0: as many as this one has), and ``triton``
    its server's version. Models ``on_demand`` are built when they are first served, so their
    versions may be missing.
    """
    if not repository.path.is_dir():
        is_file = repository.path.exists()
        raise ServingError(
            f"{repository} is a file: give the folder that contains the models' folders"
            if is_file
            else f"there is no folder {repository}"
        )
    models = read(repository)
    server = Server(cores or os.cpu_count() or 1, triton)
    by_model: dict[str, list[Finding]] = {}
    for model in models.values():
        findings = list(_of(model, models, server))
        findings += config_profiles.check(model, models, lambda one, all_: _of(one, all_, server))
        is_unbuilt = model.name in on_demand and not model.versions
        by_model[model.name] = list(_not_built(findings)) if is_unbuilt else findings
    everything = list(chain.from_iterable(by_model.values()))
    everything += _refused_steps(models, by_model)
    return sorted(everything, key=_sort_key)


def _sort_key(finding: Finding) -> tuple[int, str, str]:
    return _ORDER.index(finding.severity), finding.location, finding.code


def _of(model: Model, models: Models, server: Server) -> Iterator[Finding]:
    yield from folders.check(model)
    if model.written is not None or model.versions:
        yield from backends.check(model.config, model.resolved, model.folder, model.location)
    yield from newer.check(model, server.triton)
    yield from tensors.check(model)
    yield from batching.check(model)
    yield from instances.check(model)
    yield from outside.check(model)
    yield from wiring.check(model, models)
    yield from load.check(model, models, server.cores)
    yield from endpoint_schemas.check(model)
    yield from graph.check(model)


def _refused_steps(models: Models, by_model: Mapping[str, list[Finding]]) -> Iterator[Finding]:
    """Triton refuses an ensemble with a step that it refuses, and then the ensembles with that
    one."""
    refused = {name for name, findings in by_model.items() if any(map(_is_error, findings))}
    while affected := [m for m in models.values() if m.name not in refused and _steps(m) & refused]:
        for model in affected:
            names = ", ".join(sorted(_steps(model) & refused))
            yield error(
                "step-refused", model.location, f"has steps with errors: {names}", "fix these first"
            )
        refused |= {model.name for model in affected}


def _steps(model: Model) -> set[str]:
    return {step.model_name for step in model.config.ensemble_scheduling.step}


def _is_error(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR


def _not_built(findings: list[Finding]) -> Iterator[Finding]:
    for finding in findings:
        if finding.code in ("version-missing", "pin-missing", "file-missing"):
            yield info(
                "not-built",
                finding.location,
                "is not built yet",
                "run tidegate convert, or tidegate up",
            )
        else:
            yield finding
