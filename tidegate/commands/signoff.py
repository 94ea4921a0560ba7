"""``tidegate signoff``: a load test that ends in a verdict."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from loadtests.signoff.options import (
    ARRIVALS,
    OBJECTIVES,
    PROFILE_NAMES,
    Options,
    become_generator,
)
from tidegate.app.paths import Paths
from tidegate.commands.exit_code import ExitCode
from tidegate.commands.options import Address, json_option, repository_option
from tidegate.commands.output import print_json


@click.group(
    "signoff",
    short_help="Load a pipeline, and say whether it holds its objectives",
    invoke_without_command=True,
)
@click.option(
    "--pipeline",
    "pipelines",
    multiple=True,
    help="Only this one of the objectives; may be given several times. Default: all of them.",
)
@click.option(
    "--target",
    metavar="URL",
    default="",
    help="Load this gateway, with the key in TIDEGATE_API_KEY or that of `make up`. Default: a "
    "stack of its own, on free ports, over a copy of the repository.",
)
@click.option(
    "--grpc",
    "grpc_address",
    type=Address(),
    default=None,
    help="The target gateway's gRPC port, for objectives with api = 'grpc' or 'grpc-stream'.",
)
@click.option(
    "--slo",
    "objectives",
    type=click.Path(path_type=Path),
    default=OBJECTIVES,
    help="The file of objectives. Default: loadtests/slo.toml.",
)
@click.option(
    "--profile",
    type=click.Choice(PROFILE_NAMES),
    default="quick",
    show_default=True,
    help="smoke: seconds, to see whether the set-up works. quick: about ten minutes for each "
    "pipeline, and its soak. full: half an hour and more.",
)
@click.option(
    "--only-target",
    is_flag=True,
    help="Only the verdict at the target rate: no search for the highest, no overload.",
)
@click.option(
    "--arrivals",
    type=click.Choice(ARRIVALS),
    default=None,
    help="How requests arrive: independent callers, at equal distances, or in bursts. Default: as "
    "the objectives say, else poisson.",
)
@click.option(
    "--burst",
    metavar="'N every T'",
    default="",
    help="Of bursty arrivals: how many requests at once, and how often, as in '20 every 10s'.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    default=None,
    help="Spread the requests over several tenants: a file with a key, a weight and a name a line, "
    "of which only the key must be there.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    default=None,
    help="Replay recorded requests: JSON lines with at_s, pipeline and a text, or a CSV file of "
    "Azure's inference traces, for `chat` or the only --pipeline.",
)
@click.option(
    "--speed",
    type=click.FloatRange(0.01, 1000),
    default=None,
    help="Replay the trace so many times as fast as it was recorded. Default: 1.",
)
@click.option(
    "--kill-replica",
    is_flag=True,
    help="Kill one of two replicas, in a stack of its own, at the target rate. The full profile "
    "does.",
)
@click.option(
    "--allow-kill",
    type=click.IntRange(2),
    metavar="PID",
    default=None,
    help="Kill this replica of the --target: the process id of a tritonserver on this machine.",
)
@click.option(
    "--cross-check",
    is_flag=True,
    help="Also run a closed loop with NVIDIA's perf_analyzer over V2 (`make clients` installs "
    "it), for chat with AIPerf (`make aiperf`), and with this generator: how far they differ.",
)
@click.option(
    "--generators",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Split the requests over this many processes: when one core is not enough.",
)
@click.option(
    "--scale-to",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Measure the highest rate with 1 to this many replicas, and how many a rate needs.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("signoff"),
    show_default=True,
    help="The folder of the report: report.html, report.json, report.md.",
)
@json_option
@repository_option
@click.pass_context
def command(
    context: click.Context,
    pipelines: tuple[str, ...],
    target: str,
    grpc_address: str | None,
    objectives: Path,
    profile: str,
    only_target: bool,
    arrivals: str | None,
    burst: str,
    keys: Path | None,
    trace: Path | None,
    speed: float | None,
    kill_replica: bool,
    allow_kill: int | None,
    cross_check: bool,
    generators: int,
    scale_to: int,
    out: Path,
    as_json: bool,
) -> None:
    """Load pipelines in an open loop, and say whether they hold their objectives: each PASS at 99 %
    confidence, FAIL, or UNDECIDED, with how many more requests would decide it.

    Warms up until latencies are steady, finds the highest rate that holds every objective, holds
    the target rate, overloads at twice what held, and writes a report. Ctrl-C writes a partial one.

    Exit codes: 0 signed; 1 not signed; 2 undecided, or wrong usage; 3 it could not start.

    \b
    tidegate signoff
    tidegate signoff --pipeline text_embedding --target http://127.0.0.1:8080 --only-target
    """
    if context.invoked_subcommand:
        return
    if target and scale_to > 1:
        raise click.UsageError("--scale-to starts stacks of its own: leave out --target")
    if speed and not trace:
        raise click.UsageError("--speed is of a --trace: pass both")
    if trace and (arrivals or scale_to > 1):
        other = "--arrivals" if arrivals else "--scale-to"
        raise click.UsageError(f"a --trace has its own arrivals and rate: leave out {other}")
    if kill_replica and target:
        raise click.UsageError(
            "no replica of a --target is killed unless you name it: pass --allow-kill PID"
        )
    if allow_kill and not target:
        raise click.UsageError("--allow-kill is of a --target: pass --kill-replica instead")
    if keys and not target:
        raise click.UsageError("a stack of its own has one key: --keys is for a --target")
    if burst and not arrivals:
        raise click.UsageError("--burst is of --arrivals bursty: pass both")
    from loadtests.signoff.arrivals import Arrivals, burst_of

    try:
        Arrivals(arrivals or ARRIVALS[0], burst_of(burst) if burst else None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    become_generator(
        Options(
            pipelines,
            target,
            grpc_address or "",
            objectives,
            profile,
            out,
            Paths.current().repository,
            as_json,
            only_target,
            scale_to,
            arrivals or "",
            burst,
            keys,
            trace,
            speed or 1.0,
            kill_replica or (profile == "full" and not (target or only_target or trace)),
            allow_kill or 0,
            cross_check,
            generators,
        )
    )


@command.command("compare", short_help="What moved between two reports")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@json_option
def compare(before: Path, after: Path, as_json: bool) -> None:
    """Say what moved from the report BEFORE to the report AFTER (report.json, or its folder).

    Exit codes: 0 nothing got worse by more than chance; 1 something did: the verdict, a latency by
    more than 5 %, the share of requests that miss an objective, or the highest rate; 2 the two
    cannot be compared.

    \b
    tidegate signoff compare signoff-monday signoff
    """
    from loadtests.signoff.compare import NotComparable, changes, read_report

    try:
        compared = changes(read_report(before), read_report(after))
    except NotComparable as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        print_json([asdict(change) for change in compared])
    else:
        for change in compared:
            click.secho(change.line(), fg="red" if change.is_regression else None)
    sys.exit(ExitCode.FAILED if any(change.is_regression for change in compared) else ExitCode.DONE)
