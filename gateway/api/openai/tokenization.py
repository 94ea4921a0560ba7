"""``/tokenize`` and ``/detokenize``, as vLLM's server has them: the model's own tokens of a text or
a conversation, and the text of tokens. For models whose engine can say them (``tokenize`` in their
endpoint schema)."""

from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import orjson

from gateway.api.event_streams import stream_responses
from gateway.api.openai.embeddings import resolve_model
from gateway.api.openai.fields import flag, present
from gateway.api.openai.request import chat_prompt, conversation
from gateway.api.openai.sampling import refuse_unsupported
from gateway.api.openai.token_arrays import are_tokens
from gateway.api.openai.tools import read_tools
from gateway.core import Gateway
from gateway.errors import InvalidRequest, NotFound, UpstreamError, quoted
from gateway.http.handler import IN_BODY, needs
from gateway.http.json_body import parse_json
from gateway.http.large_json import Bounds
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Model
from gateway.models.compiled_endpoint import CompiledEndpoint
from gateway.models.rows import tensor_of
from gateway.models.tensors import check_model, message_of, unpack
from gateway.models.text_binding import Binding, TokenizeBinding
from gateway.render import Reply, json_reply
from gateway.upstream.triton_errors import log_upstream

MAX_IDS = 2**18  # of a text to be put together again
_BOUNDS = Bounds(values=2**19, containers=2**16, keys=2**17)
_Body = Mapping[str, Any]
_OPTIONS = ("add_special_tokens", "add_generation_prompt", "return_token_strs")
_TOKENIZE = frozenset(("model", "prompt", "messages", "tools", *_OPTIONS))
_UNSUPPORTED = {
    "continue_final_message": ((False,), "leave it out"),
    "chat_template": ((), "the model's own is used"),
    "chat_template_kwargs": (({},), "leave it out"),
    "mm_processor_kwargs": (({},), "leave it out"),
}


class TokenizationApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model=IN_BODY)
    async def tokenize(self, context: RequestContext) -> Reply:
        """The tokens of a prompt, or of a conversation as the model's chat template writes it; as
        many as ``usage.prompt_tokens`` of the same request to the text routes."""
        body, model, binding, schema = await self._read(context, "prompt", _TOKENIZE)
        adds = flag(body, "add_special_tokens", True)
        wants_strings = flag(body, "return_token_strs")
        prompt = await self.gateway.work(context, _prompt, body, model, schema)
        asked = {"prompt": prompt, "add_special_tokens": adds}
        reply = await self._ask(context, model, binding, asked)
        tokens = reply["tokens"]
        rendered = {
            "count": len(tokens),
            "max_model_len": reply["max_model_len"],
            "tokens": tokens,
            "token_strs": reply["token_strs"] if wants_strings else None,
        }
        return json_reply(rendered)

    @needs("infer", model=IN_BODY)
    async def detokenize(self, context: RequestContext) -> Reply:
        body, model, binding, _ = await self._read(context, "tokens", {"model", "tokens"})
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or (tokens and not are_tokens(tokens)):
            raise InvalidRequest("'tokens' must be a list of token ids", param="tokens")
        if len(tokens) > MAX_IDS:
            raise InvalidRequest(f"'tokens' may have {MAX_IDS} token ids", param="tokens")
        try:
            reply = await self._ask(context, model, binding, {"tokens": tokens})
        except InvalidRequest as error:
            raise error.at("tokens") from error
        return json_reply({"prompt": reply["prompt"]})

    async def _read(
        self, context: RequestContext, field: str, known: frozenset[str] | set[str]
    ) -> tuple[_Body, Model, TokenizeBinding, CompiledEndpoint]:
        body = await self.gateway.read(context, partial(_fields, field))
        model, schema, raw = resolve_model(self.gateway, context, "tokenize", body)
        refuse_unsupported(body, known, _UNSUPPORTED)
        return body, model, TokenizeBinding.compile(raw, model.inputs, model.outputs), schema

    async def _ask(
        self, context: RequestContext, model: Model, binding: TokenizeBinding, asked: _Body
    ) -> dict[str, Any]:
        """What the engine answers, once the request is admitted. No token limit is charged: the
        model computes nothing."""
        tensors = [tensor_of(model, binding.request, [orjson.dumps(asked)])]
        check_model(model, tensors)
        message = message_of(model.name, tensors)
        return await context.while_connected(self._reply(context, model, binding, message))

    async def _reply(
        self, context: RequestContext, model: Model, binding: TokenizeBinding, message: Any
    ) -> dict[str, Any]:
        admission = await context.enter(self.gateway.access_control.admit(context, model, 0))
        admission.settle(0)
        raw = b""
        responses = stream_responses(self.gateway, context, model, message)
        async with aclosing(responses):
            async for response in responses:
                for output, data in zip(
                    response.outputs, response.raw_output_contents, strict=True
                ):
                    if output.name == binding.text:
                        raw += b"".join(unpack("BYTES", [-1], data))
        try:
            reply: dict[str, Any] = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            log_upstream(grpc.StatusCode.UNKNOWN, f"tokenizer: {raw[:80]!r}")
            raise UpstreamError("the model's tokenizer gave no answer: report this") from error
        return reply


def _fields(required: str, data: bytes) -> dict[str, Any]:
    return present(parse_json(data, _BOUNDS), required)


def _prompt(body: _Body, model: Model, schema: CompiledEndpoint) -> str:
    """The text to tokenize. Raises InvalidRequest and NotFound."""
    if "messages" not in body:
        for field in ("tools", "add_generation_prompt"):
            if field in body:
                raise InvalidRequest(f"{field!r} needs 'messages': leave it out", param=field)
        if not isinstance(body.get("prompt"), str):
            raise InvalidRequest("'prompt' must be a text, or send 'messages'", param="prompt")
        return str(body["prompt"])
    if "prompt" in body:
        raise InvalidRequest("send 'prompt' or 'messages', not both", param="prompt")
    if "chat" not in schema.openai:
        raise NotFound(f"model {quoted(model.name)} does not serve chat: send 'prompt'")
    binding = Binding.compile(schema.openai["chat"], model.inputs, model.outputs)
    tools = read_tools(body, binding)
    messages = conversation(body["messages"], binding)
    opens_turn = flag(body, "add_generation_prompt", True)
    text: str = chat_prompt(messages, tools, binding, opens_turn).values[0]
    return text
