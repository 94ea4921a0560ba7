"""Where the command line finds things, and the ports that it uses.

Everything is relative to the project folder: ``TIDEGATE_HOME``, else the current folder.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import click

from modelspec.address import host_and_port, joined, resolved


@dataclass(frozen=True)
class Places:
    """The project folder and what Tidegate keeps in it."""

    home: Path

    @classmethod
    def current(cls) -> "Places":
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
        """The path as a user standing in the project folder would write it."""
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
            # One server has one address here, however its machine is called.
            return joined(resolved(host)[1], port)
        except (OSError, UnicodeError):
            self.fail(f"{value!r}: no machine of the name {host!r} is known", param, ctx)


def _set_repository(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    if value is not None:  # for the processes that the verb starts, too
        os.environ["TIDEGATE_REPOSITORY"] = str(value.resolve())


repository_option = click.option(
    "--repository",
    "given_repository",
    type=click.Path(file_okay=False, path_type=Path),
    expose_value=False,
    callback=_set_repository,
    help="The model repository. Default: TIDEGATE_REPOSITORY, else model_repository/.",
)
