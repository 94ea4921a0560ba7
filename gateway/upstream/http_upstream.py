"""V2 requests of short models over Triton's HTTP/1.1 API, whose answers go on as they are.

It costs a fraction of what ``grpc.aio`` does (docs/performance.md), but Triton does not notice a
client that left there. Only models that declare ``tidegate.short`` therefore come here. What is
sent is written anew from what the firewall let through, each tensor as the bytes that it checked:
nothing that we read in one way can be read in another way by Triton.
"""

import asyncio
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import grpc
import orjson

from gateway.errors import GatewayError
from gateway.http.handler import Reply
from gateway.models.v2_request import V2Request, not_finite
from gateway.upstream.server import WORDS, to_gateway_error, translate
from gateway.upstream.triton_http import Answer, TritonHttp
from modelspec.address import host_and_port

# How Triton's HTTP API says what its gRPC API says with a status. It says 400 for three of them.
_MANY = 400
_STATUS = {
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_NOT_FINITE = (b"N", b"I")  # of NaN and Infinity: no number has these letters
# As Triton writes an output, with no space, and its name first.
_NAME, _TYPE, _DATA = b'"name":', b',"datatype"', b'"data":['


class HttpUpstream:
    """One Triton's HTTP API. ``channel`` is that to its gRPC API, by which its end is noticed."""

    def __init__(self, grpc_address: str, port: int, channel: Any) -> None:
        self._http = TritonHttp(host_and_port(grpc_address)[0], port)
        self._channel = channel
        self._watch: asyncio.Task[None] | None = None

    async def infer(self, request: V2Request, timeout_s: float, tenant: str) -> Reply | None:
        """The answer; None when that cannot be had here or now, and gRPC should be asked.

        The request must be plain. Cancelling the awaiting task closes the connection, but Triton
        works on.
        """
        if self._watch is None:
            self._watch = asyncio.create_task(self._drop_with_channel())
        try:
            answer = await self._http.ask(encode(request), timeout_s, tenant)
        except TimeoutError as error:
            raise to_gateway_error(error) from error
        except ConnectionError as error:
            raise translate(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        except ValueError as error:
            raise translate(grpc.StatusCode.UNKNOWN, str(error)) from error
        return relayed(answer) if answer else None

    def close(self) -> None:
        if self._watch:
            self._watch.cancel()
        self._http.drop()

    async def _drop_with_channel(self) -> None:
        """Close the HTTP connections when gRPC's is lost: the server has gone.

        They would not close by themselves: processes that Triton forked have inherited them.
        """
        state = self._channel.get_state(try_to_connect=True)
        while True:
            await self._channel.wait_for_state_change(state)
            was_ready = state is grpc.ChannelConnectivity.READY
            state = self._channel.get_state(try_to_connect=True)
            if was_ready and state is not grpc.ChannelConnectivity.READY:
                self._http.drop()


def encode(request: V2Request) -> bytes:
    """The whole HTTP request; the request must be plain."""
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.dtype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(tensor.raw)},
        }
        for tensor in request.tensors
    ]
    document: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {"binary_data_output": request.all_binary},
    }
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {"name": name, "parameters": {"binary_data": request.wants_binary(name)}}
            for name in request.outputs
        ]
    header = orjson.dumps(document)
    raw = [tensor.raw for tensor in request.tensors]
    head = (
        f"{_target(request.model, request.version)}"
        f"Inference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(header) + sum(map(len, raw))}\r\n\r\n"
    )
    return b"".join((head.encode(), header, *raw))


@lru_cache(1024)
def _target(model: str, version: str) -> str:
    path = f"/versions/{version}" if version else ""
    return f"POST /v2/models/{quote(model, safe='')}{path}/infer HTTP/1.1\r\nHost: triton\r\n"


def relayed(answer: Answer) -> Reply | None:
    """Triton's answer as ours; the GatewayError that gRPC would have given instead of another.

    None for a refusal of which only gRPC says what it is: it has to be asked again.
    """
    if answer.status == _MANY:
        return None
    if answer.status != 200:
        raise _refusal(answer)
    body, json_length = answer.body, answer.json_length
    _check_finite(body, len(body) if json_length is None else json_length)
    if json_length is None:
        return Reply(200, body)
    headers = [(b"inference-header-content-length", b"%d" % json_length)]
    return Reply(200, body, b"application/octet-stream", headers)


def _check_finite(body: bytes, end: int) -> None:
    """Triton writes NaN and Infinity into its JSON; InvalidRequest as over gRPC.

    The elements are looked at where they lie, since to parse them takes seconds. A quote in a
    string is escaped, so ``_DATA`` is in none, and numbers hold no bracket.
    """
    at = 0
    while (begin := body.find(_DATA, at, end)) >= 0:
        begin += len(_DATA)
        at = body.index(b"]", begin)
        if any(body.find(letter, begin, at) >= 0 for letter in _NOT_FINITE):
            name = body.rfind(_NAME, 0, begin) + len(_NAME)
            raise not_finite(str(orjson.loads(body[name : body.index(_TYPE, name)])))


def _refusal(answer: Answer) -> GatewayError:
    try:
        details = str(orjson.loads(answer.body)["error"])
    except (ValueError, KeyError, TypeError):
        details = answer.body[:WORDS].decode("utf-8", "replace")
    return translate(_STATUS.get(answer.status, grpc.StatusCode.UNKNOWN), details)
