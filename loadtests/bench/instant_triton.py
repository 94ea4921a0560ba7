"""A Triton that answers at once: ``python -m loadtests.bench.instant_triton PORT MODELS``, or with
files ``config.pbtxt`` instead of the number of models: their models alone.

What costs the gateway time as its catalogue grows shows only if nothing behind it does. Each model
``m0``, ``m1``, ... returns its FP32 input; it speaks what the gateway asks over gRPC, and no more.
"""

import asyncio
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from modelspec.dtypes import NUMERIC_TYPES, protocol_name
from modelspec.golden import Golden
from modelspec.parameters import GOLDEN_PARAMETER
from modelspec.pbtxt import parse


class InstantTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, n_models: int) -> None:
        self.index = service_pb2.RepositoryIndexResponse()
        for number in range(n_models):
            self.index.models.add(name=f"m{number}", version="1", state="READY")

    async def ServerLive(self, request: object, context: object) -> Any:  # noqa: N802 - the protocol's
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelReady(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    async def RepositoryIndex(self, request: object, context: object) -> Any:  # noqa: N802
        return self.index

    async def ModelConfig(self, request: Any, context: Any) -> object:  # noqa: N802
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=64)
        config.input.add(name="INPUT0", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
        config.output.add(name="OUTPUT0", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: Any, context: Any) -> object:  # noqa: N802
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        response.outputs.add(name="OUTPUT0", datatype="FP32", shape=request.inputs[0].shape)
        response.raw_output_contents.append(request.raw_input_contents[0])
        return response


class InstantModel(InstantTriton):
    """One model, with the config of a ``config.pbtxt`` but for its golden sample, which asks for
    the real model's answer."""

    def __init__(self, file: Path) -> None:
        super().__init__(0)
        self.config = parse(file.read_text(encoding="utf-8"))
        self.config.parameters.pop(GOLDEN_PARAMETER, None)
        self.index.models.add(name=self.config.name, version="1", state="READY")

    async def ModelConfig(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ModelConfigResponse(config=self.config)


class InstantModels(InstantTriton):
    """Models with the configs of some ``config.pbtxt``. One that has a golden sample answers every
    request as that expects, the others as ``InstantTriton``."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(0)
        self.configs: dict[str, model_config_pb2.ModelConfig] = {}
        self.answers: dict[str, service_pb2.ModelInferResponse] = {}
        for file in files:
            config = parse(file.read_text(encoding="utf-8"))
            config.ClearField("ensemble_scheduling")  # its steps are not here
            self.configs[config.name] = config
            self.index.models.add(name=config.name, version="1", state="READY")
            if GOLDEN_PARAMETER in config.parameters:
                self.answers[config.name] = golden_answer(config)

    async def ModelConfig(self, request: Any, context: object) -> object:  # noqa: N802
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    async def ModelInfer(self, request: Any, context: Any) -> object:  # noqa: N802
        answer = self.answers.get(request.model_name)
        return answer or await super().ModelInfer(request, context)


def golden_answer(config: model_config_pb2.ModelConfig) -> service_pb2.ModelInferResponse:
    """What the golden sample expects for each output of one row, and other numbers after that."""
    expected = Golden.parse(config.parameters[GOLDEN_PARAMETER].string_value).expect
    response = service_pb2.ModelInferResponse(model_name=config.name, model_version="1")
    for output in config.output:
        dtype = protocol_name(output.data_type)
        values = np.sin(np.arange(math.prod(output.dims))).astype(NUMERIC_TYPES[dtype])
        values[: len(expected.get(output.name, ()))] = expected.get(output.name, ())
        response.outputs.add(name=output.name, datatype=dtype, shape=[1, *output.dims])
        response.raw_output_contents.append(values.tobytes())
    return response


async def serve(port: int, servicer: InstantTriton) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    port, models = int(sys.argv[1]), sys.argv[2]
    are_files = models.endswith(".pbtxt")
    files = [Path(argument) for argument in sys.argv[2:]] if are_files else []
    triton = InstantModels(files) if are_files else InstantTriton(int(models))
    asyncio.run(serve(port, triton))
