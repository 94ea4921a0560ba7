"""The variants' half of ``tidegate optimize``: from what was asked to the findings."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelspec.layout import require_model_name
from tidegate.kinds import KNOWN, TASKS, Kind, kind_of, task_of
from tidegate.places import Places

if TYPE_CHECKING:
    from converters.cache import Say
    from converters.variants.budget import Budget
    from converters.variants.findings import Findings
    from tidegate.optimize import OptimizeWish


def find(wish: "OptimizeWish", budget: "Budget", places: Places, say: "Say") -> "Findings | None":
    """Measure every form; None for a model that has only one. Raises ConversionError, and
    click.UsageError for a name that nothing is known of."""
    from converters.task import Order
    from converters.variants.findings import Findings, this_machine
    from converters.variants.kept import Kept
    from converters.variants.measuring import Subject, measure

    try:
        require_model_name(wish.name)  # it becomes a folder's, which --fresh removes
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    kind, source = _kind(wish, places), wish.source or wish.name
    folder = places.state / "optimize" / wish.name
    if wish.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if _only_fp32(kind):
        return None
    machine = this_machine()
    kept = Kept(folder / "measured", f"{machine['processor']} {machine['cores']}")
    order = Order(wish.name, source, wish.samples, said_of_original(wish, places))
    subject = Subject(order, kind.open_task, kind.task, wish.precisions, wish.prune)
    measured = measure(subject, kept, budget, say)
    return Findings(
        name=wish.name,
        task=measured.task,
        rows=measured.rows,
        samples=measured.samples,
        allowed=_allowed(wish),
        against=measured.against,
        machine=machine,
    )


def keep_pruned(found: "Findings", folder: Path) -> list[Path]:
    """The pick's graph in ``folder`` if it is pruned: no other command makes it."""
    chosen = found.chosen
    if chosen is None or not chosen.candidate.pruned or chosen.engine is None:
        return []
    return [Path(shutil.copyfile(chosen.engine, folder / f"{chosen.candidate.name}.onnx"))]


def _allowed(wish: "OptimizeWish") -> Any:
    from converters.variants.pareto import Allowed

    return Allowed(
        batch_dependent=wish.allow_batch_dependent,
        accuracy_cost=wish.accept_accuracy_cost,
        least_cosine=wish.min_cosine,
        least_agreement=wish.min_agreement,
    )


def _kind(wish: "OptimizeWish", places: Places) -> Kind:
    """What the model is; a usage error says what is missing."""
    from tidegate.published import published_record

    known = KNOWN.get(wish.name)
    if known and wish.source in (None, wish.name):
        return known
    if wish.name in KNOWN:
        raise click.UsageError(f"{wish.name} is a known pipeline: it needs no other --against")
    record = published_record(places.repository, wish.name)
    if wish.source is None:
        what = f"{wish.name} was brought" if record else f"there is no model {wish.name!r}"
        names = ", ".join(name for name, kind in KNOWN.items() if kind)
        raise click.UsageError(f"{what}: give its original with --against (known by name: {names})")
    kind = kind_of("", wish.task or (record.task if record else "") or task_of(wish.source) or "")
    if kind is None:
        raise click.UsageError(
            f"{wish.source} does not say its task: give --task ({', '.join(TASKS)})"
        )
    return kind


def said_of_original(wish: "OptimizeWish", places: Places) -> Mapping[str, str]:
    """What the original's files do not say: as it was said when it was converted, and now."""
    from tidegate.published import published_record

    record = published_record(places.repository, wish.name)
    return {**(record.options if record else {}), **wish.options}


def _only_fp32(kind: Kind) -> bool:
    return bool(kind.precisions() == ("fp32",))
