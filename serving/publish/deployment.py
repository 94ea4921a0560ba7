"""What a publication acts on: a repository, the servers on it, and a callback for each phase."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.publish.phases import Tell, say_nothing
from serving.publish.replica import Replica
from serving.repository.config_profiles import place_config
from serving.repository.model_repository import is_published, needed, read_config
from serving.repository.pins import listed_versions, with_versions

GRACE_S = 2.0


@dataclass(frozen=True)
class Deployment:
    """``replicas`` are the servers that answer, in the order in which they switch, and ``silent``
    the addresses of those that run but do not answer; ``grace_s`` is for how many seconds an old
    version stays loaded after the pin has moved."""

    repository: Path
    replicas: Sequence[Replica] = ()
    tell: Tell = say_nothing
    grace_s: float = GRACE_S
    silent: Sequence[str] = ()

    def list_needed(self, models: Sequence[str]) -> None:
        """Make each member list exactly the versions that pipelines pin now, and reload it on the
        servers: versions that nothing pins are unloaded, and stay on disk."""
        pinned = needed(self.repository)
        for model in models:
            if not is_published(self.repository, model):
                continue
            versions = pinned.get(model, set())
            if versions:
                self._list(model, sorted(versions))
            for replica in self.replicas:
                if versions:
                    replica.control.load(model)
                else:
                    replica.drop(model)

    def _list(self, model: str, versions: Sequence[int]) -> None:
        config = read_config(self.repository, model)
        if listed_versions(config) not in ([], list(versions)):
            place_config(self.repository, model, with_versions(config, versions))
