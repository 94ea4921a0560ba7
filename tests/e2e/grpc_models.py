"""Small models, a Triton that serves them, and a gateway's gRPC API on it, in a thread."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.api.grpc.server import GrpcServer
from gateway.background import Background
from gateway.core import Gateway
from gateway.policy.principal import Grant
from gateway.settings import Settings
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from tidegate.app.key_store import KeyStore

# y is x; a negative x is an error, and 1000 + s sleeps for s seconds.
PLAIN = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.item() < -1:
            error = pb_utils.TritonError("told to fail\\nin two lines")
            return pb_utils.InferenceResponse(error=error)
        if x.item() < 0:
            raise RuntimeError("raised at /root/model.bin")
        if x.item() > 1000:
            time.sleep(x.item() - 1000)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x)])
"""
# Returns its inputs, whatever they are.
ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([
            pb_utils.Tensor(tensor.name() + "_back", tensor.as_numpy())
            for tensor in request.inputs()]) for request in requests]
"""
# Sleeps in small steps until x seconds are over or the caller has left, and counts the latter.
SLEEPER = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.cancelled = 0

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        seconds = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().item()
        if seconds < 0:
            raise RuntimeError("secret path /root/model.bin")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if request.is_cancelled():
                self.cancelled += 1
                break
            time.sleep(0.01)
        answer = np.array([self.cancelled], dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", answer)])
"""
# Answers 0, 1, 2, ... x - 1, every 20 ms, until its caller has left; a negative x is an error, and
# x = 0 returns how many callers have left.
COUNTER = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.gone = 0

    def execute(self, requests):
        for request in requests:
            self._count(request, request.get_response_sender())
        return None

    def _count(self, request, sender):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().item()
        if x < 0:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("secret /root")))
        if x == 0:
            sender.send(self._answer(self.gone))
        for n in range(int(x)):
            if sender.is_cancelled():
                self.gone += 1
                break
            sender.send(self._answer(n))
            time.sleep(0.02)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self, n):
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([n], np.float32))])
"""
# Adds up a sequence's inputs; returns the sum and the sequence id that Triton got.
TALLY = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x, start, corrid = (pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
                            for name in ("x", "START", "CORRID"))
        self.sums[corrid] = x + (0 if start else self.sums[corrid])
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("y", np.array([[self.sums[corrid]]], np.float32)),
            pb_utils.Tensor("id", np.array([[corrid]], np.uint64))])
"""
HEAD = 'backend: "python"\n'
ONE = (
    'max_batch_size: 0 input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
    'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
)
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
EVERY = ("BOOL", "UINT8", "UINT64", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "STRING")
TENSORS = "".join(
    f'input {{ name: "{t}" data_type: TYPE_{t} dims: -1 optional: true }}\n'
    f'output {{ name: "{t}_back" data_type: TYPE_{t} dims: -1 }}\n'
    for t in EVERY
)


def taking(seconds: float) -> str:
    """The source of ``PLAIN``, where each request takes so long."""
    head = "    def _answer(self, request):\n"
    return PLAIN.replace(head, f"{head}        time.sleep({seconds})\n")


def batched(max_batch_size: int) -> str:
    """As ``ONE``, with a batch axis."""
    return ONE.replace("max_batch_size: 0", f"max_batch_size: {max_batch_size}")


def instances(count: int) -> str:
    return f"instance_group {{ count: {count} kind: KIND_CPU }}\n"


