"""``tidegate canary NAME``: send part of the traffic to another version."""

import os
import sys
import traceback
from typing import TYPE_CHECKING

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.exit_code import ExitCode
from tidegate.commands.options import (
    grace_option,
    json_option,
    repository_option,
    servers_option,
)
from tidegate.commands.output import print_json, print_table, progress

if TYPE_CHECKING:
    from tidegate.app.canary_verdict import Verdict
    from tidegate.app.routes_file import Per


@click.command("canary", short_help="Send part of the traffic to another version")
@click.argument("name")
@click.option(
    "--version",
    type=click.IntRange(1),
    help="Default: the newest that is not active; with --verdict, the one that is routed.",
)
@click.option("--weight", type=click.IntRange(0, 100), help="Percent; 0 ends the canary.")
@click.option(
    "--verdict",
    "wants_verdict",
    is_flag=True,
    help="Change nothing; say whether the canary that runs is as good: promote, roll back, or "
    "undecided.",
)
@click.option(
    "--url",
    help="For --verdict, the gateway's operator's listener. Default: that of the stack running "
    "here.",
)
@click.option(
    "--per",
    type=click.Choice(["caller", "request"]),
    help="What --weight is a percentage of. caller (the default): a caller, by key, token or "
    "certificate, always gets the same version, so an application with one key gets all or "
    "nothing. request: each request is assigned on its own. If omitted, a running canary keeps its "
    "setting.",
)
@repository_option
@servers_option
@grace_option
@json_option
def command(
    name: str,
    version: int | None,
    weight: int | None,
    wants_verdict: bool,
    url: str | None,
    per: "Per | None",
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Send part of the callers of NAME, or of its requests, to another of its versions.

    The version is served beside NAME as NAME.v7 and its golden sample is checked; then its weight
    is written to the gateway.toml of each stack that serves the repository. One canary runs at a
    time. `tidegate promote NAME` ends it by moving everyone to it. Without --weight or --verdict:
    which one runs, with its weight.

    --verdict compares the requests that the canary answered with those of the version beside it,
    as the gateway counted them since its start: failures (5xx), latencies, and refusals (4xx, and
    callers that gave up), which can only hold it back. It prints each share as its confidence
    interval. It may be asked at any time and as often as you like, and is wrong with a probability
    of at most 1 %. Requests with another weight, or beside another active version, do not count.
    Exit codes: 0 promote, 1 roll back and nothing else, 2 wrong usage, 3 undecided, also where no
    verdict was possible.

    --json: pipeline, repository, canaries (name, version, percent, per), gone, served_by and
    no_answer_from. With --verdict: canary, weight, verdict, reason, stable_requests,
    canary_requests, more_requests (about how many would decide, or null), left_out (requests with
    another weight, or beside another version) and comparisons.

    \b
    tidegate canary text_embedding
    tidegate canary text_embedding --weight 10
    tidegate canary text_embedding --weight 10 --per request
    tidegate canary text_embedding --verdict
    tidegate canary text_embedding --weight 0
    """
    from serving.errors import ServingError
    from tidegate.app.canaries import CanaryOptions, running_canaries, set_canary
    from tidegate.app.errors import UsageError

    interrupt_on_sigterm()
    if wants_verdict:
        try:
            decided = _verdict(name, url, version, as_json=as_json)
        except UsageError:
            raise
        except Exception as error:  # 1 means roll back: no error may look like that
            if os.environ.get("TIDEGATE_TRACEBACK"):
                traceback.print_exc()
            what = "" if isinstance(error, ServingError) else f"{type(error).__name__}: "
            click.secho(f"tidegate: no verdict: {what}{error}", fg="red", err=True)
            decided = ExitCode.NOTHING
        sys.exit(decided)
    if weight is None:
        if version or per:
            raise click.UsageError("--version and --per need --weight")
        running = running_canaries(name, Paths.current())
        if as_json:
            print_json({"pipeline": name, "canaries": running.canaries})
        else:
            click.echo(running.line)
        return
    options = CanaryOptions(name, weight, version, per)
    with progress(err=as_json) as report:
        change = set_canary(options, Paths.current(), report, grace_s, addresses)
    if as_json:
        print_json(change.as_dict())
        return
    for line in change.lines():
        click.echo(line)


def _verdict(name: str, url: str | None, version: int | None, *, as_json: bool) -> ExitCode:
    from tidegate.app.canary_verdict import (
        arms,
        more_requests,
        probe_of,
        routed_canary,
        uncomparable,
        verdict,
        weight_of,
    )
    from tidegate.app.top import Gateway

    gateway = Gateway.of(Paths.current(), url)
    policy = gateway.policy()
    canary, look = routed_canary(name, policy, version), gateway.look()
    stable, own = arms(name, canary, policy, look)
    result = verdict(stable, own, probe=probe_of(canary, look))
    weight, left_out = weight_of(name, canary, policy), uncomparable(name, canary, policy, look)
    more = more_requests(stable, own)
    if as_json:
        counted = {"weight": weight, "left_out": left_out, "more_requests": more}
        print_json({"canary": canary, **counted, **result.as_dict()})
    else:
        _print_verdict(name, canary, weight, left_out, result, more)
    codes = {"promote": ExitCode.DONE, "roll back": ExitCode.FAILED}
    return codes.get(result.verdict, ExitCode.NOTHING)


_COLOURS = {"promote": "green", "roll back": "red", "no worse": "green", "worse": "red"}


def _print_verdict(
    name: str, canary: str, weight: float, left_out: int, result: "Verdict", more: int | None
) -> None:
    decision = click.style(result.verdict, fg=_COLOURS.get(result.verdict, "yellow"))
    click.echo(f"{canary}: {decision}: {result.reason}")
    click.echo(
        f"  weight {weight:g} %: {result.canary_requests:,} requests to the canary, "
        f"{result.stable_requests:,} to the active version"
    )
    if more:
        click.echo(f"  about {more:,} more requests decide, if they are like these")
    if weight >= 100:
        click.secho(
            f"  with 100 % nothing is left to compare with: tidegate canary {name} --weight 50",
            fg="yellow",
        )
    if left_out:
        click.secho(
            f"  {left_out:,} requests are left out: the weight or the active version was another",
            fg="yellow",
        )
    if not (result.canary_requests and result.stable_requests):
        return
    click.echo("  shares of the requests, as confidence intervals:")
    print_table(
        ("  check", "canary", "active", "margin", "verdict"),
        (
            (
                f"  {comparison.what}",
                "{:.2%} to {:.2%}".format(*comparison.canary),
                "{:.2%} to {:.2%}".format(*comparison.stable),
                f"{comparison.margin:.0%}",
                click.style(comparison.verdict, fg=_COLOURS.get(comparison.verdict, "yellow")),
            )
            for comparison in result.comparisons
        ),
    )
