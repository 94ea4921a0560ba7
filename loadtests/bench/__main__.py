"""``python -m loadtests.bench``: measure, print the tables, save them, check the floors."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loadtests.bench import cases_engine, cases_gateway, cases_peers, cases_perf_analyzer
from loadtests.bench.errors import BenchError
from loadtests.bench.machine import describe
from loadtests.bench.report import Section, markdown, missed, save
from loadtests.bench.settings import REPOSITORY, RESULTS, ROOT, Effort
from loadtests.bench.stack import BenchStack, running
from loadtests.bench.wrk import require_wrk
from loadtests.texts import CorpusMissing

Case = Callable[[BenchStack, Effort], Section]
CASES: dict[str, tuple[Case, ...]] = {
    "ours": (
        cases_gateway.identity,
        cases_gateway.task_route,
        cases_engine.text_embedding,
        cases_engine.backend_overhead,
        cases_perf_analyzer.perf_analyzer,
    ),
    "peers": (cases_peers.peers,),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", type=click.Choice(list(CASES)), default="ours")
@click.option(
    "--rounds", default=Effort.rounds, show_default=True, help="Passes of each contender."
)
@click.option("--seconds", default=Effort.seconds, show_default=True, help="Length of each pass.")
@click.option("--only", help="One of the tables: identity, task_route, text_embedding, ...")
@click.option(
    "--perf-analyzer",
    type=click.Path(exists=True, dir_okay=False),
    default=lambda: shutil.which("perf_analyzer"),
    help="Triton's own load generator.  [default: the one on PATH, if any]",
)
@click.option("--no-floors", is_flag=True, help="Exit 0 even if a floor was missed.")
@click.option(
    "--repository",
    default=REPOSITORY,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The models to serve.",
)
def command(what: str, only: str | None, no_floors: bool, repository: Path, **effort: Any) -> None:
    """Measure our own stack (``ours``), or compare it with its peers (``peers``).

    Exit codes: 0 every floor held; 1 one was missed; 2 the measurement failed.
    """
    try:
        cases = _chosen(CASES[what], only)
        machine = describe(ROOT)
        sections = _measure(cases, repository, Effort(**effort))
    except (BenchError, CorpusMissing) as error:
        click.secho(f"bench: {error}", fg="red", err=True)
        sys.exit(2)
    click.echo(markdown(machine, sections))
    click.echo(f"saved in {save(RESULTS, what, machine, sections)}")
    if missed(sections) and not no_floors:
        sys.exit(1)


def _chosen(cases: tuple[Case, ...], only: str | None) -> tuple[Case, ...]:
    chosen = tuple(case for case in cases if only in (None, case.__name__))
    if not chosen:
        known = ", ".join(case.__name__ for case in cases)
        raise BenchError(f"there is no table {only!r}: choose from {known}")
    return chosen


def _measure(cases: tuple[Case, ...], repository: Path, effort: Effort) -> list[Section]:
    require_wrk()
    click.echo("starting the stack ...", err=True)
    with running(repository) as stack:
        sections = []
        for case in cases:
            click.echo(f"measuring {case.__name__} ...", err=True)
            sections.append(case(stack, effort))
    return sections


if __name__ == "__main__":
    command(prog_name="python -m loadtests.bench")
