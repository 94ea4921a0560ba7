"""What a publication acts on: a repository, the servers on it, and a callback for each phase."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.publish.phases import Progress, no_report
from serving.publish.replica import Replica
from serving.repository.configs import policy_versions
from serving.repository.model_repository import ModelRepository

GRACE_S = 2.0


@dataclass(frozen=True)
class Deployment:
    """``replicas`` are the servers that answer, in the order in which they switch, and ``silent``
    the addresses of those that run but do not answer; ``grace_s`` is for how many seconds an old
    version stays loaded after the pin has moved."""

    repository: ModelRepository
    replicas: Sequence[Replica] = ()
    report: Progress = no_report
    grace_s: float = GRACE_S
    silent: Sequence[str] = ()

    @property
    def server_pids(self) -> list[int]:
        """Of the servers whose processes can be seen from here."""
        return [replica.server_pid for replica in self.replicas if replica.server_pid]

    def next_version(self, model: str) -> int:
        """A number that neither a folder has nor a server remembers: it is never used twice while a
        server may still have the old one."""
        on_disk = self.repository.versions(model)
        remembered = [replica.newest(model) for replica in self.replicas]
        return max([*on_disk, *remembered], default=0) + 1

    def retire_unpinned(self, models: Sequence[str]) -> None:
        """Make each member list exactly the versions that pipelines pin now, and reload it on the
        servers: versions that nothing pins are unloaded, and stay on disk."""
        pinned = self.repository.pinned_versions()
        for model in models:
            if not self.repository.is_published(model):
                continue
            versions = sorted(pinned.get(model, set()))
            config = self.repository.config(model)
            if versions and policy_versions(config) not in ([], versions):
                self.repository.write_config(model, config, versions)
            for replica in self.replicas:
                if versions:
                    replica.control.load(model)
                else:
                    replica.drop(model)
