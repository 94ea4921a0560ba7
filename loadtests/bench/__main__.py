"""``python -m loadtests.bench``: measure, print the tables, save them, check the floors."""

import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from loadtests.bench import (
    benchmarks_added,
    benchmarks_chat,
    benchmarks_engine,
    benchmarks_gateway,
    benchmarks_growth,
    benchmarks_large,
    benchmarks_litellm,
    benchmarks_peers,
    benchmarks_perf_analyzer,
)
from loadtests.bench.errors import BenchError
from loadtests.bench.machine import describe
from loadtests.bench.report import Section, Verdict, as_json, floors_with, markdown, save
from loadtests.bench.settings import REPOSITORY, RESULTS, ROOT, Effort
from loadtests.bench.stack import IMAGES, MODELS, BenchStack, running
from loadtests.bench.wrk import require_wrk
from loadtests.own_stack.errors import NotStarted
from loadtests.texts import CorpusMissing

Benchmark = Callable[[BenchStack, Effort], Section]
C = TypeVar("C", bound=Callable[..., Section])
BENCHMARKS: dict[str, tuple[Benchmark, ...]] = {
    "ours": (
        benchmarks_gateway.identity,
        benchmarks_gateway.task_route,
        benchmarks_engine.text_embedding,
        benchmarks_engine.backend_overhead,
        benchmarks_added.added,
        benchmarks_perf_analyzer.perf_analyzer,
    ),
    "large": (benchmarks_large.many_rows, benchmarks_large.large_bodies),
    "peers": (benchmarks_peers.same_model,),
    "optimized": (benchmarks_peers.optimized,),
}
ALONE: dict[str, tuple[Callable[[Effort], Section], ...]] = {
    "growth": (
        benchmarks_growth.growth,
        benchmarks_growth.workers,
        benchmarks_growth.redis,
        benchmarks_growth.requests,
    ),
    "litellm": (benchmarks_litellm.litellm,),
    "chat": (benchmarks_chat.events, benchmarks_chat.streams, benchmarks_chat.beside_llama_cpp),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", type=click.Choice([*BENCHMARKS, *ALONE]), default="ours")
@click.option(
    "--rounds", default=Effort.rounds, show_default=True, help="Passes of each contender."
)
@click.option("--seconds", default=Effort.seconds, show_default=True, help="Length of each pass.")
@click.option(
    "--connections",
    default=",".join(map(str, Effort.connections)),
    show_default=True,
    callback=lambda context, parameter, value: tuple(map(int, value.split(","))),
    help="Of the tables that compare several.",
)
@click.option(
    "--budget", default="10m", show_default=True, help="Of `tidegate optimize`, for ``optimized``."
)
@click.option("--only", help="One of the tables: identity, task_route, text_embedding, ...")
@click.option(
    "--perf-analyzer",
    type=click.Path(exists=True, dir_okay=False),
    default=lambda: shutil.which("perf_analyzer"),
    help="Triton's own load generator.  [default: the one on PATH, if any]",
)
@click.option("--no-floors", is_flag=True, help="Exit 0 even if a floor was missed.")
@click.option("--json", "as_document", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--repository",
    default=REPOSITORY,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The models to serve.",
)
def command(
    what: str, only: str | None, no_floors: bool, as_document: bool, budget: str, **effort: Any
) -> None:
    """Measure our own stack (``ours``), or its large requests (``large``), or compare it with its
    peers (``peers``), after ``tidegate optimize`` too (``optimized``), or gateways alone as their
    work grows (``growth``) or beside LiteLLM's proxy (``litellm``), or the streams of a language
    model (``chat``).

    Exit codes: 0 every floor held; 1 one was missed; 2 the measurement failed; 3 none was missed,
    but the noise was too large to judge some (``--rounds`` makes it smaller).
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # its servers end with it
    try:
        machine, measured = describe(ROOT), Effort(**effort)
        if what in ALONE:
            if what != "chat":  # whose streams we read ourselves
                require_wrk()
            sections = []
            for benchmark in _chosen(ALONE[what], only):
                click.echo(f"measuring {benchmark.__name__} ...", err=True)
                sections.append(benchmark(measured))
        else:
            budget = budget if what == "optimized" else ""
            models = (*MODELS, IMAGES) if what == "large" else MODELS
            sections = _measure(_chosen(BENCHMARKS[what], only), measured, models, budget)
    except (BenchError, NotStarted, CorpusMissing) as error:
        click.secho(f"bench: {error}", fg="red", err=True)
        sys.exit(2)
    click.echo(as_json(machine, sections) if as_document else markdown(machine, sections))
    click.echo(f"saved in {save(RESULTS, what, machine, sections)}", err=as_document)
    if no_floors:
        return
    if floors_with(Verdict.MISSED, sections):
        sys.exit(1)
    if floors_with(Verdict.UNCLEAR, sections):
        sys.exit(3)


def _chosen(benchmarks: tuple[C, ...], only: str | None) -> tuple[C, ...]:
    chosen = tuple(benchmark for benchmark in benchmarks if only in (None, benchmark.__name__))
    if not chosen:
        known = ", ".join(benchmark.__name__ for benchmark in benchmarks)
        raise BenchError(f"there is no table {only!r}: choose from {known}")
    return chosen


def _measure(
    benchmarks: tuple[Benchmark, ...], effort: Effort, models: Sequence[str], budget: str
) -> list[Section]:
    require_wrk()
    click.echo("starting the stack ...", err=True)
    with running(effort.repository, models, budget) as stack:
        sections = []
        for benchmark in benchmarks:
            click.echo(f"measuring {benchmark.__name__} ...", err=True)
            sections.append(benchmark(stack, effort))
    return sections


if __name__ == "__main__":
    command(prog_name="python -m loadtests.bench")
