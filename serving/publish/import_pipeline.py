"""Publish a pipeline that was built elsewhere: a folder with its models, checked against its
manifest."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from modelspec.layout import CONFIG_FILE, CONFIGS, staging_folder
from modelspec.names import require_pipeline_name
from serving.errors import PublishFailed
from serving.publish.deployment import Deployment
from serving.publish.preflight import require_disk
from serving.publish.publish import publish
from serving.repository import manifest
from serving.repository.config_profiles import TUNED, profile_files
from serving.repository.files import owned_prefix, size_bytes
from serving.repository.manifest import Manifest
from serving.repository.model_repository import active_members, active_version, top_models


def import_pipeline(
    folder: Path, deployment: Deployment, name: str = "", accepted: str = ""
) -> tuple[str, int]:
    """Publish the pipeline in ``folder`` (NAME and its members, as in a repository) and return its
    name and its version here.

    Tampered names a file that differs from the folder's manifest. A folder without a manifest is
    refused unless ``accepted`` gives a reason to accept it; the new manifest records the reason.
    """
    name = name or _only_pipeline(folder)
    _require_name(name)
    number = active_version(folder, name)
    if not number:
        raise PublishFailed(f"{folder} has no model {name!r} with a config and a version")
    origin = _checked(folder, name, number, accepted)
    members = active_members(folder, name)
    folders = {**members, name: number}
    staging = staging_folder(deployment.repository)
    staging.mkdir(parents=True, exist_ok=True)
    _require_members(folder, folders)
    require_disk(staging, sum(size_bytes(folder / m / str(v)) for m, v in folders.items()))
    with tempfile.TemporaryDirectory(dir=staging, prefix=owned_prefix(name)) as staged:
        for model, version in folders.items():
            _copy(folder / model, Path(staged) / model, version)
        models = [*members, name]
        return name, publish(Path(staged), deployment.repository, models, deployment, origin)


def _only_pipeline(folder: Path) -> str:
    pipelines = top_models(folder)
    if len(pipelines) != 1:
        names = ", ".join(pipelines) or "none"
        raise PublishFailed(
            f"{folder} should contain one pipeline, and contains {names}: give --name"
        )
    return pipelines[0]


def _require_name(name: str) -> None:
    try:
        require_pipeline_name(name)
    except ValueError as error:
        raise PublishFailed(str(error)) from error


def _checked(folder: Path, name: str, number: int, accepted: str) -> Manifest:
    """The folder's verified manifest; if it has none, a new one with ``accepted`` as its note."""
    origin = manifest.read(folder, name, number)
    if origin:
        manifest.verify(folder, origin)
        return origin
    if not accepted:
        raise PublishFailed(
            f"{folder / name} has no manifest, so nothing shows that it was proved: convert it "
            "here (tidegate convert), or give --accept-no-manifest REASON, which is recorded"
        )
    origin = manifest.start(name, number, {})
    return replace(origin, note=f"came without a manifest: {accepted}", git_commit="")


def _require_members(folder: Path, folders: dict[str, int]) -> None:
    for model, version in folders.items():
        if not (folder / model / str(version)).is_dir():
            raise PublishFailed(f"{folder} lacks {model}/{version}, which the pipeline pins")


def _copy(source: Path, target: Path, version: int) -> None:
    target.mkdir()
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    # All but ``tuned``, which was measured on another machine.
    profiles = [path for path in profile_files(source) if path.stem != TUNED]
    for path in profiles:
        (target / CONFIGS).mkdir(exist_ok=True)
        shutil.copyfile(path, target / CONFIGS / path.name)
    shutil.copytree(source / str(version), target / str(version))
