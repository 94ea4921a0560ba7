"""``tidegate``: the command line. Each verb is a file in ``commands/``, imported when used."""

import errno
import importlib
import os
import socket
import sys

import click

from tidegate.app.errors import UsageError
from tidegate.commands import exit_code
from tidegate.commands.exit_code import ExitCode

TRACEBACK = "TIDEGATE_TRACEBACK"
VERBS = (
    "up",
    "status",
    "top",
    "restart",
    "demo",
    "chat",
    "train",
    "kb",
    "convert",
    "compose",
    "prove",
    "optimize",
    "publish",
    "versions",
    "rollback",
    "canary",
    "promote",
    "shadow",
    "prune",
    "signoff",
    "lint",
    "keys",
    "audit",
    "completion",
)


class LazyGroup(click.Group):
    """Imports a verb's module only when the verb is used: ``tidegate keys`` needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"tidegate.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # SIGTERM too, see ``signals``
            click.echo("tidegate: stopped", err=True)
            ctx.exit(ExitCode.STOPPED)
        except UsageError as error:
            name = ctx.invoked_subcommand or ""
            command = self.get_command(ctx, name) or self
            verb = click.Context(command, parent=ctx, info_name=name)  # for its line of usage
            raise click.UsageError(str(error), verb) from error


@click.group(
    cls=LazyGroup, epilog=exit_code.HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="tidegate")
def cli() -> None:
    """Put trained models into a Triton repository, prove each conversion, serve behind one gateway.

    Each but completion takes --json (one document on stdout) and --repository.
    """


def main() -> None:
    """Run the command line; an expected failure is one line on stderr and exit code 1 or 3."""
    try:
        cli.main(prog_name="tidegate")
    except click.exceptions.Exit:
        raise
    except _foreseen() as error:
        click.secho(f"tidegate: {error}", fg="red", err=True)
        sys.exit(_code(error))
    except ModuleNotFoundError as error:
        message = (
            f"tidegate: the package {error.name} is not installed: run `make up` once, or "
            "pip install 'tidegate[gateway,convert,server]'"
        )
        click.secho(message, fg="red", err=True)
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        click.secho(f"tidegate: {_unforeseen(error)}", fg="red", err=True)
        sys.exit(ExitCode.FAILED)


def _unforeseen(error: Exception) -> str:
    """One line for an unexpected error, with what to do."""
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
        return f"no connection: {error or type(error).__name__}. Is what it calls running?"
    if isinstance(error, OSError):
        return (
            f"a file could not be read or written: {error}{_where(error)}. Free some space or fix "
            "the permissions, and run the same command again"
        )
    detail = " ".join(str(error).split())[:300] or "no reason"
    return (
        f"{type(error).__name__}: {detail}. Nothing was published. This is a bug: set "
        f"{TRACEBACK}=1 to see where it happened, and report it"
    )


def _where(error: OSError) -> str:
    """The folders to look at when the disk is full: that error names no file."""
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    from tidegate.app.paths import Paths

    paths = Paths.current()
    return f" for {paths.repository} or {paths.state}"


def _code(error: Exception) -> int:
    from tidegate.app.claim import NothingRuns

    return ExitCode.NOTHING if isinstance(error, NothingRuns) else ExitCode.FAILED


def _foreseen() -> tuple[type[Exception], ...]:
    from converters.errors import ConversionError
    from serving.errors import ServingError
    from training.recipe import TrainingError

    return (ConversionError, ServingError, TrainingError)


if __name__ == "__main__":
    main()
