"""Shadows: a share of a pipeline's requests is sent once more, to another version or pipeline, once
the caller has the response; the two responses are compared (docs/publishing.md).

Nobody waits for a shadow. It takes no permit and no turn, counts for no replica and no limit, and
there are few of them at a time: what is too much, or comes while the pipeline or its shadow has a
queue, is dropped and counted, and so is what no server had room for or was there to answer. One
whose server is lost while it works on it has failed: the shadow may be what ended that.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from gateway.errors import GatewayError, NoCapacity, ReplicaLost
from gateway.http.request_context import RequestContext, ShadowedRequest
from gateway.metrics import Metrics, ShadowResult
from gateway.models.catalogue import Catalogue
from gateway.models.v2_request import V2Request
from gateway.render import Reply
from gateway.upstream import trace_context
from gateway.upstream.replicas import ReplicaPool
from modelspec.dtypes import NUMERIC_TYPES
from modelspec.elements import decode, encode

if TYPE_CHECKING:
    from gateway.policy.gateway_toml import Shadow
    from gateway.upstream.admission import FairQueue

log = logging.getLogger("gateway")
MOST_AT_ONCE = 4  # in this worker
MOST_BYTES = 2**20  # of a request and its response together
# How long a shadow may take: as many times as long as the pipeline took, and so long at least.
SLOWER, TIMEOUT_S = 2.0, 10.0
# A response that was handed over may not have been written yet.
AFTER_S = 0.01
TELL_S = 10.0  # between two lines of the log about a shadow that differs or fails
# Without a golden sample nothing says how near two responses have to be.
RELATIVE, ABSOLUTE = 1e-5, 1e-6

Request: TypeAlias = service_pb2.ModelInferRequest | bytes | V2Request
Response: TypeAlias = service_pb2.ModelInferResponse | bytes | Reply


class _Pair(NamedTuple):
    request: service_pb2.ModelInferRequest
    response: service_pb2.ModelInferResponse


class Shadows:
    """Sends the shadows of one worker."""

    def __init__(
        self, pool: ReplicaPool, metrics: Metrics, queues: "Mapping[str, FairQueue]"
    ) -> None:
        self._pool, self._metrics, self._queues = pool, metrics, queues
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_at = -TELL_S

    def draw(
        self, context: RequestContext, name: str, shadow: "Shadow", catalogue: Catalogue
    ) -> None:
        """Put a ShadowedRequest into the context of the pipeline's share of the requests."""
        model = catalogue.models.get(shadow.to)
        is_drawn = 100 * random.random() < shadow.percent  # noqa: S311 - no secret
        if is_drawn and model and not model.decoupled and model.sequences is None:
            context.shadow = ShadowedRequest(name, shadow.to)

    def send(self, context: RequestContext, drawn: ShadowedRequest, catalogue: Catalogue) -> None:
        """Send the shadow of a request whose caller has its response, unless that would be too
        much; returns at once."""
        request, response = drawn.request, drawn.response
        name, to = drawn.pipeline, drawn.to
        if request is None or response is None:
            return  # it was answered from the cache, or is part of a sequence
        is_large = _size(request) + _size(response) > MOST_BYTES
        if is_large or len(self._tasks) >= MOST_AT_ONCE or self._has_queue(name, to):
            self._metrics.shadowed(name, to, "dropped")
            return
        tolerance = _tolerance(catalogue, name, to)
        work = self._compare(context, name, to, request, response, tolerance, drawn.upstream_s)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _has_queue(self, *names: str) -> bool:
        return any(name in self._queues and self._queues[name].waiting for name in names)

    async def _compare(
        self,
        context: RequestContext,
        name: str,
        to: str,
        request: Request,
        response: Response,
        tolerance: float | None,
        primary_s: float,
    ) -> None:
        request_id = context.request_id
        await asyncio.sleep(AFTER_S)
        trace_context.upstream_metadata.set(None)  # it is no part of the caller's trace
        result: ShadowResult = "failed"
        what = ""
        try:
            primary = _pair(request, response)
            primary.request.model_name, primary.request.model_version = to, ""
            upstream = self._pool.unpermitted(to)
            started = time.perf_counter()
            timeout_s = max(TIMEOUT_S, SLOWER * primary_s)
            shadow_response = await upstream.infer(primary.request, timeout_s)
            shadow_s = time.perf_counter() - started
            what = difference(primary.response, shadow_response, tolerance)
            result = "differs" if what else "agrees"
            self._metrics.shadow_took(name, to, primary_s, shadow_s)
        except NoCapacity as error:  # it is full or gone: that says nothing of its responses
            what = error.message
            if not (isinstance(error, ReplicaLost) and error.was_sent):
                result = "dropped"
        except GatewayError as error:
            what = error.message
        except Exception:
            log.exception("%s the shadow %s of %s", request_id, to, name)
        self._metrics.shadowed(name, to, result)
        if what and time.monotonic() - self._told_at > TELL_S:
            self._told_at = time.monotonic()
            became = "was dropped" if result == "dropped" else result
            log.warning("%s the shadow %s of %s %s: %s", request_id, to, name, became, what)


