"""Short requests that wait for the same model are sent as one.

Triton's dynamic batcher merges what waits in front of each step, and an instance that is idle takes
the first of several requests alone. So with a few callers most runs have one row, and each request
pays for its own way through Triton and all of the pipeline's processes. Here as many groups of
requests are under way as the model has instances, and each group gets its share of the callers: 8
callers of 2 instances are two requests with 4 rows. While there are few callers, each request is
sent at once, as it is.

Only for models that say that equal requests get equal responses (``tidegate.deterministic``), which
a conversion proves for rows in a batch, and that have a golden sample, so that requests may be
repeated: if a group fails, each of its requests is sent alone, by its own caller.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from copy import copy
from itertools import pairwise
from typing import TypeAlias

from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest, TooLarge, UpstreamError
from gateway.models.sequences import ENSEMBLE_PARAMETERS
from gateway.models.short import NOT_SHORT, Short
from gateway.upstream.triton_errors import request_id, to_gateway_error
from modelspec.dtypes import NUMERIC_TYPES

Request: TypeAlias = service_pb2.ModelInferRequest
Response: TypeAlias = service_pb2.ModelInferResponse
# Sends one request and gives it so many seconds; None: it has to go another way.
Send = Callable[[Request, float, str], Coroutine[None, None, Response | None]]
# So many callers for each instance. With fewer, what they wait for each other costs as much as is
# saved, or more: 3 callers of 2 instances had 0.8 of the throughput, 4 the same, 8 had 1.1 to 1.17.
WORTH_MERGING = 3
# For how long others are waited for, in what a group takes; of which the last ones count so much.
GATHER_SHARE, NEW_SHARE = 0.2, 0.2
MOST_GATHER_S = 0.02  # one that took very long, for whatever reason, makes nobody wait as long
KEPT_S = 1.0  # how long a lane that is empty is kept
APART_S = 10.0  # for how long each is sent alone once what failed together did not fail alone


class Merging:
    """The short requests to one server."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lanes: dict[object, _Lane] = {}
        self._waits: dict[str, Waits] = {}

    async def infer(
        self, request: Request, timeout_s: float, tenant: str, short: Short
    ) -> Response | None:
        """The response to this request, which may be sent with others; None if it has to go
        another way. Raises DeadlineExceeded after ``timeout_s``, and what sending it raises, which
        is about this request alone."""
        rows = _rows(request)
        if not 0 < rows < short.most_rows:
            return await self._send(request, timeout_s, tenant)
        key = _key(request)
        lane = self._lanes.get(key)
        if lane is None:
            waits = self._waits.setdefault(request.model_name, Waits())
            lane = _Lane(self._send, waits, lambda: self._lanes.pop(key, None))
            self._lanes[key] = lane
        return await lane.infer(request, rows, timeout_s, tenant, short)

    def take_waits(self, model: str) -> "Waits":
        """How long requests to the model waited before they were sent, since the last call."""
        waits = self._waits.get(model)
        return waits.take() if waits else Waits()


class Waits:
    """So many requests waited for so many seconds, all together."""

    __slots__ = ("requests", "seconds")

    def __init__(self, requests: int = 0, seconds: float = 0.0) -> None:
        self.requests, self.seconds = requests, seconds

    def take(self) -> "Waits":
        taken = Waits(self.requests, self.seconds)
        self.requests, self.seconds = 0, 0.0
        return taken


def _rows(request: Request) -> int:
    """How many rows all of its inputs have; 0 if they differ."""
    rows = {tensor.shape[0] if tensor.shape else 0 for tensor in request.inputs}
    return rows.pop() if len(rows) == 1 else 0


def _key(request: Request) -> object:
    """What requests have in common that can be sent as one."""
    return (
        request.model_name,
        request.model_version,
        tuple([(t.name, t.datatype, tuple(t.shape[1:])) for t in request.inputs]),
        tuple([output.name for output in request.outputs]),
    )


class _Waiting:
    """A request that waits for its response."""

    __slots__ = (
        "group",
        "id",
        "is_apart",
        "request",
        "response",
        "rows",
        "since",
        "tenant",
        "until",
    )

    def __init__(self, request: Request, rows: int, timeout_s: float, tenant: str) -> None:
        loop = asyncio.get_running_loop()
        self.request, self.rows, self.tenant = request, rows, tenant
        self.since = loop.time()
        self.until = self.since + timeout_s
        self.id = request_id.get()
        self.response: asyncio.Future[Response | None] = loop.create_future()
        self.is_apart = False  # its group failed: its caller has to send it alone
        self.group: _Group | None = None  # once it was sent

    def expire(self) -> None:
        if not self.response.done():
            self.response.set_exception(to_gateway_error(TimeoutError()))

    def fail(self, error: Exception) -> None:
        if not self.response.done():
            self.response.set_exception(error)

    def answer(self, response: Response | None) -> None:
        if not self.response.done():
            self.response.set_result(response)

    def fall_apart(self) -> None:
        if not self.response.done():
            self.is_apart = True
            self.response.set_result(None)


