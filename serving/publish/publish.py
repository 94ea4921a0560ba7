"""Publish a staged, proved pipeline beside the active version, and move the pin to it.

    publish(ModelRepository(staged), ["mood_pre", "mood_onnx", "mood"], Deployment(repository))

Works with Triton up (``deployment.replicas``) and down. Each version folder appears by one rename,
each config by another. The pipeline's config is the state: before it changes, everything can be
undone, and after that, finished (``recovery``). ``PublishPhase`` lists where a publication can be
interrupted.
"""

from collections.abc import Sequence
from dataclasses import replace

from modelspec.pbtxt import render
from serving.errors import PublishFailed
from serving.publish.activation import activate, undone_on_failure
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal
from serving.publish.phases import PublishPhase
from serving.publish.plan import make_plan
from serving.publish.preflight import require_disk, require_memory
from serving.publish.recovery import recover
from serving.repository.manifest import CONFIG_COPY, MANIFEST_FILE, Manifest
from serving.repository.model_repository import ModelRepository


def publish(
    staged: ModelRepository,
    models: Sequence[str],
    deployment: Deployment,
    origin: Manifest | None = None,
) -> int:
    """Publish ``models`` (members first, the pipeline last) from ``staged``, a folder on the same
    file system, and return the pipeline's active version.

    An unchanged model keeps its version, and if nothing has changed, nothing happens. ``origin`` is
    the manifest of a pipeline that was built elsewhere. Raises ServingError; the repository is then
    as it was before, unless the error is a RolloutStopped.
    """
    repository, name = deployment.repository, models[-1]
    try:
        repository.path.mkdir(parents=True, exist_ok=True)
        with repository.lock(f"publish {name}"):
            deployment.report(PublishPhase.LOCKED, name)
            recover(deployment)

            plan = make_plan(staged, models, deployment)
            pipeline = plan.pipeline
            if not plan.new:
                for part in plan.all:
                    repository.write_profiles(part.model, part.profiles, part.config)
                return pipeline.version
            if pipeline.source:  # its version folder gets the pinned config and the manifest
                (pipeline.source / CONFIG_COPY).write_bytes(render(pipeline.config).encode())
                folders = {
                    (part.model, part.version): part.source
                    or repository.version_folder(part.model, part.version)
                    for part in plan.all
                }
                manifest = Manifest.of_folders(name, pipeline.version, folders)
                if origin:
                    manifest = replace(
                        manifest, git_commit=origin.git_commit, tools=origin.tools, note=origin.note
                    )
                (pipeline.source / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
            require_disk(repository.path, 0)
            require_memory(plan.new, deployment.server_pids)
            deployment.report(PublishPhase.CHECKED, name)

            journal = Journal.begin(
                repository,
                name,
                pipeline.version,
                members=[member.model for member in plan.members],
                new=[(planned.model, planned.version) for planned in plan.new],
            )
            deployment.report(PublishPhase.JOURNALLED, name)
            with undone_on_failure(deployment, journal):
                # Until the pin moves, nothing points at what is installed.
                for part in plan.all:
                    if part.source:
                        repository.install_version(part.model, part.version, part.source)
                deployment.report(PublishPhase.INSTALLED, name)
                for member in plan.members:
                    repository.list_installed(member.model, member.version, member.config)
                for part in plan.all:
                    repository.write_profiles(part.model, part.profiles, part.config)
                deployment.report(PublishPhase.POLICIES_WIDENED, name)
                activate(deployment, journal, pipeline.config)
            return pipeline.version
    except OSError as error:
        raise PublishFailed(
            f"cannot publish into {repository}: {error}. Check disk space and permissions, then "
            "run the same command again"
        ) from error
