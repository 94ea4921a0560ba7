"""A Triton of a few lines, over gRPC: the test sets what it serves and how it responds."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

Answer = Callable[[service_pb2.ModelInferRequest], Awaitable[float]]


async def _zero(request: service_pb2.ModelInferRequest) -> float:
    return 0.0


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves ``configs``, and returns the value of ``answer`` as tensor y for each inference."""

    def __init__(self, *configs: model_config_pb2.ModelConfig) -> None:
        self.configs = {config.name: config for config in configs}
        self.versions: dict[str, tuple[str, ...]] = {}  # of those that do not have just version 1
        self.answer: Answer = _zero
        self.raw: bytes | None = None  # instead of the value's own bytes
        self.inferences = self.configs_read = 0
        self.takes_s: dict[str, float] = {}  # seconds for RepositoryIndex or ModelConfig
        self.completed: int | None = None  # in its statistics; None: it has none

    async def start(self, port: int = 0) -> str:
        """Start it and return its address."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        return f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        await self._server.stop(None)

    async def ServerLive(self, request, context):  # noqa: N802 - its name in the protocol
        return service_pb2.ServerLiveResponse(live=True)

    async def RepositoryIndex(self, request, context):  # noqa: N802
        await asyncio.sleep(self.takes_s.get("RepositoryIndex", 0))
        index = service_pb2.RepositoryIndexResponse()
        for name in self.configs:
            for version in self.versions.get(name, ("1",)):
                index.models.add(name=name, version=version, state="READY")
        return index

    async def ModelConfig(self, request, context):  # noqa: N802
        await asyncio.sleep(self.takes_s.get("ModelConfig", 0))
        self.configs_read += 1
        if request.name not in self.configs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    async def ModelStatistics(self, request, context):  # noqa: N802
        if self.completed is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no statistics")
        response = service_pb2.ModelStatisticsResponse()
        response.model_stats.add(name=request.name, execution_count=self.completed)
        return response

    async def ModelInfer(self, request, context):  # noqa: N802
        self.inferences += 1
        value = await self.answer(request)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="y", datatype="FP32", shape=[1])
        response.raw_output_contents.append(self.raw or np.float32(value).tobytes())
        return response


def public(name: str, expected: float = 0.0, **parameters: str) -> model_config_pb2.ModelConfig:
    """A pipeline with an endpoint, x to y, and a golden sample with the result for x = 1."""
    config = model_config_pb2.ModelConfig(name=name)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    config.output.add(name="y", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    number = {"type": "number"}
    endpoint_schema = {
        "purpose": "A test.",
        "request": {"type": "object", "properties": {"x": {**number, "x-tensor": "x"}}},
        "response": {"type": "object", "properties": {"y": {**number, "x-tensor": "y"}}},
        "example": {"x": 1},
    }
    sample = {"request": {"x": 1}, "expect": {"y": [expected]}, "tolerance": 0.01}
    texts = {"endpoint": json.dumps(endpoint_schema), "golden": json.dumps(sample), **parameters}
    for key, text in texts.items():
        config.parameters[f"tidegate.{key}"].string_value = text
    return config


def late(seconds: float, value: float = 0.0) -> Answer:
    async def answer(request: service_pb2.ModelInferRequest) -> float:
        await asyncio.sleep(seconds)
        return value

    return answer


def wrong(value: float) -> Answer:
    return late(0, value)


def failing(status: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> Answer:
    async def answer(request: service_pb2.ModelInferRequest) -> float:
        raise RuntimeError("the fake fails")

    return answer
