"""``tidegate optimize NAME``: which form of a model to serve here, and with which serving
parameters."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.convert import clock, said_of_the_original
from tidegate.paths import Paths, json_option, print_json, repository_option
from tidegate.signals import interrupt_on_sigterm
from tidegate.task_registry import KNOWN, NOTHING, TASKS

if TYPE_CHECKING:
    from converters.optimize.findings import Findings

Say = Callable[[str], None]
BOTH = ("model", "config")
# Of the budget, when both halves are run: serving parameters are searched through a server, which
# is slower.
MODEL_SHARE = 0.4
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
CLOSING_S = 10.0  # what ending the trial server and writing takes after the last trial
# A trial server, and the setting as it is measured once, take as long.
CONFIG_SEARCH_AT_LEAST_S = 40.0
OUT_OF_REACH = 3  # the exit code when nothing may be picked


class Duration(click.ParamType):
    """``90``, ``90s``, ``10m`` or ``1h``: seconds as a float."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if not found or float(found[1]) <= 0:
            self.fail(f"{value!r} is no duration: write 90s, 10m or 1h", param, ctx)
        return float(found[1]) * UNITS_S[found[2]]


class Shares(click.ParamType):
    """``heads=0.25,channels=0.25``."""

    name = "shares"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from converters.errors import ConversionError
        from converters.optimize.pruning import Pruning

        try:
            return value if isinstance(value, Pruning) else Pruning.parse(value)
        except ConversionError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True)
class OptimizeOptions:
    """What was asked for on the command line."""

    name: str
    source: str | None = None
    task: str | None = None
    samples: Path | None = None
    source_options: Mapping[str, str] = field(default_factory=dict)
    only: str | None = None
    budget_s: float = 600.0
    precisions: tuple[str, ...] = ()
    prune: Any = None
    allow_batch_dependent: bool = False
    accept_accuracy_cost: bool = False
    min_cosine: float = 0.0
    min_agreement: float = 0.0
    p99_ms: float | None = None
    connections: int = 32
    commit: bool = False
    publish: bool = False
    fresh: bool = False

    @property
    def halves(self) -> tuple[str, ...]:
        return (self.only,) if self.only else BOTH


@click.command("optimize")
@click.argument("name")
@click.option("--against", "source", help="The original of a model you brought, as convert had it.")
@click.option("--task", type=click.Choice(list(TASKS)), help="If the repository does not say it.")
@click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    help="Real inputs to calibrate, compare and load with. Default: the task's own set.",
)
@click.option("--preprocess", metavar="PRESET", help="As convert had it, where it had it.")
@click.option("--base", metavar="FOLDER", help="As convert had it, where it had it.")
@click.option("--only", type=click.Choice(BOTH), help="One half alone. Default: both.")
@click.option("--budget", "budget_s", type=Duration(), default="10m", show_default=True)
@click.option("--precisions", default="", help="Which to measure, with commas. Default: all.")
@click.option("--prune", type=Shares(), help="Also pruned: heads=0.25,channels=0.25.")
@click.option("--allow-batch-dependent", is_flag=True, help="int8-dynamic may be picked too.")
@click.option("--accept-accuracy-cost", is_flag=True, help="A pruned model may be picked too.")
@click.option("--min-cosine", type=float, default=0.0, help="Pick none whose lowest is below.")
@click.option("--min-agreement", type=float, default=0.0, help="Pick none that agrees less.")
@click.option("--p99-ms", type=float, help="Config: the p99 to hold. Default: today's and a tenth.")
@click.option("--connections", type=click.IntRange(1), default=32, show_default=True)
@click.option("--commit", is_flag=True, help="Config: write them into the main config too.")
@click.option("--publish", is_flag=True, help="Publish the pick, as convert --precision does.")
@click.option("--fresh", is_flag=True, help="Measure all anew, whatever was kept.")
@repository_option
@json_option
def command(as_json: bool, precisions: str, **arguments: Any) -> None:
    """Measure every candidate for NAME on this machine, pick one, then search its config.

    Forms: the original eagerly, FP32, FP16, 8-bit ones, graph levels, and pruned ones if asked
    for. Kept in .tidegate/optimize/NAME/: the same command goes on where it was stopped. With both
    halves the choice of the model gets 40 % of the budget and the serving parameters what is left.
    Exits 3 if nothing could be picked.

    \b
    tidegate optimize text_embedding --only model
    tidegate optimize mood --against ./my-model --task text-classification --samples texts.txt
    """
    interrupt_on_sigterm()
    arguments["source_options"] = said_of_the_original(arguments)
    options = OptimizeOptions(precisions=tuple(filter(None, precisions.split(","))), **arguments)
    sys.exit(run(options, Paths.current(), _silent if as_json else clock(), as_json))


