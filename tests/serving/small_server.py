"""A Triton that serves the small pipeline, clients that call it continuously, and publishers."""

import collections
import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving.publish.deployment import Deployment
from serving.publish.replica import connected
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from serving.triton.servers import servers_of
from tests.running import wait_until
from tests.serving.small_pipeline import NAME, publish_staged, stage


class Caller:
    """Clients that continuously send 0 to ``mood``, and the answers that they get."""

    def __init__(self, address: str, clients: int = 3) -> None:
        self._address, self._stopped = address, threading.Event()
        self.answers: collections.Counter[float] = collections.Counter()
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with grpc.InferenceServerClient(self._address) as client:
            while not self._stopped.is_set():
                try:
                    self.answers[ask(client)] += 1
                except InferenceServerException as error:
                    self.errors.append(str(error))


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
        ModelRepository(repository), home / ".tidegate", ports, config_name=config_name or None
    )
    with TritonServer(options) as running:
        running.control.load(NAME)
        yield running


@contextlib.contextmanager
def online(server, count=1, **options):
    """A Deployment with every server that announced itself for this repository."""
    repository = server.options.repository.path
    with connected(servers_of(server.options.work_dir, repository)) as replicas:
        assert len(replicas) == count
        yield Deployment(ModelRepository(repository), replicas, grace_s=0.2, **options)


@contextlib.contextmanager
def under_load(server):
    """No request may fail, whatever happens inside."""
    with Caller(server.control.address) as caller:
        wait_until(lambda: sum(caller.answers.values()) > 20, 20, "answers before")
        yield caller
    assert caller.errors == []
