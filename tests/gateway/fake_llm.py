"""A language model in a fake Triton, by the exact contract of Triton's vLLM backend, and a gateway
on it: the test writes what the model writes."""

import asyncio
import codecs
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from tritonclient.grpc import model_config_pb2, service_pb2

from gateway.app import create_app
from gateway.models.tensors import pack, unpack
from gateway.settings import Settings
from modelspec.parameters import NO_MODEL
from tests.gateway.fake_triton import FakeTriton
from tidegate.app.key_store import KeyStore

FINAL = "triton_final_response"
# What the model writes for a prompt and its sampling parameters: tokens, bytes each.
Writer = Callable[[str, dict[str, Any]], Sequence[bytes]]
_OUTPUTS = {
    "text_output": "TYPE_STRING",
    "finish_reason": "TYPE_STRING",
    "num_input_tokens": "TYPE_UINT32",
    "num_output_tokens": "TYPE_UINT32",
    "logprobs": "TYPE_STRING",
}


def llm_config(name: str = "llm", **binding: Any) -> model_config_pb2.ModelConfig:
    """A config with this binding for chat and completions, of an engine that says its tokens."""
    config = model_config_pb2.ModelConfig(name=name)
    config.model_transaction_policy.decoupled = True
    for tensor in ("text_input", "sampling_parameters", "tokenizer_request"):
        config.input.add(name=tensor, data_type="TYPE_STRING", dims=[1], optional=True)
    flags = ("finish_reason", "num_input_tokens", "num_output_tokens", "logprobs")
    for flag in ("stream", "exclude_input_in_output", *(f"return_{output}" for output in flags)):
        config.input.add(name=flag, data_type="TYPE_BOOL", dims=[1], optional=True)
    for output, data_type in _OUTPUTS.items():
        config.output.add(name=output, data_type=data_type, dims=[-1])
    text = {"type": "string"}
    schema = {
        "purpose": "A test.",
        "request": {
            "type": "object",
            "properties": {"text_input": {**text, "x-tensor": "text_input"}},
        },
        "response": {
            "type": "object",
            "properties": {"text_output": {**text, "x-tensor": "text_output"}},
        },
        "example": {"text_input": "Hello"},
        "openai": {"chat": binding, "completions": binding, "tokenize": {}},
    }
    config.parameters["tidegate.endpoint"].string_value = json.dumps(schema)
    return config


