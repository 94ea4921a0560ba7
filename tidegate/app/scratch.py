"""A temporary Triton for a proof, on free ports, loopback only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports

if TYPE_CHECKING:
    from converters.proof.checks import Proof
    from converters.proof.reference import Reference
    from converters.task import Task


@contextmanager
def scratch_triton(
    repository: ModelRepository, work_dir: Path, *models: str, profile: str | None = None
) -> Iterator[str]:
    """The gRPC address of a server with these models loaded. ``profile`` is the config profile to
    serve (None: ``config.pbtxt``). Raises ServingError when they cannot be served."""
    ports = Ports(*free_ports(3))
    options = LaunchOptions(repository, work_dir, ports, config_name=profile, name="scratch")
    with TritonServer(options) as server:
        for model in models:
            server.control.load(model)
        yield f"127.0.0.1:{ports.grpc}"
        server.stop(gently=False)  # nobody else calls it


def proved_through_triton(
    repository: ModelRepository,
    work_dir: Path,
    task: "Task",
    reference: "Reference",
    profile: str | None = None,
) -> "Proof":
    """The task's checks, passed or not, of the pipeline ``reference.name`` served from
    ``repository``, with this config profile.

    Raises ServingError when it cannot be served at all.
    """
    from converters.proof.attempt import attempted
    from converters.proof.checks import Proof

    with scratch_triton(repository, work_dir, reference.name, profile=profile) as address:
        checks = attempted("the served pipeline", lambda: task.prove_served(address, reference))
    subject = f"{reference.name}: served by Triton" + (f" as {profile}" if profile else "")
    return Proof(subject, tuple(checks))
