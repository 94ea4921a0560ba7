"""The folders and files of the command line, and the options that choose them.

Everything is relative to the home folder: ``TIDEGATE_HOME``, else the current folder.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from modelspec.address import host_and_port, joined, resolved


@dataclass(frozen=True)
class Paths:
    """The home folder and what Tidegate keeps in it."""

    home: Path

    @classmethod
    def current(cls) -> "Paths":
        return cls(Path(os.environ.get("TIDEGATE_HOME", ".")).resolve())

    @property
    def repository(self) -> Path:
        return Path(os.environ.get("TIDEGATE_REPOSITORY", self.home / "model_repository")).resolve()

    @property
    def state(self) -> Path:
        return self.home / ".tidegate"

    @property
    def keys(self) -> Path:
        return self.state / "keys.toml"

    @property
    def pepper(self) -> Path:
        return self.state / "pepper"

    @property
    def policy(self) -> Path:
        return self.state / "gateway.toml"

    @property
    def dev_key(self) -> Path:
        return self.state / "dev.key"

    @property
    def triton_key(self) -> Path:
        return self.state / "triton.key"

    def shown(self, path: Path) -> str:
        """The path as a user would write it from the home folder."""
        return str(path.relative_to(self.home)) if path.is_relative_to(self.home) else str(path)


class Address(click.ParamType):
    """HOST:PORT of a server."""

    name = "HOST:PORT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            host, port = host_and_port(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        try:
            # One server has one address here, whatever its host is called.
            return joined(resolved(host)[1], port)
        except (OSError, UnicodeError):
            self.fail(f"{value!r}: the host {host!r} cannot be resolved", param, ctx)


def _set_repository(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    if value is not None:
        _set(context, TIDEGATE_REPOSITORY=str(value.resolve()))


def _set_stack(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    if value is not None:
        from tidegate.app.claim import home_serving

        home = home_serving(Paths.current(), value.resolve())
        _set(context, TIDEGATE_HOME=str(home), TIDEGATE_REPOSITORY=str(value.resolve()))


def _set(context: click.Context, **variables: str) -> None:
    """Set environment variables while the verb runs, for it and for the processes it starts."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)

    def restore() -> None:
        for name, value in previous.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    context.call_on_close(restore)


repository_option = click.option(
    "--repository",
    "given_repository",
    type=click.Path(file_okay=False, path_type=Path),
    expose_value=False,
    callback=_set_repository,
    help="The model repository. Default: TIDEGATE_REPOSITORY, else model_repository/.",
)
stack_option = click.option(
    "--repository",
    "given_repository",
    type=click.Path(file_okay=False, path_type=Path),
    expose_value=False,
    callback=_set_stack,
    help="Use the stack that serves this repository, whichever home it runs from. Default: the "
    "stack of this home (TIDEGATE_HOME, else this folder).",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document; progress goes to stderr.",
)


def print_json(document: Any) -> None:
    """Print the one document that a verb with ``--json`` writes to stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
