"""``tidegate convert NAME``: one model converted, proved and published."""

import time

import click

from tidegate.places import Places
from tidegate.signals import interrupt_on_sigterm


@click.command("convert")
@click.argument("name")
@click.option("--force", is_flag=True, help="Publish again even if the model is there already.")
def command(name: str, force: bool) -> None:
    """Convert the known pipeline NAME, prove it, and publish it into model_repository/.

    Needs no running Triton. Exits 0 only if the proof held; else nothing is published.

    \b
    tidegate convert text_embedding
    """
    from tidegate.pipelines import BUILDERS, convert_pipeline, is_current

    if name not in BUILDERS:
        raise click.UsageError(f"there is no pipeline {name!r}: choose {', '.join(BUILDERS)}")
    places = Places.current()
    if is_current(name, places.repository) and not force:
        click.echo(
            f"{name}: already in {places.shown(places.repository)}/ (--force builds it again)"
        )
        return
    started = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f} s] {text}")

    interrupt_on_sigterm()  # so that what is half-built is cleared up
    convert_pipeline(name, places.repository, places.state, say)
