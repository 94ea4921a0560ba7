"""``tidegate demo``: real sentences and a real photo through the running stack."""

from dataclasses import asdict

import click

from tidegate.app.paths import Paths
from tidegate.commands.options import Address, json_option, stack_option
from tidegate.commands.output import print_json


@click.command("demo", short_help="Send real sentences and a photo through the running stack")
@json_option
@stack_option
@click.option(
    "--url",
    envvar="TIDEGATE_URL",
    show_envvar=True,
    help="The gateway. Default: that of the stack running here, else http://127.0.0.1:8080.",
)
@click.option(
    "--triton",
    type=Address(),
    envvar="TIDEGATE_TRITON_GRPC_ADDRESS",
    show_envvar=True,
    help="Triton's gRPC address. Default: that of the stack running here, else 127.0.0.1:8001.",
)
def command(as_json: bool, url: str | None, triton: str | None) -> None:
    """Embed real sentences, show where the time went, and classify a real photo.

    Needs a running stack (`make up`).

    \b
    tidegate demo
    tidegate demo --json
    """
    from tidegate.app.demo import run

    result = run(Paths.current(), url, triton)
    if as_json:
        print_json(asdict(result))
    else:
        click.echo(result.text())