class FakeLlm(FakeTriton):
    def __init__(self, *configs: model_config_pb2.ModelConfig) -> None:
        super().__init__(*configs)
        self.write: Writer = lambda prompt, sampling: [b"Hello", b"!"]
        self.delay_s = 0.0  # before each token
        self.refusal = ""  # what the engine says of every request that it refuses
        self.requests: list[dict[str, Any]] = []  # prompt and sampling parameters
        self.made = self.cancelled = 0

    async def ModelStreamInfer(self, request_iterator, context):  # noqa: N802 - its name
        async for request in request_iterator:
            if request.model_name == NO_MODEL:
                yield service_pb2.ModelStreamInferResponse(error_message="no such model")
                continue
            try:
                async for message in self._stream(request):
                    yield message
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    async def _stream(self, request):
        inputs = {
            tensor.name: unpack(tensor.datatype, tensor.shape, raw).ravel()[0]
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        if "tokenizer_request" in inputs:
            yield _tokenized(request.model_name, json.loads(inputs["tokenizer_request"]))
            return
        prompt = inputs["text_input"].decode()
        sampling = json.loads(inputs["sampling_parameters"])
        self.requests.append({"prompt": prompt, "sampling": sampling})
        if self.refusal:
            kind = " context_length" if "the context holds" in self.refusal else ""
            error = f"[tidegate:invalid_input{kind}] {self.refusal}"
            yield service_pb2.ModelStreamInferResponse(error_message=error)
            return
        decoder = codecs.getincrementaldecoder("utf-8")()
        tokens = self.write(prompt, sampling)
        most = sampling["max_tokens"]
        end = "length" if len(tokens) > most else "stop"
        tokens = tokens[:most]
        for at, token in enumerate(tokens):
            await asyncio.sleep(self.delay_s)
            self.made += 1
            is_last = at + 1 == len(tokens)
            text = decoder.decode(token).encode()
            entry = (
                json.dumps(_entry(token, sampling["logprobs"])) if "logprobs" in sampling else ""
            )
            response = service_pb2.ModelInferResponse(
                model_name=request.model_name, model_version="1", id=request.id
            )
            response.parameters[FINAL].bool_param = is_last
            _add(response, "text_output", "BYTES", [1], text)
            _add(response, "finish_reason", "BYTES", [1], end.encode() if is_last else b"None")
            _add(response, "num_input_tokens", "UINT32", [], len(prompt.split()))
            _add(response, "num_output_tokens", "UINT32", [1], 1)
            if inputs.get("return_logprobs"):
                _add(
                    response, "logprobs", "BYTES", [1], f"[{entry}]".encode() if entry else b"null"
                )
            yield service_pb2.ModelStreamInferResponse(infer_response=response)


def _tokenized(model: str, asked: dict[str, Any]) -> service_pb2.ModelStreamInferResponse:
    """The engine's tokens are the bytes of the UTF-8, after a first one (256) if asked for."""
    if "tokens" in asked and max(asked["tokens"], default=0) > 255:
        error = "[tidegate:invalid_input] the token id is not in the vocabulary"
        return service_pb2.ModelStreamInferResponse(error_message=error)
    if "tokens" in asked:
        answer: dict[str, Any] = {"prompt": bytes(asked["tokens"]).decode("utf-8", "replace")}
    else:
        tokens = [256] * asked["add_special_tokens"] + list(asked["prompt"].encode())
        answer = {"tokens": tokens, "token_strs": list(map(str, tokens)), "max_model_len": 2048}
    response = service_pb2.ModelInferResponse(model_name=model)
    response.parameters[FINAL].bool_param = True
    _add(response, "text_output", "BYTES", [1], json.dumps(answer).encode())
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def _add(response, name: str, dtype: str, shape: list[int], value: Any) -> None:
    response.outputs.add(name=name, datatype=dtype, shape=shape)
    response.raw_output_contents.append(pack(name, dtype, [value]))


def _entry(token: bytes, top: int) -> dict[str, dict[str, Any]]:
    """The sampled token is never the most likely one, but the second."""
    ranked = [(token.decode("utf-8", "replace"), -1.5, 2), ("<other>", -0.5, 1)]
    ranked += [(f"<{rank}>", -1.0 - rank, rank) for rank in range(3, top + 1)]
    return {
        str(number): {"logprob": logprob, "rank": rank, "decoded_token": text}
        for number, (text, logprob, rank) in enumerate(ranked[: max(1, top, min(top + 1, 2))])
    }


@dataclass
class ServedLlm:
    url: str
    key: str
    llm: FakeLlm


@contextlib.contextmanager
def served_llm(
    folder: Path,
    fake: FakeLlm | None = None,
    settings: Mapping[str, Any] | None = None,
    **binding: Any,
) -> Iterator[ServedLlm]:
    """A gateway with the model ``llm``, or with the models of ``fake``, and these settings, both in
    a thread of this process."""
    _, key = KeyStore(folder / "keys.toml", folder / "pepper").create("app")
    llm = fake or FakeLlm(llm_config(**binding))
    ready = threading.Event()
    running: dict[str, Any] = {}

    async def serve() -> None:
        all_settings = Settings(
            replicas=(await llm.start(),),
            keys_file=folder / "keys.toml",
            pepper_file=folder / "pepper",
            policy_file=folder / "gateway.toml",
            state_folder=folder,
            triton_key_file=folder / "triton.key",
            **(settings or {}),
        )
        (folder / "triton.key").write_text("key")
        config = uvicorn.Config(create_app(all_settings), port=0, ws="none", log_config=None)
        server = running["server"] = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        running["port"] = server.servers[0].sockets[0].getsockname()[1]
        ready.set()
        await serving
        await llm.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield ServedLlm(f"http://127.0.0.1:{running['port']}", key, llm)
    finally:
        running["server"].should_exit = True
        thread.join(30)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def words(text: str) -> list[bytes]:
    """The text as tokens of one word each."""
    first, *rest = text.split(" ")
    return [first.encode(), *(f" {word}".encode() for word in rest)]
