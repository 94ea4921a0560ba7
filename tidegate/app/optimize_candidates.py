"""The model part of ``tidegate optimize``: from the options to the findings."""

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelspec.names import require_model_name
from tidegate.app.errors import UsageError
from tidegate.app.paths import Paths
from tidegate.app.task_registry import KNOWN, TASKS, RegisteredTask, registered_task, task_of

if TYPE_CHECKING:
    from converters.cache import Progress
    from converters.optimize.budget import Budget
    from converters.optimize.findings import Findings
    from tidegate.app.optimize_options import OptimizeOptions

OPENER = "serving.backends.onnxruntime.ort_cpu:open_on_cpu"


def find(
    options: "OptimizeOptions", budget: "Budget", paths: Paths, report: "Progress"
) -> "Findings | None":
    """Measure every candidate; None for a model that has only one. Raises ConversionError, and
    UsageError for an unknown name."""
    from converters.optimize.findings import Findings, this_machine
    from converters.optimize.measurement_cache import MeasurementCache
    from converters.optimize.measuring import Subject, measure
    from converters.task import ConversionRequest

    try:
        require_model_name(options.name)  # it names a folder, which --fresh removes
    except ValueError as error:
        raise UsageError(str(error)) from error
    registered, source = _registered_task(options, paths), options.source or options.name
    folder = paths.state / "optimize" / options.name
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if _only_fp32(registered):
        return None
    machine = this_machine()
    cache = MeasurementCache(folder / "measured", f"{machine['processor']} {machine['cores']}")
    request = ConversionRequest(
        options.name, source, options.samples, original_options(options, paths)
    )
    subject = Subject(
        request,
        registered.open_task,
        registered.class_name,
        OPENER,
        options.precisions,
        _allowed(options),
    )
    measured = measure(subject, cache, budget, report)
    return Findings(
        name=options.name,
        task=measured.task,
        rows=measured.rows,
        samples=measured.samples,
        allowed=subject.allowed,
        against=measured.against,
        machine=machine,
    )


def _allowed(options: "OptimizeOptions") -> Any:
    from converters.optimize.pareto import Allowed

    return Allowed(
        batch_dependent=options.allow_batch_dependent,
        least_cosine=options.min_cosine,
        least_agreement=options.min_agreement,
    )


def _registered_task(options: "OptimizeOptions", paths: Paths) -> RegisteredTask:
    """The model's task; a usage error says what is missing."""
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.published import published_record

    known = KNOWN.get(options.name)
    if known and options.source in (None, options.name):
        return known
    if options.name in KNOWN:
        raise UsageError(f"{options.name} is a known pipeline: leave out --against")
    record = published_record(ModelRepository(paths.repository), options.name)
    if options.source is None:
        problem = (
            f"{options.name} is a model of your own"
            if record
            else f"there is no model {options.name!r}"
        )
        names = ", ".join(name for name, task in KNOWN.items() if task)
        raise UsageError(f"{problem}: give its original with --against (known by name: {names})")
    registered = registered_task(
        "", options.task or (record.task if record else "") or task_of(options.source) or ""
    )
    if registered is None:
        raise UsageError(
            f"{options.source} does not say what the model does: pass --task ({', '.join(TASKS)})"
        )
    return registered


def original_options(options: "OptimizeOptions", paths: Paths) -> Mapping[str, str]:
    """The original's source options: those it was converted with, overridden by those passed
    now."""
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.published import published_record

    record = published_record(ModelRepository(paths.repository), options.name)
    return {**(record.options if record else {}), **options.source_options}


def _only_fp32(registered: RegisteredTask) -> bool:
    return bool(registered.precisions() == ("fp32",))
