"""Build a known pipeline, stage it, prove it through a scratch Triton and publish it.

``tidegate.builders`` says what each known pipeline is made of.
"""

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from modelspec.layout import STEP_FILE, staging_folder, version_folders
from modelspec.model import ModelSpec, Pipeline
from modelspec.staging import stage_model
from serving.publish import is_published
from tidegate.builders import BUILDERS, Built, Say

if TYPE_CHECKING:
    from converters.proof import Proof

__all__ = ["BUILDERS", "convert_pipeline", "is_current", "is_published"]


def convert_pipeline(
    name: str, build: Callable[[Say], Built], repository: Path, work_dir: Path, say: Say
) -> None:
    """Build the pipeline ``name``, prove it, publish it into ``repository``.

    Raises ConversionError or ServingError; the repository is then as it was before.
    """
    from serving.publish import publish

    built = build(say)
    staging = staging_folder(repository)
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging, prefix=f"{name}-") as staged_name:
        staged = Path(staged_name)
        _stage(staged, built)
        if built.prove:
            say(f"{name}: proving it again through a scratch Triton, from what a client sends")
            _prove_through_triton(staged, work_dir, name, built.prove)
        publish(staged, repository, [spec.name for spec in built.pipeline.models])
    say(f"{name}: published into {repository.name}/")


def is_current(name: str, repository: Path) -> bool:
    """Whether the known pipeline is in the repository, with the steps that this code has."""
    pipeline: Pipeline = importlib.import_module(f"ensembles.{name}").PIPELINE
    return all(
        is_published(repository, spec.name) and _has_step(repository / spec.name, spec)
        for spec in pipeline.models
    )


def _has_step(folder: Path, spec: ModelSpec) -> bool:
    newest = folder / str(version_folders(folder)[-1])
    return not spec.step or _is_same(newest / STEP_FILE, step_file(spec.step))


def _is_same(published: Path, source: Path) -> bool:
    return published.is_file() and published.read_bytes() == source.read_bytes()


def step_file(step: str) -> Path:
    """The source of a step; it stands once in git and is copied into the repository."""
    import ensembles.steps

    return Path(ensembles.steps.__path__[0]) / f"{step}.py"


def _stage(staged: Path, built: Built) -> None:
    for spec in built.pipeline.models:
        step = {STEP_FILE: step_file(spec.step)} if spec.step else {}
        stage_model(staged, spec, {**step, **built.files.get(spec.name, {})})


def _prove_through_triton(
    staged: Path, work_dir: Path, model: str, prove: Callable[[str], "Proof"]
) -> None:
    """``prove`` is given the gRPC address of a Triton that serves ``model`` from ``staged``."""
    from serving.launch import LaunchOptions, TritonServer
    from serving.ports import Ports, free_ports

    ports = Ports(*free_ports(3))
    with TritonServer(LaunchOptions(staged, work_dir, ports, name="scratch")) as server:
        server.control.load(model)
        proof = prove(f"127.0.0.1:{ports.grpc}")
    proof.require()
