"""``tidegate optimize NAME``: measure the candidates for a model, pick one, tune its config."""

import sys
from datetime import timedelta
from typing import Any

import click

from tidegate.app.convert import source_options
from tidegate.app.optimize import run
from tidegate.app.optimize_options import BOTH, OptimizeOptions
from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.exit_code import ExitCode
from tidegate.commands.options import (
    Duration,
    base_option,
    json_option,
    preprocess_option,
    repository_option,
    samples_option,
    task_option,
)
from tidegate.commands.output import print_json, progress


@click.command(
    "optimize", short_help="Measure a model's candidates here, pick one, tune its config"
)
@click.argument("name")
@click.option(
    "--against", "source", help="The original of a model of your own, as passed to convert."
)
@task_option
@samples_option
@preprocess_option
@base_option
@click.option("--only", type=click.Choice(BOTH), help="Only this part. Default: both.")
@click.option("--budget", type=Duration(), default="10m", show_default=True)
@click.option(
    "--precisions", default="", help="The precisions to measure, comma-separated. Default: all."
)
@click.option("--allow-batch-dependent", is_flag=True, help="Allow int8-dynamic to be picked.")
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
def command(as_json: bool, precisions: str, budget: timedelta, **arguments: Any) -> None:
    """Measure every candidate for NAME on this machine, pick one, then search its config.

    Candidates: the original in eager mode, FP32, FP16, 8-bit, and graph optimization
    levels. Results are saved in .tidegate/optimize/NAME/: the same command resumes
    where it was stopped. When both parts run, the model gets 40 % of the budget and the config
    search the rest. Exits 3 if no candidate could be picked.

    \b
    tidegate optimize text_embedding --only model
    tidegate optimize mood --against ./my-model --task text-classification --samples texts.txt
    """
    interrupt_on_sigterm()
    arguments["source_options"] = source_options(arguments)
    options = OptimizeOptions(
        precisions=tuple(filter(None, precisions.split(","))),
        budget_s=budget.total_seconds(),
        **arguments,
    )
    with progress(err=as_json) as report:
        result = run(options, Paths.current(), report, show=_ignore if as_json else click.echo)
    if as_json:
        print_json(result.documents)
    sys.exit(ExitCode.DONE if result.is_picked else ExitCode.NOTHING)


def _ignore(table: str) -> None:
    """With --json, stdout holds one document."""
