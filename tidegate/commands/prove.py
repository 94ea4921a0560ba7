"""``tidegate prove NAME --against SOURCE``: does the published model still match the original?"""

import sys
from typing import TYPE_CHECKING, Any

import click

from tidegate.app.paths import Paths
from tidegate.app.prove import ProveOptions, prove
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.exit_code import ExitCode
from tidegate.commands.options import (
    base_option,
    json_option,
    repository_option,
    samples_option,
    task_option,
)
from tidegate.commands.output import print_json, progress

if TYPE_CHECKING:
    from converters.proof.checks import Proof


@click.command("prove", short_help="Does the published model still match its original?")
@click.argument("name")
@click.option("--against", "source", required=True, help="The original, as passed to convert.")
@task_option
@click.option(
    "--precision", help="Whose tolerances apply. Default: the precision it was converted to."
)
@samples_option
@base_option
@repository_option
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Prove the pipeline that is in the repository NOW as NAME against the original model.

    The engine and the steps are taken from model_repository/ as they are, served by a scratch
    Triton, and compared with the outputs of SOURCE. Nothing is changed. Exits 0 only if every
    check holds.

    \b
    tidegate prove text_embedding --against text_embedding
    tidegate prove mood --against ./my-model --samples texts.txt
    """
    interrupt_on_sigterm()
    prove_options = ProveOptions(**options)
    with progress(err=as_json) as report:
        proofs = prove(prove_options, Paths.current(), report)
    passed = all(proof.passed for proof in proofs)
    if as_json:
        record = {"passed": passed, "proofs": [proof.to_dict() for proof in proofs]}
        print_json(record)
    else:
        _print(proofs, passed)
    sys.exit(ExitCode.DONE if passed else ExitCode.FAILED)


def _print(proofs: list["Proof"], passed: bool) -> None:
    for proof in proofs:
        click.secho(proof.subject, bold=True)
        if proof.note:
            click.echo(f"  {proof.note}")
        for check in proof.checks:
            click.secho(f"  {check.line()}", fg=None if check.passed else "red")
    verdict = "the original's outputs" if passed else "NOT the original's outputs"
    click.secho(f"the published pipeline gives {verdict}", fg="green" if passed else "red")
