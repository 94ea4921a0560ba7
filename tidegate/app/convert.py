"""From a model's source to the repository: converted, proved, published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelspec.hardware import VLLM
from tidegate.app.engines import ONNX, is_on, on_engine, require_engine
from tidegate.app.errors import UsageError
from tidegate.app.paths import Paths
from tidegate.app.progress import Progress
from tidegate.app.task_registry import KNOWN, TASKS, RegisteredTask, task_of, why_not_taken

if TYPE_CHECKING:
    from converters.proof.record import Record
    from converters.task import Task
    from serving.repository.model_repository import ModelRepository

IDENTITY = "identity_fp32"
# Flags with what the original's files do not say.
SOURCE_OPTIONS = ("missing", "iteration_range", "preprocess", "base")


@dataclass(frozen=True)
class ConvertResult:
    """The records of all precisions, the served one first; none for an identity model.
    ``is_new`` is False if exactly this was already published."""

    name: str
    is_new: bool
    records: tuple["Record", ...] = ()

    def lines(self, paths: Paths) -> list[str]:
        if not self.is_new:
            where = paths.shown(paths.repository)
            return [f"{self.name}: already in {where}/ (--force builds it again)"]
        return [_line(record) for record in self.records]

    def as_dict(self, paths: Paths) -> dict[str, object]:
        """The result in plain JSON types."""
        from serving.repository.model_repository import ModelRepository

        return {
            "pipeline": self.name,
            "version": ModelRepository(paths.repository).active_version(self.name),
            "repository": str(paths.repository),
            "is_new": self.is_new,
            "proofs": [
                {
                    "precision": record.precision,
                    "task": record.task,
                    "grade": record.grade,
                    "checks": _counts(record)[0],
                    "failed": _counts(record)[1],
                    "accepted": record.accepted,
                }
                for record in self.records
            ],
        }


def source_options(arguments: dict[str, Any]) -> dict[str, str]:
    """The ``ConversionRequest.options`` among the command line's ``arguments``, removed from
    them."""
    values = {name: arguments.pop(name, None) for name in SOURCE_OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ConvertOptions:
    """The command line's arguments."""

    source: str
    task: str | None = None
    name: str | None = None
    samples: Path | None = None
    precisions: tuple[str, ...] = ()  # () is the source's default
    accepted: str = ""
    force: bool = False
    engine: str = ONNX
    source_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        return self.source in KNOWN and self.task is None and self.name in (None, self.source)


def run(options: ConvertOptions, paths: Paths, report: Progress) -> ConvertResult:
    """Convert, prove and publish; UsageError when the options make no sense."""
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.pipelines import Built, release

    repository = ModelRepository(paths.repository)
    if options.is_known and not options.force and _is_current(options, repository, report):
        return _already_published(options.source, repository)
    if options.source == IDENTITY and options.is_known:
        from ensembles.identity_fp32 import PIPELINE

        release(Built(PIPELINE), repository, paths.state, report)
        return ConvertResult(IDENTITY, is_new=True)
    if options.engine == VLLM:
        return _written_for_vllm(_name(options), options, paths, report)
    return _convert(options, repository, paths, report)


def _written_for_vllm(
    name: str, options: ConvertOptions, paths: Paths, report: Progress
) -> ConvertResult:
    from tidegate.app.vllm_model import TASK, write

    if options.is_known or (options.task or TASK) != TASK:
        raise UsageError(f"--engine vllm serves language models: --task {TASK}")
    write(name, Path(options.source), paths, report)
    return ConvertResult(name, is_new=True)


def _convert(
    options: ConvertOptions, repository: "ModelRepository", paths: Paths, report: Progress
) -> ConvertResult:
    name, registered = _name(options), _registered_task(options)
    require_precisions(options.precisions, registered)
    # What is refused by now needed none of these, which import the frameworks: seconds.
    from converters.conversion import ConversionOptions
    from converters.task import ConversionRequest
    from tidegate.app.pipelines import build, release

    task = registered.open_task(
        ConversionRequest(name, options.source, options.samples, options.source_options)
    )
    options = replace(options, precisions=options.precisions or task.offered()[:1])
    if not options.is_known and _is_published(task, options, repository, report):
        return _already_published(name, repository)
    require_engine(task, options.precisions[0], options.engine)
    served, *others = (
        build(registered, task, ConversionOptions(precision, options.accepted), report)
        for precision in options.precisions
    )
    served = on_engine(served, options.engine, report)
    record = release(served, repository, paths.state, report)
    records = [record, *(other.converted.record for other in others if other.converted)]
    return ConvertResult(name, is_new=True, records=tuple(filter(None, records)))


