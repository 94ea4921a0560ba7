"""``tidegate promote NAME``: the canary becomes what everybody gets."""

import click

from tidegate import rollout
from tidegate.places import Places
from tidegate.signals import interrupt_on_sigterm


@click.command("promote")
@click.argument("name")
@rollout.grace
def command(name: str, grace_s: float) -> None:
    """Let the pipeline NAME serve its canary's version, and end the canary.

    \b
    tidegate promote text_embedding
    """
    from serving.canary import canaries, promote, stop
    from serving.errors import PublishFailed
    from tidegate.routes_file import set_weights

    interrupt_on_sigterm()
    places = Places.current()
    found = canaries(places.repository, name)
    if not found:
        raise PublishFailed(f"{name} has no canary: tidegate canary {name} --weight 10 makes one")
    with rollout.target(places, places.repository, grace_s) as target:
        promote(target, name, found[-1])
        set_weights(places.policy, name, {})
        for number in found:
            stop(target, name, number)
    click.echo(f"{name}: version {found[-1]} serves everybody")
