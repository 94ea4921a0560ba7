"""``tidegate compose NAME``: join published pipelines behind one name, and publish that."""

import click

from tidegate.app.compose import COMPOSED, run
from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.options import json_option, repository_option
from tidegate.commands.output import print_json, progress

HELP = f"""Join published pipelines behind one name, prove the result, and publish it.

    NAME is one of {", ".join(COMPOSED)}. text_classification trains the members that are not
    published yet, and pins the versions of their steps that are active now: compose it again to
    take newer ones. customer_service asks published pipelines by name, whatever version is active.

    \b
    tidegate compose text_classification
    """


@click.command("compose", short_help="Join published pipelines behind one name", help=HELP)
@click.argument("name", type=click.Choice(list(COMPOSED)))
@repository_option
@json_option
def command(name: str, as_json: bool) -> None:
    interrupt_on_sigterm()  # so that half-written files are removed
    paths = Paths.current()
    with progress(err=as_json) as report:
        result = run(name, paths, report)
    if as_json:
        print_json(result.as_dict())
        return
    for line in result.lines():
        click.echo(line)
