"""Publish a pipeline that was built elsewhere: a folder with its models, checked against its
manifest."""

import shutil
from dataclasses import replace
from pathlib import Path

from modelspec.files import size_bytes
from modelspec.held import held_folder
from modelspec.layout import CONFIG_FILE, CONFIGS
from modelspec.names import require_pipeline_name
from serving.errors import PublishFailed
from serving.publish.deployment import Deployment
from serving.publish.preflight import require_disk
from serving.publish.publish import publish
from serving.repository.configs import TUNED
from serving.repository.manifest import Manifest
from serving.repository.model_repository import ModelRepository


def import_pipeline(
    folder: Path, deployment: Deployment, name: str = "", accepted: str = ""
) -> tuple[str, int]:
    """Publish the pipeline in ``folder`` (NAME and its members, as in a repository) and return its
    name and its version here.

    Tampered names a file that differs from the folder's manifest. A folder without a manifest is
    refused unless ``accepted`` gives a reason to accept it; the new manifest records the reason.
    """
    source = ModelRepository(folder)
    if not name:
        pipelines = source.public_models()
        if len(pipelines) != 1:
            names = ", ".join(pipelines) or "none"
            raise PublishFailed(
                f"{folder} should contain one pipeline, and contains {names}: give --name"
            )
        name = pipelines[0]
    try:
        require_pipeline_name(name)
    except ValueError as error:
        raise PublishFailed(str(error)) from error
    number = source.active_version(name)
    if not number:
        raise PublishFailed(f"{folder} has no model {name!r} with a config and a version")

    origin = source.manifest(name, number)
    if origin:
        source.verify(origin)
    elif accepted:
        origin = replace(
            Manifest.of_folders(name, number, {}),
            note=f"came without a manifest: {accepted}",
            git_commit="",
        )
    else:
        raise PublishFailed(
            f"{folder / name} has no manifest, so nothing shows that it was proved: convert it "
            "here (tidegate convert), or give --accept-no-manifest REASON, which is recorded"
        )

    versions = {**source.pinned_members(name), name: number}
    staging = deployment.repository.staging
    staging.mkdir(parents=True, exist_ok=True)
    for model, version in versions.items():
        if not source.version_folder(model, version).is_dir():
            raise PublishFailed(f"{folder} lacks {model}/{version}, which the pipeline pins")
    sizes = (size_bytes(source.version_folder(*version)) for version in versions.items())
    require_disk(staging, sum(sizes))
    with held_folder(staging, name) as staged_folder:
        staged = ModelRepository(staged_folder)
        for model, version in versions.items():
            folder = staged.folder(model)
            folder.mkdir()
            shutil.copyfile(source.folder(model) / CONFIG_FILE, folder / CONFIG_FILE)
            for path in source.profile_files(model):
                if path.stem != TUNED:  # which was measured on another machine
                    (folder / CONFIGS).mkdir(exist_ok=True)
                    shutil.copyfile(path, folder / CONFIGS / path.name)
            shutil.copytree(source.version_folder(model, version), folder / str(version))
        return name, publish(staged, list(versions), deployment, origin)