def difference(
    primary: service_pb2.ModelInferResponse,
    shadow: service_pb2.ModelInferResponse,
    tolerance: float | None,
) -> str:
    """'' if the shadow has every output of the primary response, of the same type and shape and
    with the same elements; else what differs first. Floating-point elements may differ by
    ``tolerance`` (None: by what rounding explains), and NaN is equal to NaN."""
    indices = {output.name: index for index, output in enumerate(shadow.outputs)}
    for index, output in enumerate(primary.outputs):
        if output.name not in indices:
            return f"there is no output {output.name!r}"
        other_index = indices[output.name]
        other = shadow.outputs[other_index]
        if output.datatype != other.datatype:
            return f"output {output.name!r} is {other.datatype} instead of {output.datatype}"
        if list(output.shape) != list(other.shape):
            return (
                f"output {output.name!r} has the shape {list(other.shape)} instead of "
                f"{list(output.shape)}"
            )
        own, others = _elements(primary, index), _elements(shadow, other_index)
        if own != others and not _are_near(output.datatype, own, others, tolerance):
            return f"the elements of output {output.name!r}"
    return ""


def _elements(response: service_pb2.ModelInferResponse, index: int) -> bytes:
    if response.raw_output_contents:
        raw: bytes = response.raw_output_contents[index]
    else:
        raw = response.outputs[index].contents.SerializeToString(deterministic=True)
    return raw


def _are_near(dtype: str, own: bytes, others: bytes, tolerance: float | None) -> bool:
    if dtype not in NUMERIC_TYPES or NUMERIC_TYPES[dtype].kind != "f":
        return False
    try:
        actual, expected = decode(dtype, others), decode(dtype, own)
    except ValueError:
        return False
    if len(actual) != len(expected):
        return False
    relative, absolute = (RELATIVE, ABSOLUTE) if tolerance is None else (0.0, tolerance)
    near = np.allclose(
        actual.astype(np.float64),
        expected.astype(np.float64),
        rtol=relative,
        atol=absolute,
        equal_nan=True,
    )
    return bool(near)


def _tolerance(catalogue: Catalogue, name: str, to: str) -> float | None:
    """The larger of those that the proofs of the two gave their golden samples."""
    models = [catalogue.models.get(name), catalogue.models.get(to)]
    tolerances = [model.probe.golden.tolerance for model in models if model and model.probe]
    return max(tolerances, default=None)


def _size(message: Request | Response) -> int:
    if isinstance(message, bytes):
        return len(message)
    if isinstance(message, Reply):
        return len(message.body)
    if isinstance(message, V2Request):
        return sum(len(tensor.raw) for tensor in message.tensors)
    return int(message.ByteSize())


def _pair(request: Request, response: Response) -> _Pair:
    """Both as messages of their own, which may be changed."""
    sent = service_pb2.ModelInferRequest()
    if isinstance(request, bytes):
        sent.ParseFromString(request)
    else:
        sent.CopyFrom(request.message() if isinstance(request, V2Request) else request)
    if isinstance(response, Reply):
        return _Pair(sent, _read_reply(response))
    if isinstance(response, bytes):
        return _Pair(sent, service_pb2.ModelInferResponse.FromString(response))
    return _Pair(sent, response)


def _read_reply(reply: Reply) -> service_pb2.ModelInferResponse:
    """Triton's response over HTTP/1.1, in JSON and perhaps with a binary tail."""
    end = len(reply.body)
    with contextlib.suppress(KeyError):
        end = int(dict(reply.headers)[b"inference-header-content-length"])
    response = service_pb2.ModelInferResponse()
    start = end
    for output in orjson.loads(reply.body[:end])["outputs"]:
        response.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"]
        )
        if "data" in output:
            raw = encode(output["datatype"], output["data"])
        else:
            size = output["parameters"]["binary_data_size"]
            raw = reply.body[start : start + size]
            start += size
        response.raw_output_contents.append(raw)
    return response
