"""A pipeline that was built elsewhere, or one that is published already, on every server."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.publish.deployment import Deployment


def publish(what: str, name: str, accepted: str) -> Callable[["Deployment"], tuple[str, int]]:
    """The change that publishes the folder ``what`` (``name`` chooses one of its pipelines), or
    that loads the active version of the published pipeline ``what`` on every server.

    ``accepted`` is the reason to accept a folder without a manifest; "" refuses it.
    """
    from serving.publish.import_pipeline import import_pipeline
    from serving.publish.versions import switch_to

    def change(deployment: "Deployment") -> tuple[str, int]:
        if Path(what).is_dir():
            return import_pipeline(Path(what).resolve(), deployment, name, accepted)
        deployment.repository.require_published(what)
        active = deployment.repository.active_version(what)
        return what, switch_to(deployment, what, active)

    return change
