"""``tidegate optimize NAME``: which candidate of a model to serve here, and with which serving
parameters."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.app.paths import Paths, json_option, print_json, repository_option
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.app.task_registry import KNOWN, NOTHING, TASKS
from tidegate.commands.convert import progress, source_options

if TYPE_CHECKING:
    from converters.optimize.findings import Findings

Progress = Callable[[str], None]
BOTH = ("model", "config")
# The model's share of the budget when both parts run: the config is searched through a server,
# which is slower.
MODEL_SHARE = 0.4
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
CLOSING_S = 10.0  # to stop the trial server and write the results after the last trial
# As long as it takes to start a trial server and measure the default once.
CONFIG_SEARCH_AT_LEAST_S = 40.0
OUT_OF_REACH = 3  # the exit code when no candidate may be picked


class Duration(click.ParamType):
    """``90``, ``90s``, ``10m`` or ``1h``: seconds as a float."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if not match or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a duration: write 90s, 10m or 1h", param, ctx)
        return float(match[1]) * UNITS_S[match[2]]


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
    """The command line's arguments."""

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
    def parts(self) -> tuple[str, ...]:
        return (self.only,) if self.only else BOTH


@click.command("optimize")
@click.argument("name")
@click.option(
    "--against", "source", help="The original of a model of your own, as passed to convert."
)
@click.option(
    "--task", type=click.Choice(list(TASKS)), help="If the repository does not record it."
)
@click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    help="Real inputs for calibration, comparison and load. Default: the task's own set.",
)
@click.option("--preprocess", metavar="PRESET", help="As passed to convert, if it was.")
@click.option("--base", metavar="FOLDER", help="As passed to convert, if it was.")
@click.option("--only", type=click.Choice(BOTH), help="Only this part. Default: both.")
@click.option("--budget", "budget_s", type=Duration(), default="10m", show_default=True)
@click.option(
    "--precisions", default="", help="The precisions to measure, comma-separated. Default: all."
)
@click.option(
    "--prune", type=Shares(), help="Also measure a pruned model: heads=0.25,channels=0.25."
)
@click.option("--allow-batch-dependent", is_flag=True, help="Allow int8-dynamic to be picked.")
@click.option("--accept-accuracy-cost", is_flag=True, help="Allow a pruned model to be picked.")
@click.option(
    "--min-cosine", type=float, default=0.0, help="The lowest cosine that a pick may have."
)
@click.option(
    "--min-agreement", type=float, default=0.0, help="The lowest agreement that a pick may have."
)
@click.option(
    "--p99-ms", type=float, help="Config: the p99 to hold. Default: the current one plus 10 %."
)
@click.option("--connections", type=click.IntRange(1), default=32, show_default=True)
@click.option("--commit", is_flag=True, help="Config: also write the result into the main config.")
@click.option("--publish", is_flag=True, help="Publish the pick, as convert --precision does.")
@click.option("--fresh", is_flag=True, help="Measure everything again; ignore saved results.")
@repository_option
@json_option
def command(as_json: bool, precisions: str, **arguments: Any) -> None:
    """Measure every candidate for NAME on this machine, pick one, then search its config.

    Candidates: the original in eager mode, FP32, FP16, 8-bit, graph optimization levels, and
    pruned ones on request. Results are saved in .tidegate/optimize/NAME/: the same command resumes
    where it was stopped. When both parts run, the model gets 40 % of the budget and the config
    search the rest. Exits 3 if no candidate could be picked.

    \b
    tidegate optimize text_embedding --only model
    tidegate optimize mood --against ./my-model --task text-classification --samples texts.txt
    """
    interrupt_on_sigterm()
    arguments["source_options"] = source_options(arguments)
    options = OptimizeOptions(precisions=tuple(filter(None, precisions.split(","))), **arguments)
    sys.exit(run(options, Paths.current(), _silent if as_json else progress(), as_json))


