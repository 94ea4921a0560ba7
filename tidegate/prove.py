"""``tidegate prove NAME --against SOURCE``: is what is published still what was trained?"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.convert import clock
from tidegate.paths import Paths, json_option, print_json, repository_option
from tidegate.signals import interrupt_on_sigterm
from tidegate.task_registry import TASKS, kind_of

if TYPE_CHECKING:
    from converters.proof import Check, Proof

SAME_ENGINE = "the graph is the one that was proved when it was published"


@click.command("prove")
@click.argument("name")
@click.option("--against", "source", required=True, help="The original: as convert was given it.")
@click.option("--task", type=click.Choice(list(TASKS)), help="If the repository does not say it.")
@click.option("--precision", help="Whose tolerances hold. Default: those it was converted with.")
@click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    help="Other inputs than the task's own set.",
)
@click.option("--base", metavar="FOLDER", help="LoRA adapters: where the base is now.")
@repository_option
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Prove what the repository has NOW under NAME against the original model.

    The engine and the steps are taken from model_repository/ as they are, served by a scratch
    Triton, and compared with what SOURCE answers. Nothing is changed. Exits 0 only if every check
    holds.

    \b
    tidegate prove text_embedding --against text_embedding
    tidegate prove mood --against ./my-model --samples texts.txt
    """
    interrupt_on_sigterm()
    question = Question(**options)
    proofs = prove(question, Paths.current(), say=_quiet if as_json else clock())
    passed = all(proof.passed for proof in proofs)
    if as_json:
        record = {"passed": passed, "proofs": [proof.to_dict() for proof in proofs]}
        print_json(record)
    else:
        _print(proofs, passed)
    sys.exit(0 if passed else 1)


@dataclass(frozen=True)
class Question:
    """What was asked for on the command line."""

    name: str
    source: str
    task: str | None = None
    precision: str | None = None
    samples: Path | None = None
    base: str | None = None


def prove(question: Question, paths: Paths, say: Callable[[str], None]) -> list["Proof"]:
    """The graph's proof and the one through Triton; raises ConversionError or ServingError."""
    from converters.conversion import ask_original, prove_graph, reference_in
    from converters.task import ConversionRequest
    from modelspec.layout import ENGINE_FILE
    from tidegate.engines import proved_profiles
    from tidegate.published import copy_pipeline, engine_folder, published_record
    from tidegate.scratch import proved_through_triton

    repository, name = paths.repository, question.name
    record = published_record(repository, name)
    engine = engine_folder(repository, name) / ENGINE_FILE
    kind = kind_of(name, question.task or (record.task if record else ""))
    if kind is None:
        raise click.UsageError(f"{name} does not say what it does: give --task")
    # What was said of the original when it was converted still holds.
    options = {**(record.options if record else {})}
    if question.base:
        options["base"] = question.base
    opened = kind.open_task(ConversionRequest(name, question.source, question.samples, options))
    with tempfile.TemporaryDirectory(prefix="tidegate-prove-") as work:
        asked, copy = Path(work) / "asked", Path(work) / "repository"
        asked.mkdir()
        ask_original(opened, asked, say)
        precision = question.precision or (record.precision if record else "fp32")
        reference = reference_in(asked, name, opened.name, precision)
        say(f"{name}: proving the engine of the repository")
        graph = prove_graph(opened, engine, reference)
        if record:
            checks = (*graph.checks, _same_engine(record.engine_sha256, engine))
            graph = replace(graph, checks=checks)
        copy_pipeline(repository, name, copy)
        say(f"{name}: proving the pipeline through a scratch Triton")
        profiles = proved_profiles(repository, name, say)
        served = [proved_through_triton(copy, paths.state, opened, reference, v) for v in profiles]
        return [graph, *served]


def _same_engine(recorded: str, engine: Path) -> "Check":
    """The graph is the one that was proved when it was published: a change in it that hides within
    what a precision may round off is found all the same."""
    from converters.cache import files_sha256
    from converters.proof import at_most

    found = files_sha256([engine])
    worst = f"SHA-256 {found[:12]}..., proof.json says {recorded[:12]}...: convert it again"
    return at_most(SAME_ENGINE, found != recorded, 0, worst if found != recorded else "")


def _print(proofs: list["Proof"], passed: bool) -> None:
    for proof in proofs:
        click.secho(proof.subject, bold=True)
        for check in proof.checks:
            click.secho(f"  {check.line()}", fg=None if check.passed else "red")
    verdict = "the original's answers" if passed else "NOT the original's answers"
    click.secho(f"what is published gives {verdict}", fg="green" if passed else "red")


def _quiet(text: str) -> None:
    """JSON goes to stdout alone."""
