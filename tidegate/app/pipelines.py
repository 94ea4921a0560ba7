"""A pipeline from its source to the repository: converted, staged, proved through a scratch Triton,
published."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelspec.hardware import LANGUAGE_MODEL_BACKEND, engine_of, with_plan, with_program
from modelspec.held import held_folder
from modelspec.layout import ENGINE_FILE, SETTINGS_FILE, STEP_FILE
from modelspec.model import ModelSpec, Pipeline
from modelspec.names import Role, member_name
from modelspec.staging import stage_model
from serving.publish.deployment import Deployment
from serving.publish.publish import publish
from serving.publish.replica import connected
from serving.repository.model_repository import ModelRepository
from serving.triton.servers import servers_of
from tidegate.app.progress import Progress
from tidegate.app.scratch import proved_through_triton
from tidegate.app.task_registry import PIPELINE_TAGS, RegisteredTask

if TYPE_CHECKING:
    from converters.conversion import ConversionOptions, Converted
    from converters.proof.record import Record
    from converters.task import Task
    from converters.tensorrt.engine import Engine
    from converters.torch_export.engine import Program


@dataclass(frozen=True)
class Built:
    """A pipeline and the conversion that it serves, unless there is nothing to convert; with an
    ``engine``, that serves it in place of the ONNX graph."""

    pipeline: Pipeline
    converted: "Converted | None" = None
    engine: "Engine | Program | None" = None

    def files(self, spec: ModelSpec) -> Mapping[str, Path]:
        """The files for the version folder of this member: name -> source."""
        files = {STEP_FILE: step_file(spec.step)} if spec.step else {}
        if self.converted is None:
            return files
        if spec.backend == LANGUAGE_MODEL_BACKEND:
            engine = self.converted.engine
            return {engine.name: engine, SETTINGS_FILE: engine.with_name(SETTINGS_FILE)}
        part = spec.name.removeprefix(f"{self.pipeline.name}_")
        if part == Role.ENGINE:
            return {**files, ENGINE_FILE: self.converted.engine}
        if part in (Role.PLAN, Role.PROGRAM) and self.engine:
            return {**files, **self.engine.files()}
        return {**files, **self.converted.step_files(part)}


def build(
    registered: RegisteredTask, task: "Task", options: "ConversionOptions", report: Progress
) -> Built:
    """Convert and prove, without publishing; raises ConversionError."""
    from converters.conversion import convert
    from converters.errors import ConversionError

    converted = convert(task, options, report)
    reference, record = converted.reference, converted.record
    tag = PIPELINE_TAGS.get(record.task, record.task)
    card = {
        **({"pipeline_tag": tag} if tag else {}),
        **task.card(),
        "precision": record.precision,
        "batching": record.grade,
    }
    if record.accepted:
        card["accepted_proof_failure"] = record.accepted
    try:
        pipeline = registered.declare()(
            reference.name, reference.metadata, task.golden(reference), card
        )
    except ValueError as error:
        raise ConversionError(f"{reference.name} cannot be declared: {error}") from error
    return Built(pipeline, converted)


def release(
    built: Built, repository: ModelRepository, work_dir: Path, report: Progress
) -> "Record | None":
    """Stage the pipeline, prove it through a scratch Triton, publish it into ``repository``; the
    record of both proofs. Raises ConversionError or ServingError: the repository is as it was."""
    name = built.pipeline.name
    repository.staging.mkdir(parents=True, exist_ok=True)
    record = None
    with held_folder(repository.staging, name) as folder:
        staged = ModelRepository(folder)
        for spec in built.pipeline.models:
            stage_model(staged.path, spec, built.files(spec))
        if built.converted:
            report(f"{name}: proving it again through a scratch Triton, from a client's request")
            record = _proved(staged, work_dir, built)
        models = [spec.name for spec in built.pipeline.models]
        publish_staged(staged, models, repository, work_dir, report)
    return record


def publish_staged(
    staged: ModelRepository,
    models: Sequence[str],
    repository: ModelRepository,
    work_dir: Path,
    report: Progress,
) -> int:
    """Publish ``models`` (members first, the pipeline last) of ``staged`` into ``repository`` and
    on the servers that run it; the pipeline's version."""
    servers, name = servers_of(work_dir, repository.path), models[-1]
    with connected(servers) as replicas:
        version = publish(staged, models, Deployment(repository, replicas))
        answering = {replica.address for replica in replicas}
    for silent in {server.address for server in servers} - answering:
        report(f"{name}: {silent} did not answer: when it does, run tidegate publish {name}")
    report(f"{name}: published into {repository.path.name}/ as version {version}")
    return version


def is_current(name: str, repository: ModelRepository) -> bool:
    """Whether the known pipeline is in the repository, with the current steps."""
    pipeline: Pipeline = importlib.import_module(f"ensembles.{name}").PIPELINE
    pinned = repository.pinned_members(name) if repository.is_published(name) else {}
    if member_name(name, Role.PLAN) in pinned:
        pipeline = with_plan(pipeline)
    elif member_name(name, Role.PROGRAM) in pinned:
        pipeline = with_program(pipeline)
    return all(
        repository.is_published(spec.name) and has_step(repository, spec)
        for spec in pipeline.models
    )


def step_file(step: str) -> Path:
    """The source of a step: one file in git, copied into the repository."""
    import ensembles.steps

    return Path(ensembles.steps.__path__[0]) / f"{step}.py"


def has_step(repository: ModelRepository, spec: ModelSpec) -> bool:
    """Whether the step of the newest version, in the newest generation, does what the step in git
    does; comments may differ."""
    from converters.code_key import file_code_sha256

    if not spec.step:
        return True
    model = repository.generations(spec.name)[-1]
    newest = repository.version_folder(model, repository.versions(model)[-1]) / STEP_FILE
    source = step_file(spec.step)
    return newest.is_file() and file_code_sha256(newest) == file_code_sha256(source)


def _proved(staged: ModelRepository, work_dir: Path, built: Built) -> "Record | None":
    """The record with the proof through Triton added, saved beside the staged engine; None if
    nothing was converted. A plan is proved as it will be served, and so is the graph beside it; a
    program for the CPU and that for the GPU likewise."""
    if built.converted is None:
        return None
    converted, engine = built.converted, built.engine
    record = engine.record if engine else converted.record
    for profile in engine.profiles if engine else (None,):
        proof = proved_through_triton(
            staged, work_dir, converted.task, converted.reference, profile
        )
        record = record.add(proof)
        record.require()
    record.save(staged.version_folder(engine_of(built.pipeline).name, 1))
    return record