def parameter(name: str, value: object) -> str:
    """A parameter of a config: a text, or a JSON document."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(text)} }} }}\n'


def endpoint(*outputs: str, **keywords: object) -> str:
    """The endpoint schema of a model that takes the number ``x``, which has these keywords, and
    returns the numbers ``outputs``."""
    document = {
        "purpose": "A test.",
        "request": {"type": "object", "properties": {"x": _number("x", **keywords)}},
        "response": {"type": "object", "properties": {name: _number(name) for name in outputs}},
        "example": {"x": 1},
    }
    return parameter("tidegate.endpoint", document)


def golden(x: float, **outputs: float) -> str:
    """The golden sample of such a model. With one, a model says that it may be asked again."""
    expect = {name: [value] for name, value in outputs.items()}
    return parameter("tidegate.golden", {"request": {"x": x}, "expect": expect, "tolerance": 0.01})


def _number(tensor: str, **keywords: object) -> dict[str, object]:
    return {"type": "number", "x-tensor": tensor, **keywords}


NOT_CANCELLABLE = parameter("tidegate.cancellable", "false")
SEQUENCE = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
output { name: "id" data_type: TYPE_UINT64 dims: 1 }
sequence_batching {
  max_sequence_idle_microseconds: 30000000
  oldest { max_candidate_sequences: 8 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
  control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
}
"""
MODELS = {
    "echo": (ECHO, "max_batch_size: 0\n" + TENSORS),
    "sleeper": (SLEEPER, ONE),
    "counter": (COUNTER, ONE + DECOUPLED),
    "tally": (TALLY, SEQUENCE),
    "hidden": (ECHO, ONE + parameter("tidegate.internal", "true")),
}
POLICY = """
[tenants.all]
models = ["*"]
[tenants.some]
models = ["echo", "tally"]
[tenants.slow]
models = ["*"]

[[limits]]
scope = "tenant"
kind = "requests"
amount = 2
window_s = 60
tenants = ["slow"]
"""


@contextlib.contextmanager
def serving(home: Path, models: Mapping[str, tuple[str, str]] = MODELS) -> Iterator[TritonServer]:
    """A Triton with these models loaded: name -> (code, config)."""
    repository = home / "model_repository"
    for name, (code, config) in models.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(code)
        (repository / name / "config.pbtxt").write_text(HEAD + config)
    ports = Ports(*free_ports(3))
    options = LaunchOptions(
        ModelRepository(repository), home / ".tidegate", ports, auto_complete=False
    )
    with TritonServer(options) as running:
        for name in models:
            running.control.load(name)
        yield running
        running.stop(gently=False)  # in a tenth of a second, where a gentle end takes four


class RunningGrpcServer:
    """A gateway and its gRPC API; ``keys`` has a key for each tenant of ``POLICY``."""

    def __init__(
        self, triton: TritonServer, home: Path, policy: str = POLICY, **settings: object
    ) -> None:
        home.mkdir(exist_ok=True)
        (home / "gateway.toml").write_text(policy)
        store = KeyStore(home / "keys.toml", home / "pepper")
        self.keys = {
            tenant: store.create(tenant, Grant(tenant=tenant))[1]
            for tenant in ("all", "some", "slow", "reader")
        }
        self.keys["reader"] = store.create("reader", Grant("all", scopes=("read",)))[1]
        self.audit_log = home / "audit.log"
        self._settings = Settings(
            replicas=(triton.control.address,),
            triton_key_file=triton.options.work_dir / "triton.key",
            keys_file=home / "keys.toml",
            pepper_file=home / "pepper",
            policy_file=home / "gateway.toml",
            state_folder=home,
            **settings,  # type: ignore[arg-type]
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def headers(self, tenant: str = "all") -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tenant]}"}

    def __enter__(self) -> "RunningGrpcServer":
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *error: object) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work, timeout_s: float = 20):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def _open(self) -> None:
        self.gateway = Gateway(self._settings)
        await self.gateway.access_control.open()
        self._background = Background(self.gateway)
        await self._background.refresh_catalogue()
        self._following = asyncio.create_task(self._follow())
        self.api = GrpcServer(self.gateway, 0)
        self.port = await self.api.start()

    async def _follow(self) -> None:
        """Refresh the replicas as the background task does; keys, rules and probes stay as they
        are."""
        while True:
            await asyncio.sleep(0.5)
            await self._background.check_replicas()
            await self._background.refresh_catalogue()

    async def _close(self) -> None:
        self._following.cancel()
        await self.api.stop(1)
        await self.gateway.pool.close()
        await self.gateway.access_control.close()
