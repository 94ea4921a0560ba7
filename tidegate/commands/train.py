"""``tidegate train NAME``: train a model of the worked case, then convert, prove and publish it."""

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.app.train import RECIPES, run
from tidegate.commands.options import json_option, repository_option
from tidegate.commands.output import print_json, progress

HELP = f"""Train a model of the worked case, then convert, prove and publish it.

    NAME is one of {", ".join(RECIPES)}. The data come from installed packages; training takes
    minutes on two cores. The metrics are measured on data that the model has not seen, and stand on
    its card. The same seed gives the same metrics on the same kind of processor.

    \b
    tidegate train topic_classification
    tidegate train topic_classification --seed 7 --no-publish
    """


@click.command("train", short_help="Train a model of the worked case, and publish it", help=HELP)
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of chance.")
@click.option(
    "--no-publish", is_flag=True, help="Only write the trained model, into .tidegate/trained/NAME."
)
@repository_option
@json_option
def command(name: str, seed: int, no_publish: bool, as_json: bool) -> None:
    interrupt_on_sigterm()  # so that half-written files are removed
    paths = Paths.current()
    with progress(err=as_json) as report:
        result = run(name, seed, paths, report, publish=not no_publish)
    if as_json:
        print_json(result.as_dict(paths))
        return
    for line in result.lines(paths):
        click.echo(line)
