"""A publisher in its own process, to be killed: run as ``python -m``, never imported.

    python -m tests.serving.killed_publisher WORK_DIR REPOSITORY STEP publish STAGED
    python -m tests.serving.killed_publisher WORK_DIR REPOSITORY STEP switch VERSION

It kills itself with SIGKILL when it reaches the phase STEP (a name of
serving.publish.phases.PublishPhase, or - for none).
"""

import os
import signal
import sys
from pathlib import Path

from serving.publish.deployment import Deployment
from serving.publish.phases import PublishPhase
from serving.publish.publish import publish
from serving.publish.replica import connected
from serving.publish.versions import switch_to
from serving.repository.model_repository import ModelRepository
from serving.triton.servers import servers_of
from tests.serving.small_pipeline import MODELS, NAME


def main(work_dir: Path, repository: Path, fatal: str, verb: str, argument: str) -> None:
    def tell(phase: PublishPhase, model: str) -> None:
        os.write(1, f"{phase.name}\n".encode())
        if phase.name == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    with connected(servers_of(work_dir, repository)) as replicas:
        deployment = Deployment(ModelRepository(repository), replicas, tell, grace_s=0.2)
        if verb == "publish":
            publish(ModelRepository(Path(argument)), MODELS, deployment)
        else:
            switch_to(deployment, NAME, int(argument))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
