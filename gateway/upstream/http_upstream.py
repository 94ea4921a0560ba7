"""Short requests over Triton's HTTP/1.1 API.

This costs a fraction of ``grpc.aio`` (docs/performance.md), but Triton's HTTP API does not notice
that a client has left. It is therefore only for requests that are not worth cancelling: those to
models whose config has ``tidegate.cancellable`` = ``"false"``, and those of at most
``tidegate.short_bytes``. While Triton still works on one of these that was given up, others go over
gRPC: clients that ask and leave cannot pile up work that nobody can end.

The request is serialised again from what the tensor firewall accepted, each tensor as the bytes it
checked: Triton cannot parse differently what we have parsed.
"""

import asyncio
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import grpc
import orjson
from tritonclient.grpc import service_pb2

from gateway.errors import GatewayError
from gateway.models.short import NOT_SHORT, Short
from gateway.models.v2_request import Form, V2Request, not_finite
from gateway.render import Reply
from gateway.upstream.http_messages import form_of, is_short, read_response
from gateway.upstream.merging import Merging, Waits
from gateway.upstream.trace_context import Metadata, upstream_metadata
from gateway.upstream.triton_errors import FOR_CLIENT, WORDS, to_gateway_error, translate
from gateway.upstream.triton_http import Response, TritonHttp
from modelspec.address import host_and_port

# Triton's HTTP statuses -> its gRPC statuses. An HTTP 400 stands for three gRPC statuses.
_AMBIGUOUS = 400
_STATUS = {
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_NOT_FINITE = (b"N", b"I")  # as in NaN and Infinity: no number has these letters
# Triton writes an output without spaces and with its name first.
_NAME, _TYPE, _DATA = b'"name":', b',"datatype"', b'"data":['

# Before the tensors; quotes are escaped in strings, so no string contains it.
_VERSION, _HEAD_BYTES = re.compile(rb'"model_version":"(\d{1,20})"'), 1024


class HttpUpstream:
    """One Triton's HTTP API. ``channel``, to its gRPC API, shows when the server is gone."""

    def __init__(self, grpc_address: str, port: int, channel: Any) -> None:
        self._http = TritonHttp(host_and_port(grpc_address)[0], port)
        self._channel = channel
        self._watch: asyncio.Task[None] | None = None
        self._merging = Merging(self._send_message)

    async def infer(self, request: V2Request, timeout_s: float, tenant: str) -> Reply | None:
        """The response as it is, or None if the request has to go over gRPC instead.

        The request must be plain. Cancelling the awaiting task closes the connection, but Triton
        keeps working on the request.
        """
        response = await self._send(encode(request), timeout_s, tenant)
        return to_reply(response) if response else None

    def takes(self, request: service_pb2.ModelInferRequest, short_bytes: int) -> bool:
        """Whether the request may go to ``infer_message``."""
        return is_short(request, short_bytes) and not self._http.is_behind

    async def infer_message(
        self,
        request: service_pb2.ModelInferRequest,
        timeout_s: float,
        tenant: str,
        short: Short = NOT_SHORT,
    ) -> service_pb2.ModelInferResponse | None:
        """As ``infer``, for messages, which may be sent with others if the model says so. One with
        a trace context of its own is sent alone."""
        if short.most_rows and upstream_metadata.get() is None:
            return await self._merging.infer(request, timeout_s, tenant, short)
        return await self._send_message(request, timeout_s, tenant)

    def take_waits(self, model: str) -> Waits:
        """How long requests to the model waited for others, since the last call."""
        return self._merging.take_waits(model)

    async def _send_message(
        self, request: service_pb2.ModelInferRequest, timeout_s: float, tenant: str
    ) -> service_pb2.ModelInferResponse | None:
        head = _whole(form_of(request), request.id, request.raw_input_contents)
        response = await self._send(head, timeout_s, tenant, watches=True)
        if response is None or is_ambiguous(response):
            return None
        if response.status != 200:
            raise _to_gateway_error(response)
        try:
            return read_response(response.body, response.json_length)
        except ValueError as error:
            raise translate(grpc.StatusCode.UNKNOWN, str(error)) from error

    async def _send(
        self, request: bytes, timeout_s: float, tenant: str, *, watches: bool = False
    ) -> Response | None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._drop_with_channel())
        try:
            return await self._http.send(request, timeout_s, tenant, watches=watches)
        except TimeoutError as error:
            raise to_gateway_error(error) from error
        except ConnectionError as error:
            raise translate(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        except ValueError as error:
            raise translate(grpc.StatusCode.UNKNOWN, str(error)) from error

    def close(self) -> None:
        if self._watch:
            self._watch.cancel()
        self._http.drop()

    async def _drop_with_channel(self) -> None:
        """Close the HTTP connections when the gRPC connection is lost: the server has gone.

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
    return _whole(request.form, request.id, [tensor.raw for tensor in request.tensors])


def _whole(form: Form, identifier: str, raws: Iterable[bytes | memoryview]) -> bytes:
    # An id is its client's own: what is kept would be of no use to the next request.
    head, header = _described(form, identifier) if identifier else _head(form)
    metadata = upstream_metadata.get()
    trace = _trace_headers(metadata) if metadata else b""
    return b"".join([head, trace, b"\r\n", header, *raws])


@lru_cache(1024)
def _head(form: Form) -> tuple[bytes, bytes]:
    return _described(form)


def _described(form: Form, identifier: str = "") -> tuple[bytes, bytes]:
    """The head of the HTTP request, without its last line, and V2's JSON header."""
    model, version, tensors, outputs, all_binary = form
    inputs = [
        {
            "name": name,
            "datatype": dtype,
            "shape": shape,
            "parameters": {"binary_data_size": size},
        }
        for name, dtype, shape, size in tensors
    ]
    document: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {"binary_data_output": all_binary},
    }
    if identifier:
        document["id"] = identifier
    if outputs:
        document["outputs"] = [
            {"name": name, "parameters": {"binary_data": is_binary}} for name, is_binary in outputs
        ]
    header = orjson.dumps(document)
    path = f"/versions/{version}" if version else ""
    length = len(header) + sum(size for *_, size in tensors)
    head = (
        f"POST /v2/models/{quote(model, safe='')}{path}/infer HTTP/1.1\r\nHost: triton\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {length}\r\n"
    )
    return head.encode(), header


