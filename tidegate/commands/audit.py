"""``tidegate audit``: check that nobody has tampered with the audit log."""

import sys
from dataclasses import asdict

import click

from tidegate.app.paths import Paths
from tidegate.commands.exit_code import ExitCode
from tidegate.commands.options import json_option, stack_option
from tidegate.commands.output import print_json


@click.group("audit", short_help="Check that nobody has tampered with the audit log")
def command() -> None:
    """The audit log, .tidegate/audit.log: who asked for what, and what was decided.

    \b
    tidegate audit verify
    """


@command.command()
@json_option
@stack_option
@click.option(
    "--first",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The first line to expect, if you removed older files yourself.",
)
def verify(as_json: bool, first: int) -> None:
    """Find lines that were changed, removed, moved or cut off, missing files, and decisions that
    could not be written. Exits 1 if there are any."""
    from tidegate.app import audit_check

    paths = Paths.current()
    if not paths.state.is_dir():
        raise click.ClickException(
            f"there is no {paths.shown(paths.state)}: tidegate up creates it"
        )
    pepper = paths.pepper.read_bytes() if paths.pepper.exists() else b""
    report = audit_check.verify(paths.state, pepper)
    if gap := audit_check.missing(report, first):
        report.gaps.insert(0, gap)
    if as_json:
        print_json({"intact": not report.faults, "complete": not report.gaps, **asdict(report)})
    else:
        for fault in [*report.faults, *report.gaps]:
            click.secho(fault, fg="red")
        state = f"{len(report.faults)} faults" if report.faults else "intact"
        lines = f"lines {report.first} to {report.last}" if report.last else "no lines yet"
        click.echo(f"{lines}: {state}; last hash {report.hash}")
    sys.exit(ExitCode.FAILED if report.faults or report.gaps else ExitCode.DONE)
