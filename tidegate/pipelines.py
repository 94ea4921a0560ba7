"""The known pipelines: how each is built, staged and proved. The one place that joins declaration
(``ensembles``), conversion (``converters``) and server (``serving``)."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from modelspec.layout import STEP_FILE, staging_folder
from modelspec.model import ModelSpec, Pipeline
from modelspec.staging import stage_model

Say = Callable[[str], None]
Files = Mapping[str, Mapping[str, Path]]


def convert_pipeline(name: str, repository: Path, work_dir: Path, say: Say) -> None:
    """Build the known pipeline ``name``, prove it, publish it into ``repository``.

    Raises ConversionError or ServingError; the repository is then as it was before.
    """
    from serving.publish import publish

    staging = staging_folder(repository)
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging, prefix=f"{name}-") as staged_name:
        staged = Path(staged_name)
        pipeline = BUILDERS[name](staged, work_dir, say)
        publish(staged, repository, [spec.name for spec in pipeline.models])
    say(f"{name}: published into {repository.name}/")


def _stage(staged: Path, pipeline: Pipeline, files: Files) -> None:
    for spec in pipeline.models:
        stage_model(staged, spec, files.get(spec.name, {}))


def _build_identity(staged: Path, work_dir: Path, say: Say) -> Pipeline:
    from ensembles.identity_fp32 import PIPELINE, STEP

    _stage(staged, PIPELINE, {PIPELINE.name: {STEP_FILE: step_file(STEP)}})
    return PIPELINE


def _build_text_embedding(staged: Path, work_dir: Path, say: Say) -> Pipeline:
    from converters.text_embedding import Converted, Recipe, convert
    from ensembles.text_embedding import BUCKETS, ENGINE, GOLDEN, PIPELINE, STEP, TOKENIZER

    recipe = Recipe(PIPELINE.name, BUCKETS, GOLDEN.request["text"], GOLDEN.expect, GOLDEN.tolerance)
    converted: Converted = convert(recipe, say)
    _stage(
        staged,
        PIPELINE,
        {
            TOKENIZER.name: {STEP_FILE: step_file(STEP), "tokenizer.json": converted.tokenizer},
            ENGINE.name: {"model.onnx": converted.engine, "proof.json": converted.proof},
        },
    )
    say(f"{PIPELINE.name}: proving it again through a scratch Triton, from raw text")
    _prove_through_triton(staged, work_dir, PIPELINE.public, converted.oracle())
    return PIPELINE


def _prove_through_triton(
    staged: Path, work_dir: Path, public: ModelSpec, oracle: Mapping[str, object]
) -> None:
    import numpy as np

    from converters.served_proof import prove_served_embedding
    from serving.launch import LaunchOptions, TritonServer
    from serving.ports import Ports, free_ports

    ports = Ports(*free_ports(3))
    with TritonServer(LaunchOptions(staged, work_dir, ports, name="scratch")) as server:
        server.control.load(public.name)
        proof = prove_served_embedding(
            f"127.0.0.1:{ports.grpc}",
            public.name,
            [str(text) for text in np.asarray(oracle["texts"])],
            np.asarray(oracle["vectors"]),
            np.asarray(oracle["token_count"]),
        )
    proof.require()


def step_file(step: str) -> Path:
    """The source of a step; it stands once in git and is copied into the repository."""
    import ensembles.steps

    return Path(ensembles.steps.__path__[0]) / f"{step}.py"


BUILDERS: Mapping[str, Callable[[Path, Path, Say], Pipeline]] = {
    "identity_fp32": _build_identity,
    "text_embedding": _build_text_embedding,
}