class _Group:
    """Requests that were sent as one."""

    def __init__(self, members: Sequence[_Waiting]) -> None:
        self.members = members
        self.answered_alone = 0  # members, after it failed
        self.task: asyncio.Task[None] | None = None

    def left(self) -> None:
        """One of them is not waited for any more. When none is, the request is given up."""
        if self.task and all(member.response.done() for member in self.members):
            self.task.cancel()


class _Lane:
    """The requests to one model that can be sent together.

    With so many at a time, each group is to have its share of the callers: those whose responses
    have just been sent are waited for, since they usually come back at once, but not for long.
    """

    def __init__(self, send: Send, waits: Waits, empty: Callable[[], object]) -> None:
        self._send, self._waits, self._empty = send, waits, empty
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._groups = self._under_way = 0  # groups that are under way, and their requests
        self._crowd = 0  # requests that waited or were under way lately
        self._took_s = 0.0  # a group, lately
        self._short = NOT_SHORT
        self._timer: asyncio.TimerHandle | None = None  # while more are waited for
        self._closing: asyncio.TimerHandle | None = None
        self._used_at = 0.0  # when it was empty last
        self._apart_until = -math.inf

    async def infer(
        self, request: Request, rows: int, timeout_s: float, tenant: str, short: Short
    ) -> Response | None:
        self._short = short
        crowd = max(self._crowd, self._under_way + len(self._waiting) + 1)
        are_few = crowd < WORTH_MERGING * short.at_a_time and not self._waiting
        if are_few or self._loop.time() < self._apart_until:
            self._waits.requests += 1
            return await self._send_alone(request, timeout_s, tenant)
        waiting = _Waiting(request, rows, timeout_s, tenant)
        response = await self._sent_with_others(waiting, timeout_s)
        if not waiting.is_apart:
            return response
        response = await self._send_alone(request, waiting.until - self._loop.time(), tenant)
        if waiting.group and response is not None:
            waiting.group.answered_alone += 1
            if waiting.group.answered_alone == len(waiting.group.members):
                self._apart_until = self._loop.time() + APART_S
        return response

    async def _send_alone(self, request: Request, timeout_s: float, tenant: str) -> Response | None:
        """In the caller's own task: nothing is added to it, and errors are logged as its own."""
        began = self._begin(1)
        try:
            return await self._send(request, timeout_s, tenant)
        finally:
            self._ended(1, began)

    async def _sent_with_others(self, waiting: _Waiting, timeout_s: float) -> Response | None:
        self._waiting.append(waiting)
        self._gather()
        timer = self._loop.call_later(timeout_s, waiting.expire)
        try:
            return await waiting.response
        finally:
            timer.cancel()
            if waiting.group:
                waiting.group.left()
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
                self._gather()
            self._close_if_empty()

    def _close_if_empty(self) -> None:
        """Forget the lane a while after the last request: how large the crowd was is of use until
        then."""
        if not self._waiting and not self._groups:
            self._stop_timer()
            self._used_at = self._loop.time()
            if self._closing is None:
                self._closing = self._loop.call_later(KEPT_S, self._close)

    def _close(self) -> None:
        self._closing = None
        if self._waiting or self._groups:
            return  # the last of these looks again
        left_s = self._used_at + KEPT_S - self._loop.time()
        if left_s > 0:
            self._closing = self._loop.call_later(left_s, self._close)
        else:
            self._empty()

    def _begin(self, requests: int) -> float:
        self._groups += 1
        self._under_way += requests
        return self._loop.time()

    def _ended(self, requests: int, began: float) -> None:
        present = self._under_way + len(self._waiting)
        # Groups that end together do not see each other's callers: it falls by halves.
        self._crowd = max(present, (self._crowd + present) // 2)
        self._groups -= 1
        self._under_way -= requests
        took_s = self._loop.time() - began
        self._took_s += (took_s - self._took_s) * NEW_SHARE
        self._gather()
        self._close_if_empty()

    def _gather(self) -> None:
        """Send what waits, if it is its group's share; else wait for more."""
        while self._waiting and self._groups < self._short.at_a_time:
            crowd = max(self._crowd, self._under_way + len(self._waiting))
            share = -(-crowd // self._short.at_a_time)
            share = max(1, min(share, self._short.most_rows))  # each has a row at least
            if len(self._waiting) < share:
                if self._timer is None:
                    gather_s = min(GATHER_SHARE * self._took_s, MOST_GATHER_S)
                    self._timer = self._loop.call_later(gather_s, self._go)
                return
            self._start(share)
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _go(self) -> None:
        self._timer = None
        if self._waiting and self._groups < self._short.at_a_time:
            self._start(len(self._waiting))

    def _next_members(self, most: int) -> list[_Waiting]:
        members: list[_Waiting] = []
        rows = 0
        while self._waiting and len(members) < most:
            waiting = self._waiting[0]
            if not waiting.response.done():  # else nobody waits for it any more
                if members and rows + waiting.rows > self._short.most_rows:
                    break
                members.append(waiting)
                rows += waiting.rows
            self._waiting.popleft()
        return members

    def _start(self, most: int) -> None:
        self._stop_timer()
        members = self._next_members(most)
        if not members:
            return
        began = self._begin(len(members))
        group = _Group(members)
        for member in members:
            member.group = group
            self._waits.seconds += began - member.since
        self._waits.requests += len(members)
        # In no request's context: this one is nobody's own. Its errors are logged as those of all.
        context = Context()
        context.run(request_id.set, " ".join(filter(None, [member.id for member in members])))
        group.task = self._loop.create_task(self._answer(members, began), context=context)

    async def _answer(self, members: Sequence[_Waiting], began: float) -> None:
        try:
            if len(members) == 1:
                await self._answer_one(members[0])
            else:
                await self._answer_all(members)
        finally:
            for member in members:  # cancelled: nobody waits
                member.response.cancel()
            self._ended(len(members), began)

    async def _answer_one(self, member: _Waiting) -> None:
        try:
            left_s = member.until - self._loop.time()
            member.answer(await self._send(member.request, left_s, member.tenant))
        except Exception as error:
            member.fail(error)

    async def _answer_all(self, members: Sequence[_Waiting]) -> None:
        left_s = max(member.until for member in members) - self._loop.time()
        try:
            whole = merged([member.request for member in members])
            response = await self._send(whole, left_s, members[0].tenant)
            parts = split(response, [member.rows for member in members]) if response else None
        except (InvalidRequest, TooLarge, UpstreamError, ValueError):
            parts = None
        except Exception as error:
            for member in members:
                member.fail(copy(error))  # who handles it may change it
            return
        if parts is None:  # one of them may be at fault: let only that one fail
            for member in members:
                member.fall_apart()
            return
        for member, part in zip(members, parts, strict=True):
            part.id = member.request.id
            member.answer(part)


def merged(requests: Sequence[Request]) -> Request:
    """One request with the rows of all, in their order; they differ in their rows alone."""
    first = requests[0]
    whole = Request(model_name=first.model_name, model_version=first.model_version)
    rows = sum(request.inputs[0].shape[0] for request in requests)
    for index, tensor in enumerate(first.inputs):
        shape = (rows, *tensor.shape[1:])
        whole.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        raws = [request.raw_input_contents[index] for request in requests]
        whole.raw_input_contents.append(b"".join(raws))
    for output in first.outputs:
        whole.outputs.add(name=output.name)
    return whole


def split(response: Response, rows: Sequence[int]) -> list[Response]:
    """A response for so many rows each. ValueError if the outputs have another number of rows, or
    the response has parameters of its own, which are no row's."""
    if response.parameters.keys() - ENSEMBLE_PARAMETERS:
        raise ValueError("the response has parameters")
    parts = [
        Response(model_name=response.model_name, model_version=response.model_version) for _ in rows
    ]
    ends = [0]
    for count in rows:
        ends.append(ends[-1] + count)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if not output.shape or output.shape[0] != ends[-1]:
            raise ValueError(f"{output.name} has the shape {output.shape} for {ends[-1]} rows")
        offsets = _row_offsets(output, raw)
        for part, (begin, end) in zip(parts, pairwise(ends), strict=True):
            shape = (end - begin, *output.shape[1:])
            part.outputs.add(name=output.name, datatype=output.datatype, shape=shape)
            part.raw_output_contents.append(raw[offsets[begin] : offsets[end]])
    return parts


def _row_offsets(
    output: service_pb2.ModelInferResponse.InferOutputTensor, raw: bytes
) -> Sequence[int]:
    """Where in its bytes each row begins, and where the last one ends."""
    rows = output.shape[0]
    if output.datatype != "BYTES":
        if output.datatype not in NUMERIC_TYPES or len(raw) % rows:
            raise ValueError(f"{output.name} cannot be split into {rows} rows")
        size = len(raw) // rows
        return range(0, len(raw) + 1, size) if size else [0] * (rows + 1)
    elements = 1
    for length in output.shape[1:]:
        elements *= length
    offsets, offset = [0], 0
    for _ in range(rows):
        for _ in range(elements):
            offset += 4 + int.from_bytes(raw[offset : offset + 4], "little")
        offsets.append(offset)
    if offset != len(raw):
        raise ValueError(f"{output.name} cannot be split into {rows} rows")
    return offsets
