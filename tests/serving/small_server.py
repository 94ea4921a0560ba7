"""A Triton that serves the small pipeline, clients that call it continuously, and publishers."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tritonclient import grpc

from serving.publish.deployment import Deployment
from serving.publish.replica import connected
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from serving.triton.servers import servers_of
from tests.back_to_back import PAUSE_S, Calls, back_to_back
from tests.serving.small_pipeline import NAME, publish_staged, stage


def ask(client, model: str = NAME, x: float = 0) -> float:
    tensor = grpc.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[x]], dtype=np.float32))
    return float(client.infer(model, [tensor]).as_numpy("score")[0, 0])


@contextlib.contextmanager
def serving_small_pipeline(
    home: Path, prepare: Callable[[Path], None] = lambda repository: None, config_name: str = ""
) -> Iterator[TritonServer]:
    """A server with the first version, which adds 0, loaded; ``prepare`` is called on the
    repository first."""
    repository = home / "model_repository"
    staged = stage(repository, 0)
    publish_staged(staged, repository)
    shutil.rmtree(staged)
    prepare(repository)
    ports = Ports(*free_ports(3))
    options = LaunchOptions(
        *(ModelRepository(repository), home / ".tidegate", ports),
        config_name=config_name or None,
        auto_complete=False,
    )
    with TritonServer(options) as running:
        running.control.load(NAME)
        yield running
        running.stop(gently=False)  # in a tenth of a second, where a gentle end takes four


@contextlib.contextmanager
def online(server, count=1, **options):
    """A Deployment with every server that announced itself for this repository."""
    repository = server.options.repository.path
    with connected(servers_of(server.options.work_dir, repository)) as replicas:
        assert len(replicas) == count
        yield Deployment(ModelRepository(repository), replicas, grace_s=0.2, **options)


@contextlib.contextmanager
def under_load(server, clients: int = 3, may_fail: bool = False) -> Iterator[Calls]:
    """Clients that continuously send 0 to ``mood``, and the count of each score. No request may
    fail, whatever happens inside, unless it ``may_fail``."""
    address = server.control.address
    with back_to_back(
        ask, lambda: grpc.InferenceServerClient(address), clients, PAUSE_S, may_fail
    ) as calls:
        calls.more(20)
        yield calls
