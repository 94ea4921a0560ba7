"""``tidegate convert SOURCE``: one model converted, proved and published."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from tidegate.places import Places
from tidegate.signals import interrupt_on_sigterm


@click.command("convert")
@click.argument("source")
@click.option("--task", help="What the model does: text-classification.")
@click.option("--name", help="What the pipeline is to be called: POST /v1/NAME.")
@click.option(
    "--samples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Real inputs to prove it on, one a line (else a small English set).",
)
@click.option("--force", is_flag=True, help="Publish again even if the model is there already.")
def command(
    source: str, task: str | None, name: str | None, samples: Path | None, force: bool
) -> None:
    """Convert SOURCE, prove it, and publish it into model_repository/.

    SOURCE is a known pipeline, or a Hugging Face folder together with --task and --name. Needs no
    running Triton. Exits 0 only if the proof held; else nothing is published.

    \b
    tidegate convert text_embedding
    tidegate convert ./my-model --task text-classification --name mood --samples texts.txt
    """
    places, say = Places.current(), _clock()
    interrupt_on_sigterm()  # so that what is half-built is cleared up
    if task is None and name is None:
        _convert_known(source, places, force, say)
    else:
        _convert_brought(Order(source, task, name, samples, force), places, say)


def _convert_known(source: str, places: Places, force: bool, say: Callable[[str], None]) -> None:
    from tidegate.pipelines import BUILDERS, convert_pipeline, is_current

    if source not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise click.UsageError(
            f"there is no pipeline {source!r}: choose {known}, or give a folder with --task and "
            "--name"
        )
    if is_current(source, places.repository) and not force:
        _already(source, places)
        return
    convert_pipeline(source, BUILDERS[source], places.repository, places.state, say)


@dataclass(frozen=True)
class Order:
    """What was asked for on the command line."""

    source: str
    task: str | None
    name: str | None
    samples: Path | None
    force: bool


def _convert_brought(order: Order, places: Places, say: Callable[[str], None]) -> None:
    from tidegate.brought import TASKS, Brought
    from tidegate.pipelines import convert_pipeline, is_published

    name, builder = order.name, TASKS.get(order.task or "")
    if builder is None or name is None:
        raise click.UsageError(f"a folder needs --name and --task; tasks are {', '.join(TASKS)}")
    _require_free_name(name)
    if is_published(places.repository, name) and not order.force:
        _already(name, places)
        return
    brought = Brought(Path(order.source), name, _lines(order.samples))
    convert_pipeline(
        name, lambda tell: builder(brought, tell), places.repository, places.state, say
    )


def _require_free_name(name: str) -> None:
    from modelspec.layout import require_model_name
    from tidegate.pipelines import BUILDERS

    if name in BUILDERS:
        raise click.UsageError(f"{name!r} is a known pipeline: give your model another name")
    try:
        require_model_name(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _lines(samples: Path | None) -> list[str] | None:
    """The samples, one a line; a usage error when there is none or they are no text."""
    if samples is None:
        return None
    try:
        lines = [line.strip() for line in samples.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{samples} is not UTF-8 text: one sample a line") from error
    texts = list(dict.fromkeys(line for line in lines if line))
    if not texts:
        raise click.UsageError(f"{samples} holds no sample: one a line")
    return texts


def _already(name: str, places: Places) -> None:
    where = places.shown(places.repository)
    click.echo(f"{name}: already in {where}/ (--force builds it again)")


def _clock() -> Callable[[str], None]:
    """Says each step with the seconds since the start."""
    started = time.monotonic()
    return lambda text: click.echo(f"[{time.monotonic() - started:5.1f} s] {text}")
