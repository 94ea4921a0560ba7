"""Two Tritons on one repository and a gateway in front of them; each can be ended and started.

with Pair(home, models) as pair, Running(pair) as gateway:
    wait_until(gateway.is_ready, 60, "the gateway is ready")
    pair.kill(0)
    gateway.ask()
"""

import collections
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from gateway.policy.principal import Grant
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from tests.back_to_back import back_to_back
from tests.e2e.grpc_models import HEAD
from tests.running import ROOT, environment, wait_until
from tidegate.app.key_store import KeyStore

POLICY = """
[tenants.one]
models = ["*"]
[tenants.two]
models = ["*"]
[roles.user]
actions = ["read", "infer", "admin"]
"""
DEADLINE_S = 4


class Pair:
    """Two Tritons on one repository, or ``size``, which can be killed and started again.

    ``models`` are the source and the end of the config of each Python model; one that is called
    only_second is loaded by the second server alone. With ``servers=(0,)`` a ``with`` starts only
    the first one.
    """

    def __init__(
        self,
        home: Path,
        models: Mapping[str, tuple[str, str]],
        servers: Sequence[int] = (0, 1),
        size: int = 2,
    ) -> None:
        self.home, self.work, self.models = home, home / ".tidegate", models
        self._started_first = servers
        repository = home / "model_repository"
        for name, (code, config) in models.items():
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "1" / "model.py").write_text(code)
            (repository / name / "config.pbtxt").write_text(HEAD + config)
        self.options = [
            LaunchOptions(
                *(ModelRepository(repository), self.work, Ports(*free_ports(3))),
                name=name,
                auto_complete=False,
            )
            for name in ("first", "second", "third")[:size]
        ]
        self.servers: list[TritonServer | None] = [None] * size
        self.started_at = -math.inf  # when the last one was, monotonic seconds

    def start(self, index: int) -> None:
        server = TritonServer(self.options[index])
        server.start()
        self.servers[index] = server
        for name in self.models:
            if name != "only_second" or index == 1:
                server.control.load(name)
        self.started_at = time.monotonic()

    def __enter__(self) -> Self:
        try:
            for index in self._started_first:
                self.start(index)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        for index in range(len(self.servers)):
            self.stop(index, gently=False)  # at once, where a gentle end takes seconds

    def kill(self, index: int) -> None:
        self.signal(index, signal.SIGKILL)
        self.stop(index)

    def signal(self, index: int, number: int) -> None:
        os.kill(self.servers[index].pid, number)

    def stop(self, index: int, *, gently: bool = True) -> None:
        server, self.servers[index] = self.servers[index], None
        if server:
            server.stop(gently=gently)
            server.control.close()

    def pids(self) -> list[int]:
        return [server.pid for server in self.servers]

    def heal(self) -> None:
        for index, server in enumerate(self.servers):
            if server is None:
                self.start(index)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{option.ports.grpc}" for option in self.options]

    @property
    def addresses_with_http(self) -> list[str]:
        """As the gateway must know them to call a model over HTTP/1.1."""
        ports = [option.ports for option in self.options]
        return [f"127.0.0.1:{port.grpc}/{port.http}" for port in ports]


