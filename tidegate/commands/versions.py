"""``tidegate versions NAME``: the published versions, the canary, and who serves which."""

import click

from tidegate.app.paths import Paths
from tidegate.commands.options import json_option, repository_option, servers_option
from tidegate.commands.output import print_json


@click.command("versions", short_help="List a pipeline's versions, and who serves which")
@click.argument("name")
@json_option
@repository_option
@servers_option
def command(name: str, as_json: bool, addresses: tuple[str, ...]) -> None:
    """List the published versions of the pipeline NAME; * marks the active one on disk.

    Below them: the canary and its share, and the version that each running server serves.

    \b
    tidegate versions text_embedding
    """
    from tidegate.app.versions import versions_report

    report = versions_report(Paths.current(), name, addresses)
    if as_json:
        print_json(report.as_list())
        return
    for line in report.lines():
        click.echo(line)
