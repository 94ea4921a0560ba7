"""The options that several verbs take: one declaration each, so that a flag has one name, one type
and one meaning on the whole command line."""

import os
from datetime import timedelta
from pathlib import Path

import click

from modelspec.address import host_and_port, joined, resolved
from modelspec.durations import seconds_of
from tidegate.app.paths import Paths
from tidegate.app.task_registry import TASKS


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


class Duration(click.ParamType[timedelta]):
    """``90s``, ``10m``, ``24h`` or ``30d``; a number alone is seconds, or with ``needs_unit`` an
    error (but for 0): where days are usual, 5 is not meant as seconds."""

    name = "duration"

    def __init__(self, *, allow_zero: bool = False, needs_unit: bool = False) -> None:
        self._allow_zero, self._needs_unit = allow_zero, needs_unit

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        text = f"{value}s" if str(value).isdecimal() else str(value)
        if self._allow_zero and text == "0s":
            return timedelta()
        if self._needs_unit and text != str(value):
            self.fail(f"{value!r} has no unit: write {value}s, {value}h or {value}d", param, ctx)
        try:
            return timedelta(seconds=seconds_of(text))
        except ValueError as error:
            self.fail(str(error), param, ctx)


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


FOLDER = click.Path(file_okay=False, path_type=Path)
repository_option = click.option(
    "--repository",
    "given_repository",
    type=FOLDER,
    expose_value=False,
    callback=_set_repository,
    help="The model repository. Default: TIDEGATE_REPOSITORY, else model_repository/.",
)
repositories_option = click.option(
    "--repository",
    "repositories",
    multiple=True,
    type=FOLDER,
    help="The model repository; several are changed one after the other. Default: "
    "TIDEGATE_REPOSITORY, else model_repository/.",
)
stack_option = click.option(
    "--repository",
    "given_repository",
    type=FOLDER,
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
servers_option = click.option(
    "--server",
    "addresses",
    multiple=True,
    type=Address(),
    help="A Triton (gRPC) that serves the repository but is not found automatically: on another "
    "machine, or in another container. Its key is read from TIDEGATE_TRITON_KEY_FILE, else "
    ".tidegate/triton.key.",
)
grace_option = click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="Seconds that the old version stays loaded after the change; a canary stays until the "
    "gateways no longer route to it, and for at least 2 s.",
)
task_option = click.option(
    "--task",
    type=click.Choice(list(TASKS)),
    help="What the model does, if neither its path nor the repository says so.",
)
samples_option = click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    help="Real inputs to use instead of the task's own set (docs/converting.md lists the file "
    "format for each task).",
)
base_option = click.option(
    "--base",
    metavar="FOLDER",
    help="LoRA adapters: the base model to merge into. Default: the one that it was converted "
    "with, else the one in adapter_config.json.",
)
preprocess_option = click.option(
    "--preprocess",
    metavar="PRESET",
    help="Image models without a preprocessor_config.json: imagenet, imagenet-bicubic, half or "
    "clip, with a size (imagenet:384) if it is not the model's own.",
)
