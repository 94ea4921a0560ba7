"""``tidegate canary NAME``: a part of the load to another version."""

import click

from tidegate import rollout
from tidegate.places import Places
from tidegate.signals import interrupt_on_sigterm


@click.command("canary")
@click.argument("name")
@click.option("--version", type=click.IntRange(1), help="Default: the newest that does not serve.")
@click.option(
    "--weight", type=click.IntRange(0, 100), required=True, help="Percent; 0 ends the canary."
)
@rollout.grace
def command(name: str, version: int | None, weight: int, grace_s: float) -> None:
    """Send a part of the requests for NAME to another of its versions.

    The version is served beside NAME as NAME.v7 and asked its golden sample; then its weight goes
    into .tidegate/gateway.toml. `tidegate promote NAME` ends it by moving everybody there.

    \b
    tidegate canary text_embedding --weight 10
    tidegate canary text_embedding --weight 0
    """
    from serving.canary import canary_name, start, stop
    from tidegate.routes_file import set_weights

    interrupt_on_sigterm()
    places = Places.current()
    with rollout.target(places, places.repository, grace_s) as target:
        number = version or _default(places, name, ends=weight == 0)
        canary = canary_name(name, number)
        if weight == 0:
            set_weights(places.policy, name, {})
            stop(target, name, number)
            click.echo(f"{canary} is gone: {name} serves everybody")
            return
        start(target, name, number)
        set_weights(places.policy, name, {canary: weight})
        click.echo(f"{canary} gets {weight} % of the requests for {name}")


def _default(places: Places, name: str, ends: bool) -> int:
    """The canary that is to end, or the newest version that does not serve."""
    from serving.canary import canaries
    from serving.errors import PublishFailed
    from serving.versions import versions

    found = canaries(places.repository, name)
    if not ends:
        found = found or [v.number for v in versions(places.repository, name) if not v.is_active]
    if not found:
        raise PublishFailed(f"{name} has no {'canary' if ends else 'other version'}")
    return found[-1]