class Running:
    """A gateway process in front of the pair, or of these ``replicas``."""

    def __init__(self, pair: Pair, replicas: Sequence[str] = (), **variables: str) -> None:
        self.pair, self.home = pair, pair.home
        store = KeyStore(pair.work / "keys.toml", pair.work / "pepper")
        self.keys = {
            tenant: store.create(f"{tenant}-{time.monotonic_ns()}", Grant(tenant=tenant))[1]
            for tenant in ("one", "two")
        }
        (pair.work / "gateway.toml").write_text(POLICY)
        self.port, self.admin_port, self.grpc_port = free_ports(3)
        self.log = pair.home / f"gateway-{self.port}.log"
        self._settings = {
            "TIDEGATE_GATEWAY_PORT": str(self.port),
            "TIDEGATE_ADMIN_PORT": str(self.admin_port),
            "TIDEGATE_GRPC_PORT": str(self.grpc_port),
            "TIDEGATE_REPLICAS": ",".join(replicas or pair.addresses),
            "TIDEGATE_DEADLINE_S": str(DEADLINE_S),
            "TIDEGATE_TRITON_KEY_FILE": str(pair.work / "triton.key"),
            "TIDEGATE_KEYS_FILE": str(pair.work / "keys.toml"),
            "TIDEGATE_PEPPER_FILE": str(pair.work / "pepper"),
            "TIDEGATE_POLICY_FILE": str(pair.work / "gateway.toml"),
            "TIDEGATE_STATE_FOLDER": str(pair.work),
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        self.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def start(self) -> None:
        """Start it, or start it again on the same ports once it has ended."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway"],
                env={**environment(self.home), **self._settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def headers(self, tenant: str = "one") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[tenant]}"}

    def metadata(self, tenant: str = "one") -> dict[str, str]:
        """The headers, as gRPC takes them."""
        return {name.lower(): value for name, value in self.headers(tenant).items()}

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def ask(
        self,
        x: object = 1,
        model: str = "plain",
        tenant: str = "one",
        client: httpx.Client | None = None,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> httpx.Response:
        """A V2 inference with one number: one row of it, if the model batches."""
        _, config = self.pair.models[model]
        shape = [1] if "max_batch_size: 0" in config else [1, 1]
        tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": [x]}
        return (client or self.client).post(
            f"/v2/models/{model}/infer",
            json={"inputs": [tensor], **body},
            headers={**self.headers(tenant), **(headers or {})},
        )

    def step(self, identifier, x: float, *, tenant: str = "one", client=None, **flags: bool):
        """One request of a sequence."""
        parameters = {f"sequence_{name}": value for name, value in flags.items()}
        parameters["sequence_id"] = identifier
        return self.ask(x, "tally", tenant, client, parameters=parameters)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path, headers=self.headers())

    def admin(self, path: str) -> Any:
        """What the admin API says under ``/admin/``."""
        url = f"http://127.0.0.1:{self.admin_port}/admin/{path}"
        return httpx.get(url, headers=self.headers()).json()

    def metrics(self, start: str) -> dict[str, float]:
        """The metrics whose names and labels begin so."""
        url = f"http://127.0.0.1:{self.admin_port}/metrics"
        lines = httpx.get(url, headers=self.headers()).text.splitlines()
        samples = (line.rpartition(" ") for line in lines if line.startswith(start))
        return {name: float(value) for name, _, value in samples}

    def put_policy(self, text: str) -> None:
        """Replace the gateway.toml, in one step; it says that it is complete."""
        policy = self.pair.work / "gateway.toml"
        policy.with_suffix(".new").write_text(f"{text}\n# end\n")
        policy.with_suffix(".new").replace(policy)

    def replicas(self) -> list[dict]:
        return self.admin("replicas")["replicas"]

    def health(self) -> list[str]:
        return [replica["health"] for replica in self.replicas()]

    def models(self) -> list[int]:
        """The number of models known for each replica."""
        return [len(replica["models"]) for replica in self.replicas()]

    def heal(self) -> None:
        """Start the servers that have ended; returns once both are asked for all their models. One
        that is back is up before it has loaded them, and before the gateway knows of them."""
        self.pair.heal()
        every = len(self.pair.models)
        counts = [every - ("only_second" in self.pair.models), every]
        wait_until(lambda: self.health() == ["up", "up"], 60, "both replicas are asked")
        wait_until(lambda: self.models() == counts, 60, "their models are known")

    def is_ready(self) -> bool:
        return self._status("/readyz") == 200

    def listens(self) -> bool:
        return self._status("/healthz") == 200

    def _status(self, path: str) -> int:
        """0 while it cannot be reached."""
        with contextlib.suppress(httpx.TransportError):
            return self.client.get(path).status_code
        return 0

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(60)


@contextlib.contextmanager
def load(gateway: Running, clients: int, x: float = 1) -> Iterator[collections.Counter[int]]:
    """``clients`` that call back to back; yields the count of responses by status."""

    def connect() -> httpx.Client:
        return httpx.Client(base_url=gateway.client.base_url, timeout=20)

    try:
        with back_to_back(
            lambda client: gateway.ask(x, client=client).status_code, connect, clients
        ) as calls:
            yield calls.counts
    finally:
        # What was given up at its deadline still sleeps in Triton, on some of the instances.
        wait_until(lambda: _answers_at_once(gateway), 30, "every instance is idle")


def _answers_at_once(gateway: Running) -> bool:
    """Whether each server that is up does: the gateway itself would ask the less busy one."""
    _, config = gateway.pair.models["plain"]
    shape = [1] if "max_batch_size: 0" in config else [1, 1]
    tensor = triton_grpc.InferInput("x", shape, "FP32")
    tensor.set_data_from_numpy(np.ones(shape, np.float32))
    for replica in gateway.replicas():
        if replica["health"] != "up":
            continue
        address = replica["address"].partition("/")[0]
        with triton_grpc.InferenceServerClient(address) as client:
            for _ in range(4):
                started = time.monotonic()
                try:
                    client.infer("plain", [tensor])
                except InferenceServerException:  # it has just gone, and is up no longer
                    return False
                if time.monotonic() - started > 0.5:
                    return False
    return True
