"""``tidegate keys``: create, list, rotate and revoke keys. The gateway notices within a second."""

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from tidegate.app.paths import Paths
from tidegate.commands.options import Duration, json_option, stack_option
from tidegate.commands.output import print_json, print_table

if TYPE_CHECKING:
    from gateway.policy.gateway_toml import Rules
    from tidegate.app.key_store import KeyStore


@click.group("keys", short_help="Create, list, rotate and revoke API keys")
def command() -> None:
    """API keys. Only their HMAC is stored: a key is shown once, when it is created.

    \b
    tidegate keys create my-app
    tidegate keys create batch --tenant acme --models 'text_*' --scope infer --expires 30d
    tidegate keys list
    tidegate keys rotate my-app --overlap 24h
    tidegate keys revoke my-app
    """


@command.command()
@click.argument("name")
@click.option("--tenant", default="default", show_default=True, help="A tenant of gateway.toml.")
@click.option("--role", "roles", multiple=True, default=["user"], show_default=True)
@click.option(
    "--models", multiple=True, default=["*"], help="Models (globs) that it may use. [default: all]"
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["read", "infer", "admin"]),
    help="Restrict the role to this. [default: everything the role allows]",
)
@click.option(
    "--expires",
    type=Duration(allow_zero=True, needs_unit=True),
    help="How long it is valid: 24h, 30d. [default: forever]",
)
@json_option
@stack_option
def create(
    name: str,
    tenant: str,
    roles: tuple[str, ...],
    models: tuple[str, ...],
    scopes: tuple[str, ...],
    expires: timedelta | None,
    as_json: bool,
) -> None:
    """Create a key called NAME and print it, this once."""
    from gateway.policy.principal import ACTIONS, Grant

    grant = Grant(tenant, roles, models, scopes or ACTIONS)
    _warn_if_unknown(grant.tenant, grant.roles)
    store = _store()
    if any(record.name == name and not record.revoked for record in store.records()):
        click.echo(
            f"warning: there is a key called {name!r} already: by this name, revoke ends both",
            err=True,
        )
    try:
        record, key = store.create(name, grant, expires)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _print_new_key(record.key_id, name, key, as_json)


@command.command("list")
@json_option
@stack_option
def list_(as_json: bool) -> None:
    """Show every key: its id, name, rights and state, and whether gateway.toml lacks its tenant or
    role."""
    from tidegate.app.key_store import state_of

    records, rules = _store().records(), _rules()
    faults = {
        record.key_id: list(rules.unknown(record.tenant, record.roles)) if rules else []
        for record in records
    }
    if as_json:
        documents = [
            {**asdict(record), "state": state_of(record), "faults": faults[record.key_id]}
            for record in records
        ]
        for record in documents:
            del record["hmac"]
        print_json(documents)
        return
    if not records:
        click.echo("no keys yet: tidegate keys create NAME")
        return
    print_table(
        ("id", "name", "tenant/roles", "created", "state"),
        [
            (
                key.key_id,
                key.name,
                f"{key.tenant}/{','.join(key.roles)}",
                key.created,
                ", but ".join([state_of(key), *faults[key.key_id]]),
            )
            for key in records
        ],
    )


@command.command()
@click.argument("id_or_name")
@click.option(
    "--overlap",
    type=Duration(allow_zero=True, needs_unit=True),
    default="24h",
    show_default=True,
)
@json_option
@stack_option
def rotate(id_or_name: str, overlap: timedelta, as_json: bool) -> None:
    """Create a new key with the same rights; the old one ends after the overlap."""
    try:
        record, key, ended = _store().rotate(id_or_name, overlap)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _print_new_key(record.key_id, record.name, key, as_json)
    for old in ended:
        click.echo(f"{old.key_id} ({old.name}) ends {old.expires}", err=True)


@command.command()
@click.argument("id_or_name")
@json_option
@stack_option
def revoke(id_or_name: str, as_json: bool) -> None:
    """Revoke the key with this id, or every key of this name."""
    revoked = _store().revoke(id_or_name)
    if as_json:
        print_json([{"id": record.key_id, "name": record.name} for record in revoked])
        return
    for record in revoked:
        click.echo(f"revoked {record.key_id} ({record.name})")


def _print_new_key(key_id: str, name: str, key: str, as_json: bool) -> None:
    if as_json:
        print_json({"id": key_id, "name": name, "key": key})
    else:
        click.echo(key)


def _warn_if_unknown(tenant: str, roles: tuple[str, ...]) -> None:
    """Warn of a typo; a key may also be created before gateway.toml has its tenant."""
    rules = _rules()
    for fault in rules.unknown(tenant, roles) if rules else ():
        click.echo(f"warning: {fault}: the key has no rights until it is defined", err=True)


def _rules() -> "Rules | None":
    """The rules in gateway.toml; None, with a warning, if they are invalid."""
    from gateway.policy.reload import PolicyFile

    policy = PolicyFile(Paths.current().policy)
    try:
        policy.refresh()
    except ValueError as error:
        click.echo(f"warning: {error}", err=True)
        return None
    return policy.current.rules


def _store() -> "KeyStore":
    from tidegate.app.key_store import KeyStore

    paths = Paths.current()
    return KeyStore(paths.keys, paths.pepper)