def run(options: OptimizeOptions, paths: Paths, report: Progress, as_json: bool = False) -> int:
    """Run the selected parts; returns the exit code."""
    documents: dict[str, Any] = {}
    code, remaining_s = 0, options.budget_s
    if "model" in options.parts:
        share = MODEL_SHARE if "config" in options.parts else 1.0
        report(
            f"{options.name}: choosing the model, with {share * options.budget_s:.0f} s of the "
            "budget"
        )
        findings, spent_s = _choose_model(options, share * options.budget_s, paths, report)
        documents["model"] = findings.to_dict() if findings else None
        code, remaining_s = (
            (OUT_OF_REACH if findings and not findings.chosen else 0),
            remaining_s - spent_s,
        )
        if findings and not as_json:
            _show(options, findings, paths)
    if (
        "config" in options.parts
        and remaining_s < CONFIG_SEARCH_AT_LEAST_S
        and "model" in options.parts
    ):
        report(f"{options.name}: no config search: only {remaining_s:.0f} s of the budget are left")
        documents["config"] = None
    elif "config" in options.parts:
        report(f"{options.name}: searching the config, with {remaining_s:.0f} s of the budget")
        searched = _search_config(options, max(1.0, remaining_s - CLOSING_S), paths, report)
        documents["config"] = searched.as_json()
        if not as_json:
            click.echo("\n".join(searched.lines()))
    if as_json:
        print_json(documents)
    return code


def _choose_model(
    options: OptimizeOptions, budget_s: float, paths: Paths, report: Progress
) -> tuple["Findings | None", float]:
    """The findings, saved and plotted, and the seconds they took; None if there is no choice."""
    from converters.optimize.budget import Budget
    from converters.optimize.chart import draw
    from tidegate.app.optimize_candidates import find, keep_pruned

    budget = Budget(budget_s, hard_s=max(1.0, options.budget_s - CLOSING_S))
    findings = find(options, budget, paths, report)
    if findings is None:
        report(f"{options.name}: tabular models exist in fp32 only: nothing to choose")
        return None, budget.spent
    folder = paths.state / "optimize" / options.name
    saved = [findings.save(folder), *draw(findings, folder), *keep_pruned(findings, folder)]
    report("written: " + ", ".join(paths.shown(path) for path in saved))
    if options.publish and findings.chosen:
        _publish(options, findings, paths, report)
    return findings, budget.spent


def _search_config(
    options: OptimizeOptions, budget_s: float, paths: Paths, report: Progress
) -> Any:
    from tidegate.app.config_search import ConfigSearchOptions, tune

    search_options = ConfigSearchOptions(
        name=options.name,
        budget_s=budget_s,
        p99_ms=options.p99_ms,
        connections=options.connections,
        samples=options.samples,
        fresh=options.fresh,
        commit=options.commit,
    )
    return tune(search_options, paths, report)


def _show(options: OptimizeOptions, findings: "Findings", paths: Paths) -> None:
    from converters.optimize.table import lines
    from tidegate.app.optimize_candidates import original_options

    click.echo("\n".join(lines(findings)))
    chosen = findings.chosen
    if chosen and chosen.candidate.pruned:
        folder = paths.shown(paths.state / "optimize" / options.name)
        click.echo(
            f"a pruned graph can only be served as tensors: {folder}/{chosen.candidate.name}.onnx"
        )
    elif chosen and not options.publish:
        extra = original_options(options, paths)
        click.echo(f"to serve it: {convert_line(options, chosen.candidate.precision, extra)}")


def convert_line(
    options: OptimizeOptions, precision: str, source_options: Mapping[str, str] = NOTHING
) -> str:
    """The command that publishes this precision of an original with these ``source_options``."""
    known = options.name in KNOWN
    words = ["tidegate convert", options.name if known else str(options.source)]
    if not known:
        words += ["--name", options.name]
    if options.task and not known:
        words += ["--task", options.task]
    if options.samples:
        words += ["--samples", str(options.samples)]
    for name, value in source_options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return " ".join([*words, "--precision", precision, "--force"])


def _publish(
    options: OptimizeOptions, findings: "Findings", paths: Paths, report: Progress
) -> None:
    """Publish the pick as ``tidegate convert NAME --precision X`` would."""
    from tidegate.app.optimize_candidates import original_options
    from tidegate.commands.convert import ConvertOptions
    from tidegate.commands.convert import run as convert

    chosen = findings.chosen
    if chosen is None or chosen.candidate.pruned:
        report("not published: convert does not publish a pruned graph under its original's task")
        return
    known = options.name in KNOWN
    convert_options = ConvertOptions(
        source_options=original_options(options, paths),
        source=options.name if known else str(options.source),
        task=None if known else options.task,
        name=None if known else options.name,
        samples=options.samples,
        precisions=(chosen.candidate.precision,),
        force=True,
    )
    for line in convert(convert_options, paths, report).lines(paths):
        report(line)


def _silent(text: str) -> None:
    """Report nothing: with --json, stdout holds one document."""