def run(options: OptimizeOptions, paths: Paths, say: Say, as_json: bool = False) -> int:
    """Both halves, or the one that is wished; the exit code."""
    documents: dict[str, Any] = {}
    code, left_s = 0, options.budget_s
    if "model" in options.halves:
        share = MODEL_SHARE if "config" in options.halves else 1.0
        say(
            f"{options.name}: the choice of the model has "
            f"{share * options.budget_s:.0f} s of the budget"
        )
        found, spent_s = _choose_model(options, share * options.budget_s, paths, say)
        documents["model"] = found.to_dict() if found else None
        code, left_s = (OUT_OF_REACH if found and not found.chosen else 0), left_s - spent_s
        if found and not as_json:
            _show(options, found, paths)
    if (
        "config" in options.halves
        and left_s < CONFIG_SEARCH_AT_LEAST_S
        and "model" in options.halves
    ):
        say(f"{options.name}: the config was not searched: {left_s:.0f} s of the budget are left")
        documents["config"] = None
    elif "config" in options.halves:
        say(f"{options.name}: the config search has {left_s:.0f} s of the budget")
        report = _search_config(options, max(1.0, left_s - CLOSING_S), paths, say)
        documents["config"] = report.as_json()
        if not as_json:
            click.echo("\n".join(report.lines()))
    if as_json:
        print_json(documents)
    return code


def _choose_model(
    options: OptimizeOptions, budget_s: float, paths: Paths, say: Say
) -> tuple["Findings | None", float]:
    """The findings, saved and drawn, and the seconds they took; None where there is one form."""
    from converters.optimize.budget import Budget
    from converters.optimize.chart import draw
    from tidegate.optimize_candidates import find, keep_pruned

    budget = Budget(budget_s, hard_s=max(1.0, options.budget_s - CLOSING_S))
    found = find(options, budget, paths, say)
    if found is None:
        say(f"{options.name}: tables and trees have one form, fp32: nothing to choose")
        return None, budget.spent
    folder = paths.state / "optimize" / options.name
    saved = [found.save(folder), *draw(found, folder), *keep_pruned(found, folder)]
    say("written: " + ", ".join(paths.shown(path) for path in saved))
    if options.publish and found.chosen:
        _publish(options, found, paths, say)
    return found, budget.spent


def _search_config(options: OptimizeOptions, budget_s: float, paths: Paths, say: Say) -> Any:
    from tidegate.config_search import ConfigSearchOptions, tune

    asked = ConfigSearchOptions(
        name=options.name,
        budget_s=budget_s,
        p99_ms=options.p99_ms,
        connections=options.connections,
        samples=options.samples,
        fresh=options.fresh,
        commit=options.commit,
    )
    return tune(asked, paths, say)


def _show(options: OptimizeOptions, found: "Findings", paths: Paths) -> None:
    from converters.optimize.table import lines
    from tidegate.optimize_candidates import said_of_original

    click.echo("\n".join(lines(found)))
    chosen = found.chosen
    if chosen and chosen.candidate.pruned:
        folder = paths.shown(paths.state / "optimize" / options.name)
        click.echo(
            f"a pruned graph is served as tensors only: {folder}/{chosen.candidate.name}.onnx"
        )
    elif chosen and not options.publish:
        said = said_of_original(options, paths)
        click.echo(f"to serve it: {convert_line(options, chosen.candidate.precision, said)}")


def convert_line(
    options: OptimizeOptions, precision: str, said: Mapping[str, str] = NOTHING
) -> str:
    """The command that publishes this form of an original of which that was ``said``."""
    known = options.name in KNOWN
    parts = ["tidegate convert", options.name if known else str(options.source)]
    if not known:
        parts += ["--name", options.name]
    if options.task and not known:
        parts += ["--task", options.task]
    if options.samples:
        parts += ["--samples", str(options.samples)]
    for name, value in said.items():
        parts += [f"--{name.replace('_', '-')}", value]
    return " ".join([*parts, "--precision", precision, "--force"])


def _publish(options: OptimizeOptions, found: "Findings", paths: Paths, say: Say) -> None:
    """By the same way as ``tidegate convert NAME --precision X``."""
    from tidegate.convert import ConvertOptions
    from tidegate.convert import run as convert
    from tidegate.optimize_candidates import said_of_original

    chosen = found.chosen
    if chosen is None or chosen.candidate.pruned:
        say("not published: convert publishes no pruned graph under its original's task")
        return
    known = options.name in KNOWN
    ordered = ConvertOptions(
        source_options=said_of_original(options, paths),
        source=options.name if known else str(options.source),
        task=None if known else options.task,
        name=None if known else options.name,
        samples=options.samples,
        precisions=(chosen.candidate.precision,),
        force=True,
    )
    for line in convert(ordered, paths, say).lines(paths):
        say(line)


def _silent(text: str) -> None:
    """JSON goes to stdout alone."""
