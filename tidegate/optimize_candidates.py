"""The candidates' half of ``tidegate optimize``: from what was asked to the findings."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelspec.layout import require_model_name
from tidegate.paths import Paths
from tidegate.task_registry import KNOWN, TASKS, RegisteredTask, kind_of, task_of

if TYPE_CHECKING:
    from converters.cache import Say
    from converters.optimize.budget import Budget
    from converters.optimize.findings import Findings
    from tidegate.optimize import OptimizeOptions


def find(
    options: "OptimizeOptions", budget: "Budget", paths: Paths, say: "Say"
) -> "Findings | None":
    """Measure every form; None for a model that has only one. Raises ConversionError, and
    click.UsageError for a name that nothing is known of."""
    from converters.optimize.findings import Findings, this_machine
    from converters.optimize.kept import Kept
    from converters.optimize.measuring import Subject, measure
    from converters.task import ConversionRequest

    try:
        require_model_name(options.name)  # it becomes a folder's, which --fresh removes
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    kind, source = _kind(options, paths), options.source or options.name
    folder = paths.state / "optimize" / options.name
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if _only_fp32(kind):
        return None
    machine = this_machine()
    kept = Kept(folder / "measured", f"{machine['processor']} {machine['cores']}")
    request = ConversionRequest(
        options.name, source, options.samples, said_of_original(options, paths)
    )
    subject = Subject(request, kind.open_task, kind.task, options.precisions, options.prune)
    measured = measure(subject, kept, budget, say)
    return Findings(
        name=options.name,
        task=measured.task,
        rows=measured.rows,
        samples=measured.samples,
        allowed=_allowed(options),
        against=measured.against,
        machine=machine,
    )


def keep_pruned(found: "Findings", folder: Path) -> list[Path]:
    """The pick's graph in ``folder`` if it is pruned: no other command makes it."""
    chosen = found.chosen
    if chosen is None or not chosen.candidate.pruned or chosen.engine is None:
        return []
    return [Path(shutil.copyfile(chosen.engine, folder / f"{chosen.candidate.name}.onnx"))]


def _allowed(options: "OptimizeOptions") -> Any:
    from converters.optimize.pareto import Allowed

    return Allowed(
        batch_dependent=options.allow_batch_dependent,
        accuracy_cost=options.accept_accuracy_cost,
        least_cosine=options.min_cosine,
        least_agreement=options.min_agreement,
    )


def _kind(options: "OptimizeOptions", paths: Paths) -> RegisteredTask:
    """What the model is; a usage error says what is missing."""
    from tidegate.published import published_record

    known = KNOWN.get(options.name)
    if known and options.source in (None, options.name):
        return known
    if options.name in KNOWN:
        raise click.UsageError(f"{options.name} is a known pipeline: it needs no other --against")
    record = published_record(paths.repository, options.name)
    if options.source is None:
        what = f"{options.name} was brought" if record else f"there is no model {options.name!r}"
        names = ", ".join(name for name, kind in KNOWN.items() if kind)
        raise click.UsageError(f"{what}: give its original with --against (known by name: {names})")
    kind = kind_of(
        "", options.task or (record.task if record else "") or task_of(options.source) or ""
    )
    if kind is None:
        raise click.UsageError(
            f"{options.source} does not say its task: give --task ({', '.join(TASKS)})"
        )
    return kind


def said_of_original(options: "OptimizeOptions", paths: Paths) -> Mapping[str, str]:
    """What the original's files do not say: as it was said when it was converted, and now."""
    from tidegate.published import published_record

    record = published_record(paths.repository, options.name)
    return {**(record.options if record else {}), **options.source_options}


def _only_fp32(kind: RegisteredTask) -> bool:
    return bool(kind.precisions() == ("fp32",))
