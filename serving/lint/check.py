"""All checks over a whole repository."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
from serving.lint.reading import Model, Repository, read

_ORDER = list(Severity)


@dataclass(frozen=True)
class Server:
    """The serving machine's ``cores``, and its Triton's version."""

    cores: int
    triton: tuple[int, int] = TRITON


def lint(
    repository: Path,
    cores: int = 0,
    on_demand: Collection[str] = (),
    triton: tuple[int, int] = TRITON,
) -> list[Finding]:
    """Every finding, errors first; ServingError if there is no such folder.

    ``cores`` is what the serving machine has (0: as many as this one), and ``triton`` the version
    of its server. Models ``on_demand`` are built when they are first served, so they may lack
    their versions.
    """
    if not repository.is_dir():
        is_file = repository.exists()
        raise ServingError(
            f"{repository} is a file: name the folder that holds the models' folders"
            if is_file
            else f"there is no folder {repository}"
        )
    models = read(repository)
    server = Server(cores or os.cpu_count() or 1, triton)
    found: dict[str, list[Finding]] = {}
    for model in models.values():
        findings = list(_of(model, models, server))
        findings += config_profiles.check(model, models, lambda one, all_: _of(one, all_, server))
        unbuilt = model.name in on_demand and not model.versions
        found[model.name] = list(_not_built(findings)) if unbuilt else findings
    said = [each for findings in found.values() for each in findings]
    said += _refused_steps(models, found)
    return sorted(said, key=lambda each: (_ORDER.index(each.severity), each.place, each.code))


def _of(model: Model, models: Repository, server: Server) -> Iterator[Finding]:
    yield from folders.check(model)
    if model.written is not None or model.versions:
        yield from backends.check(model.config, model.settled, model.folder, model.place)
    yield from newer.check(model, server.triton)
    yield from tensors.check(model)
    yield from batching.check(model)
    yield from instances.check(model)
    yield from outside.check(model)
    yield from wiring.check(model, models)
    yield from load.check(model, models, server.cores)
    yield from endpoint_schemas.check(model)
    yield from graph.check(model)


def _refused_steps(models: Repository, found: Mapping[str, list[Finding]]) -> Iterator[Finding]:
    """Triton refuses an ensemble with a step that it refuses; so does one ensemble more."""
    refused = {name for name, findings in found.items() if any(map(_is_error, findings))}
    while waiting := [m for m in models.values() if m.name not in refused and _steps(m) & refused]:
        for model in waiting:
            names = ", ".join(sorted(_steps(model) & refused))
            yield error(
                "step-refused", model.place, f"has steps with errors: {names}", "mend these first"
            )
        refused |= {model.name for model in waiting}


def _steps(model: Model) -> set[str]:
    return {step.model_name for step in model.config.ensemble_scheduling.step}


def _is_error(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR


def _not_built(findings: list[Finding]) -> Iterator[Finding]:
    for each in findings:
        if each.code in ("version-missing", "pin-missing", "file-missing"):
            yield info("not-built", each.place, "is not built yet", "tidegate convert, or up, does")
        else:
            yield each