def _trace_headers(metadata: Metadata) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in metadata]).encode()


def to_reply(response: Response) -> Reply | None:
    """Triton's response as ours. Raises the GatewayError that the gRPC API would have caused.

    None for an error that only the gRPC API specifies: the request has to be sent again over gRPC.
    """
    if is_ambiguous(response):
        return None
    if response.status != 200:
        raise _to_gateway_error(response)
    body, json_length = response.body, response.json_length
    _check_finite(body, len(body) if json_length is None else json_length)
    match = _VERSION.search(body, 0, _HEAD_BYTES)
    version = match[1].decode() if match else ""
    if json_length is None:
        return Reply(200, body, version=version)
    headers = [(b"inference-header-content-length", b"%d" % json_length)]
    return Reply(200, body, b"application/octet-stream", headers, version)


def is_ambiguous(response: Response) -> bool:
    """Whether only the gRPC API says what the error is, if it is one."""
    return response.status == _AMBIGUOUS and not FOR_CLIENT.search(_details(response))


def _check_finite(body: bytes, end: int) -> None:
    """Triton writes NaN and Infinity into its JSON: raise InvalidRequest, as over gRPC.

    The text is searched, since parsing it would take seconds. Quotes are escaped in strings, so no
    string contains ``_DATA``, and numbers contain no bracket.
    """
    if body.find(b"NaN", 0, end) < 0 and body.find(b"Inf", 0, end) < 0:
        return
    at = 0
    while (begin := body.find(_DATA, at, end)) >= 0:
        begin += len(_DATA)
        at = body.index(b"]", begin)
        if any(body.find(letter, begin, at) >= 0 for letter in _NOT_FINITE):
            name = body.rfind(_NAME, 0, begin) + len(_NAME)
            raise not_finite(str(orjson.loads(body[name : body.index(_TYPE, name)])))


def _to_gateway_error(response: Response) -> GatewayError:
    return translate(_STATUS.get(response.status, grpc.StatusCode.UNKNOWN), _details(response))


def _details(response: Response) -> str:
    try:
        return str(orjson.loads(response.body)["error"])
    except (ValueError, KeyError, TypeError):
        return response.body[:WORDS].decode("utf-8", "replace")
