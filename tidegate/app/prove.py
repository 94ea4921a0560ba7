"""Proves a published pipeline against its original, again and at any time."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.app.errors import UsageError
from tidegate.app.paths import Paths
from tidegate.app.task_registry import registered_task

if TYPE_CHECKING:
    from converters.proof.checks import Proof

SAME_ENGINE = "the graph is the one that was proved when it was published"


@dataclass(frozen=True)
class ProveOptions:
    """The command line's arguments."""

    name: str
    source: str
    task: str | None = None
    precision: str | None = None
    samples: Path | None = None
    base: str | None = None


def prove(options: ProveOptions, paths: Paths, report: Callable[[str], None]) -> list["Proof"]:
    """The proofs of the graph, of the programs beside it, and through Triton; raises
    ConversionError or ServingError."""
    from converters.conversion import ask_original, prove_graph, put_graph, reference_in
    from converters.task import ConversionRequest
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.engines import prove_programs, proved_profiles, same_file
    from tidegate.app.published import copy_pipeline, engine_file, published_record
    from tidegate.app.scratch import proved_through_triton

    repository, name = ModelRepository(paths.repository), options.name
    record = published_record(repository, name)
    engine = engine_file(repository, name)
    registered = registered_task(name, options.task or (record.task if record else ""))
    if registered is None:
        raise UsageError(f"the repository does not record the task of {name}: pass --task")
    # The source options of the conversion still apply.
    source_options = {**(record.options if record else {})}
    if options.base:
        source_options["base"] = options.base
    task = registered.open_task(
        ConversionRequest(name, options.source, options.samples, source_options)
    )
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as work:
        reference_folder, copy = Path(work) / "answers", Path(work) / "repository"
        reference_folder.mkdir()
        ask_original(task, reference_folder, report)
        put_graph(task, reference_folder, report)
        precision = options.precision or (record.precision if record else task.offered()[0])
        reference = reference_in(reference_folder, name, task, precision)
        report(f"{name}: proving the engine in the repository")
        graph = prove_graph(task, engine, reference)
        if record:
            checks = (*graph.checks, same_file(SAME_ENGINE, record.engine_sha256, engine))
            graph = replace(graph, checks=checks)
        recorded = record.programs_sha256 if record else {}
        programs = prove_programs(task, engine.parent, reference, recorded)
        copy_pipeline(repository, name, copy)
        report(f"{name}: proving the pipeline through a scratch Triton")
        profiles = proved_profiles(repository, name, report)
        served = [
            proved_through_triton(ModelRepository(copy), paths.state, task, reference, profile)
            for profile in profiles
        ]
        return [graph, *programs, *served]
