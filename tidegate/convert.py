"""``tidegate convert SOURCE``: one model converted, proved and published."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.engines import ENGINES, is_on, on_engine
from tidegate.paths import Paths, json_option, print_json, repository_option
from tidegate.signals import interrupt_on_sigterm
from tidegate.task_registry import KNOWN, TASKS, RegisteredTask, task_of, why_not_taken

if TYPE_CHECKING:
    from converters.record import Record
    from converters.task import Task

Say = Callable[[str], None]
IDENTITY = "identity_fp32"
# Flags that say of the original what its files do not.
SAID = ("missing", "iteration_range", "preprocess", "base")

EXAMPLES = "\n    ".join(f"tidegate convert {kind.example}" for kind in TASKS.values())
HELP = f"""Convert SOURCE, prove it, and publish it into model_repository/.

    SOURCE is a known pipeline ({", ".join(KNOWN)}), or the path of a model
    with --name and, where the path does not say it, --task. Needs no running Triton. Exits 0 only
    if the proof held; else nothing is published.

    \b
    tidegate convert text_embedding
    {EXAMPLES}
    """


@click.command("convert", help=HELP)
@click.argument("source")
@click.option("--task", type=click.Choice(list(TASKS)), help="What the model does.")
@click.option("--name", help="What the pipeline is to be called: POST /v1/NAME.")
@click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    help="Real inputs to prove it on (docs/converting.md: which form for which task).",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="fp32, fp16, w8, int8, int8-rows or int8-dynamic; of several, with commas, the first is "
    "served and the others are proved.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="onnx",
    show_default=True,
    help="tensorrt: also build a TensorRT engine for this machine's GPU, prove it, and pin that.",
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
    help="XGBoost: the number that stands for a missing one (missing=), which its file does not "
    "hold. Default: NaN.",
)
@click.option(
    "--iteration-range",
    metavar="RANGE",
    help="XGBoost: the rounds of trees that answer: all, best or BEGIN:END. Default: as "
    "XGBClassifier and XGBRegressor do, best after early stopping.",
)
@click.option(
    "--preprocess",
    metavar="PRESET",
    help="Pictures without a preprocessor_config.json: imagenet, imagenet-bicubic, half or clip, "
    "with a side (imagenet:384) where it is not the model's own.",
)
@click.option(
    "--base",
    metavar="FOLDER",
    help="LoRA adapters: what it is merged into. Default: what adapter_config.json names.",
)
@click.option("--force", is_flag=True, help="Replace what is published under this name.")
@repository_option
@json_option
def command(as_json: bool, **arguments: Any) -> None:
    arguments["source_options"] = said_of_the_original(arguments)
    arguments["precisions"] = tuple(arguments.pop("precision").split(","))
    options = ConvertOptions(**arguments)
    interrupt_on_sigterm()  # so that what is half-built is cleared up
    paths = Paths.current()
    done = run(options, paths, clock(err=as_json))
    if as_json:
        print_json(_document(done, paths))
        return
    for line in done.lines(paths):
        click.echo(line)


@dataclass(frozen=True)
class Done:
    """What was converted: the records of all precisions, the served one first; none of an identity.
    ``is_new`` is False where just this was published already."""

    name: str
    is_new: bool
    records: tuple["Record", ...] = ()

    def lines(self, paths: Paths) -> list[str]:
        if not self.is_new:
            where = paths.shown(paths.repository)
            return [f"{self.name}: already in {where}/ (--force builds it again)"]
        return [_line(each) for each in self.records]


def said_of_the_original(arguments: dict[str, Any]) -> dict[str, str]:
    """``ConversionRequest.source_options``: what was said on the command line, taken out of
    ``arguments``."""
    said = {name: arguments.pop(name, None) for name in SAID}
    return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True)
class ConvertOptions:
    """What was asked for on the command line."""

    source: str
    task: str | None = None
    name: str | None = None
    samples: Path | None = None
    precisions: tuple[str, ...] = ("fp32",)
    accepted: str = ""
    force: bool = False
    engine: str = "onnx"
    source_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        return self.source in KNOWN and self.task is None and self.name in (None, self.source)


def run(options: ConvertOptions, paths: Paths, say: Say) -> Done:
    """Convert, prove and publish what is wished; click.UsageError when the options makes no
    sense."""
    from tidegate.pipelines import Built, release

    if options.is_known and not options.force and _is_current(options, paths.repository, say):
        return _already(options.source, paths)
    if options.source == IDENTITY and options.is_known:
        from ensembles.identity_fp32 import PIPELINE

        release(Built(PIPELINE), paths.repository, paths.state, say)
        return Done(IDENTITY, is_new=True)
    return _convert(options, paths, say)


def _convert(options: ConvertOptions, paths: Paths, say: Say) -> Done:
    from converters.conversion import ConversionOptions
    from converters.task import ConversionRequest
    from tidegate.pipelines import build, release

    name, kind = _name(options), _kind(options)
    require_precisions(options.precisions)
    task = kind.open_task(
        ConversionRequest(name, options.source, options.samples, options.source_options)
    )
    if not options.is_known and _is_there(task, options, paths, say):
        return _already(name, paths)
    served, *others = (
        build(kind, task, ConversionOptions(precision, options.accepted), say)
        for precision in options.precisions
    )
    served = on_engine(served, options.engine, say)
    record = release(served, paths.repository, paths.state, say)
    found = [record, *(other.converted.record for other in others if other.converted)]
    return Done(name, is_new=True, records=tuple(each for each in found if each))


def _name(options: ConvertOptions) -> str:
    """The pipeline's name; a usage error when it is missing, illegal or one of ours."""
    from modelspec.layout import require_pipeline_name

    if options.is_known:
        return options.source
    if options.name is None:
        raise click.UsageError(
            f"there is no known pipeline {options.source!r} (known: "
            f"{', '.join(KNOWN)}); for a model "
            "of your own give --name, and --task if the path does not say it"
        )
    if options.name in KNOWN:
        raise click.UsageError(
            f"{options.name!r} is a known pipeline: give your model another name"
        )
    try:
        return require_pipeline_name(options.name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _kind(options: ConvertOptions) -> RegisteredTask:
    known = KNOWN.get(options.source) if options.is_known else None
    if known:
        return known
    reason = (
        "" if options.source in KNOWN else why_not_taken(options.source, options.source_options)
    )
    if reason and not options.task:
        from converters.errors import SourceRefused

        raise SourceRefused(reason)
    task = options.task or task_of(options.source, options.source_options)
    if task is None:
        raise click.UsageError(
            f"{options.source} does not say what the model does: give --task ({', '.join(TASKS)})"
        )
    return TASKS[task]


def _is_there(task: "Task", options: ConvertOptions, paths: Paths, say: Say) -> bool:
    """Whether just this is published already; ServingError when the name is another's."""
    from converters.conversion import source_sha256
    from serving.errors import PublishFailed
    from tidegate.published import names_in_the_way, published_record

    taken = names_in_the_way(paths.repository, task.request.name)
    if options.force or not taken:
        return False
    record = published_record(paths.repository, task.request.name)
    wanted = (task.name, options.precisions[0], source_sha256(task))
    if record and (record.task, record.precision, record.source_sha256) == wanted:
        return is_on(paths.repository, task.request.name, options.engine, say)
    raise PublishFailed(
        f"the name is taken: {paths.shown(paths.repository)}/ has {', '.join(taken)}. Give "
        "another --name, or --force to replace it"
    )


def _is_current(options: ConvertOptions, repository: Path, say: Say) -> bool:
    """Whether the known pipeline is there, in the precision and on the engine that are wished."""
    from tidegate.pipelines import is_current
    from tidegate.published import published_record

    if not is_current(options.source, repository):
        return False
    record = published_record(repository, options.source)
    if record is None:
        return True
    same = record.precision == options.precisions[0]
    return same and is_on(repository, options.source, options.engine, say)


def require_precisions(precisions: Sequence[str]) -> None:
    from converters.precision import PRECISIONS

    wrong = [each for each in precisions if each not in PRECISIONS]
    if wrong or len(set(precisions)) < len(precisions):
        raise click.UsageError(
            f"--precision {','.join(precisions)}: choose each once from {', '.join(PRECISIONS)}"
        )


def _line(record: "Record") -> str:
    checks, failed = _counts(record)
    verdict = f"{failed} FAILED, accepted: {record.accepted}" if failed else "all held"
    return f"{record.name} {record.precision}: {checks} checks, {verdict}; {record.grade}"


def _counts(record: "Record") -> tuple[int, int]:
    """How many checks there were, and how many failed."""
    checks = [check for proof in record.proofs for check in proof.checks]
    return len(checks), sum(not check.passed for check in checks)


def _already(name: str, paths: Paths) -> Done:
    from tidegate.published import published_record

    record = published_record(paths.repository, name)
    return Done(name, is_new=False, records=(record,) if record else ())


def _document(done: Done, paths: Paths) -> dict[str, Any]:
    from serving.repository import active_version

    return {
        "pipeline": done.name,
        "version": active_version(paths.repository, done.name),
        "repository": str(paths.repository),
        "is_new": done.is_new,
        "proofs": [
            {
                "precision": each.precision,
                "task": each.task,
                "grade": each.grade,
                "checks": _counts(each)[0],
                "failed": _counts(each)[1],
                "accepted": each.accepted,
            }
            for each in done.records
        ],
    }


def clock(*, err: bool = False) -> Say:
    """Says each step with the seconds since the start; with ``err`` on stderr."""
    started = time.monotonic()
    return lambda text: click.echo(f"[{time.monotonic() - started:5.1f} s] {text}", err=err)
