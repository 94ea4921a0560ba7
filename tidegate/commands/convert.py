"""``tidegate convert SOURCE``: convert, prove and publish one model."""

from typing import Any

import click

from tidegate.app.convert import ConvertOptions, run, source_options
from tidegate.app.engines import ENGINES, ONNX
from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.app.task_registry import KNOWN, TASKS
from tidegate.commands.options import (
    base_option,
    json_option,
    preprocess_option,
    repository_option,
    samples_option,
    task_option,
)
from tidegate.commands.output import print_json, progress

EXAMPLES = "\n    ".join(
    f"tidegate convert {task.source} --task {name} --name NAME" for name, task in TASKS.items()
)
HELP = f"""Convert SOURCE, prove it, and publish it into model_repository/.

    SOURCE is a known pipeline ({", ".join(KNOWN)}), or the path of a model
    with --name and, unless the path implies it, --task. Needs no running Triton. Exits 0 only if
    the proof held; otherwise nothing is published.

    \b
    tidegate convert text_embedding
    {EXAMPLES}
    """


@click.command("convert", short_help="Convert a model, prove it, publish it", help=HELP)
@click.argument("source")
@task_option
@click.option("--name", help="The name of the pipeline: POST /v1/NAME.")
@samples_option
@click.option(
    "--precision",
    default="",
    help="fp32 (the default), fp16, int8-weight-only, int8-static, int8-per-row or int8-dynamic; "
    "of a language model f16 (the default) or q8_0. Of a "
    "comma-separated list, the first is served and the others are only proved.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=ONNX,
    show_default=True,
    help="tensorrt: also build a TensorRT engine for this machine's GPU, prove it, and pin it. "
    "torch: also export the torch module with torch.export, compile it with AOTInductor for this "
    "machine, prove it, and pin it. "
    "vllm: only write the folder of a language model for Triton's vLLM backend; nothing is proved.",
)
@click.option(
    "--accept-proof-failure",
    "accepted",
    metavar="REASON",
    default="",
    help="Publish even if the proof fails; the reason is kept in proof.json and the model's card.",
)
@click.option(
    "--missing",
    metavar="NUMBER",
    help="XGBoost: the number that marks a missing value (missing=), which its file does not "
    "record. Default: NaN.",
)
@click.option(
    "--iteration-range",
    metavar="RANGE",
    help="XGBoost: the boosting rounds to predict with: all, best or BEGIN:END. Default: as in "
    "XGBClassifier and XGBRegressor, best after early stopping.",
)
@preprocess_option
@base_option
@click.option("--force", is_flag=True, help="Replace the pipeline published under this name.")
@repository_option
@json_option
def command(as_json: bool, **arguments: Any) -> None:
    arguments["source_options"] = source_options(arguments)
    arguments["precisions"] = tuple(filter(None, arguments.pop("precision").split(",")))
    options = ConvertOptions(**arguments)
    interrupt_on_sigterm()  # so that half-built files are removed
    paths = Paths.current()
    with progress(err=as_json) as report:
        result = run(options, paths, report)
    if as_json:
        print_json(result.as_dict(paths))
        return
    for line in result.lines(paths):
        click.echo(line)
