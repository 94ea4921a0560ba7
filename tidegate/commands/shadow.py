"""``tidegate shadow NAME``: send part of the requests once more to another version, and compare."""

import sys

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
from tidegate.commands.output import print_json, progress


@click.command("shadow", short_help="Compare another version on copies of the requests")
@click.argument("name")
@click.option(
    "--percent",
    type=click.IntRange(0, 100),
    help="Percent of the requests; 0 ends the shadow. Without it: the report.",
)
@click.option(
    "--version",
    type=click.IntRange(1),
    help="Default: the canary that runs, else the newest that is not active.",
)
@click.option("--to", default="", metavar="PIPELINE", help="Another pipeline instead of a version.")
@click.option(
    "--url",
    help="For the report, the gateway's operator's listener. Default: that of the stack running "
    "here.",
)
@repository_option
@servers_option
@grace_option
@json_option
def command(
    name: str,
    percent: int | None,
    version: int | None,
    to: str,
    url: str | None,
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Send part of the requests of NAME once more, to another of its versions, and compare.

    The version is served beside NAME as NAME.v7, as a canary is, but no caller ever gets its
    responses: a request is sent to it when its caller has the response of NAME. At most four are
    under way at a time in each worker of the gateway; what comes beyond that, or while there is a
    queue, is dropped. The two responses are compared within the tolerances of the proofs.

    Without --percent: the report, as the gateway counted since its start. Exit codes: 0 at least
    100 were compared and all agree, 1 some differ or failed, 2 wrong usage, 3 fewer were compared.

    --json: pipeline, repository, shadow, percent, gone, served_by and no_answer_from. Of the
    report: pipeline, shadow, percent, compared, agrees, differs, failed, dropped, verdict and
    percentiles in ms (primary_p50_ms, primary_p99_ms, shadow_p50_ms, shadow_p99_ms).

    \b
    tidegate shadow text_embedding --percent 10
    tidegate shadow text_embedding
    tidegate shadow text_embedding --percent 0
    """
    from tidegate.app.shadows import ShadowOptions, set_shadow

    interrupt_on_sigterm()
    if percent is None:
        if version or to:
            raise click.UsageError("--version and --to need --percent")
        sys.exit(_report(name, url, as_json=as_json))
    if version and to:
        raise click.UsageError("give --version or --to, not both")
    options = ShadowOptions(name, percent, version, to)
    with progress(err=as_json) as report:
        change = set_shadow(options, Paths.current(), report, grace_s, addresses)
    if as_json:
        print_json(change.as_dict())
        return
    for line in change.lines():
        click.echo(line)


def _report(name: str, url: str | None, *, as_json: bool) -> ExitCode:
    from serving.errors import ServingError
    from tidegate.app.shadows import report_of
    from tidegate.app.top import Gateway

    try:
        gateway = Gateway.of(Paths.current(), url)
        report = report_of(name, gateway.policy(), gateway.look())
    except ServingError as error:  # 1 means that some differ
        click.secho(f"tidegate: no report: {error}", fg="red", err=True)
        return ExitCode.NOTHING
    if as_json:
        print_json(report.as_dict())
    else:
        for line in report.lines():
            click.echo(line)
    codes = {"agrees": ExitCode.DONE, "differs": ExitCode.FAILED}
    return codes.get(report.verdict, ExitCode.NOTHING)
