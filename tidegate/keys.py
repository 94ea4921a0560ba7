"""``tidegate keys``: create, list and revoke API keys. The gateway notices within a second."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tidegate.places import Places

if TYPE_CHECKING:
    from gateway.key_store import KeyStore


@click.group("keys")
def command() -> None:
    """API keys. Only their HMAC is stored: a key is shown once, when it is made.

    \b
    tidegate keys create my-app
    tidegate keys list
    tidegate keys revoke my-app
    """


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(name: str, as_json: bool) -> None:
    """Make a key called NAME and print it, this once."""
    try:
        record, key = _store().create(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps({"id": record.key_id, "name": name, "key": key}))
    else:
        click.echo(key)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Show every key: its id, name, and whether it is valid."""
    shown = [{k: v for k, v in asdict(r).items() if k != "hmac"} for r in _store().records()]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for key in shown:
        state = f"revoked {key['revoked']}" if key["revoked"] else "valid"
        click.echo(f"{key['key_id']}  {key['name']:<20} created {key['created']}  {state}")
    if not shown:
        click.echo("no keys yet: tidegate keys create NAME")


@command.command()
@click.argument("id_or_name")
def revoke(id_or_name: str) -> None:
    """Revoke the key with this id, or every key of this name."""
    from gateway.key_store import UnknownKey

    try:
        revoked = _store().revoke(id_or_name)
    except UnknownKey as error:
        raise click.ClickException(str(error.args[0])) from error
    for record in revoked:
        click.echo(f"revoked {record.key_id} ({record.name})")


def _store() -> "KeyStore":
    from gateway.key_store import KeyStore

    places = Places.current()
    return KeyStore(places.keys, places.pepper)
