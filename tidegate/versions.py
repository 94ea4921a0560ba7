"""``tidegate versions NAME``: what can be rolled back to."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tidegate.places import Places

if TYPE_CHECKING:
    from serving.versions import Version


@click.command("versions")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the manifests as JSON.")
def command(name: str, as_json: bool) -> None:
    """List the published versions of the pipeline NAME; * marks the one that serves.

    \b
    tidegate versions text_embedding
    """
    from serving.versions import versions
    from tidegate.configs import tuned_line

    found = versions(Places.current().repository, name)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False))
        return
    for each in found:
        click.echo(_line(each))
    if tuned := tuned_line(Places.current().repository, name):
        click.echo(f"  tuned: {tuned}")


def _line(each: "Version") -> str:
    from serving.manifest import summary

    members = " ".join(f"{model}/{version}" for model, version in each.members.items())
    mark = "*" if each.is_active else " "
    if each.manifest is None:
        return f"{mark} {each.number}  put there by hand, no manifest  {members}"
    return f"{mark} {each.number}  {each.manifest.made_at}  {members}  {summary(each.manifest)}"