def _name(options: ConvertOptions) -> str:
    """The pipeline's name; a usage error when it is missing, invalid or one of ours."""
    from modelspec.names import require_pipeline_name

    if options.is_known:
        return options.source
    if options.name is None:
        raise UsageError(
            f"there is no known pipeline {options.source!r} (known: {', '.join(KNOWN)}); for a "
            "model of your own pass --name, and --task unless the path implies it"
        )
    if options.name in KNOWN and options.engine != VLLM:  # that only writes a folder
        raise UsageError(f"{options.name!r} is a known pipeline: give your model another name")
    try:
        return require_pipeline_name(options.name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _registered_task(options: ConvertOptions) -> RegisteredTask:
    known = KNOWN.get(options.source) if options.is_known else None
    if known:
        return known
    reason = (
        "" if options.source in KNOWN else why_not_taken(options.source, options.source_options)
    )
    if reason:
        from converters.errors import SourceRefused

        raise SourceRefused(reason)
    task = options.task or task_of(options.source, options.source_options)
    if task is None:
        raise UsageError(
            f"{options.source} does not say what the model does: pass --task ({', '.join(TASKS)})"
        )
    return TASKS[task]


def _is_published(
    task: "Task", options: ConvertOptions, repository: "ModelRepository", report: Progress
) -> bool:
    """Whether exactly this is already published; PublishFailed when the name is taken."""
    from converters.conversion import source_sha256
    from serving.errors import PublishFailed
    from tidegate.app.published import conflicting_models, published_record

    conflicts = conflicting_models(repository, task.request.name)
    if options.force or not conflicts:
        return False
    record = published_record(repository, task.request.name)
    expected = (task.name, options.precisions[0], source_sha256(task))
    if record and (record.task, record.precision, record.source_sha256) == expected:
        return is_on(repository, task.request.name, options.engine, report)
    raise PublishFailed(
        f"the name is taken: {repository.path.name}/ has {', '.join(conflicts)}. Give "
        "another --name, or --force to replace it"
    )


def _is_current(options: ConvertOptions, repository: "ModelRepository", report: Progress) -> bool:
    """Whether the known pipeline is published in the requested precision and on the engine."""
    from tidegate.app.pipelines import is_current
    from tidegate.app.published import published_record

    if not is_current(options.source, repository):
        return False
    record = published_record(repository, options.source)
    if record is None:
        return True
    registered = KNOWN[options.source]
    precisions = options.precisions or (registered.precisions() if registered else ())
    is_same_precision = record.precision == precisions[0]
    return is_same_precision and is_on(repository, options.source, options.engine, report)


def require_precisions(precisions: Sequence[str], registered: RegisteredTask) -> None:
    from converters.precisions.write import PRECISIONS

    known = (*PRECISIONS, *registered.own_precisions)
    unknown = [precision for precision in precisions if precision not in known]
    if unknown or len(set(precisions)) < len(precisions):
        raise UsageError(
            f"--precision {','.join(precisions)}: choose from {', '.join(known)}, each once"
        )


def _line(record: "Record") -> str:
    checks, failed = _counts(record)
    verdict = f"{failed} FAILED, accepted: {record.accepted}" if failed else "all held"
    return f"{record.name} {record.precision}: {checks} checks, {verdict}; {record.grade}"


def _counts(record: "Record") -> tuple[int, int]:
    """The number of checks, and of failed ones."""
    checks = [check for proof in record.proofs for check in proof.checks]
    return len(checks), sum(not check.passed for check in checks)


def _already_published(name: str, repository: "ModelRepository") -> ConvertResult:
    from tidegate.app.published import published_record

    record = published_record(repository, name)
    return ConvertResult(name, is_new=False, records=(record,) if record else ())
