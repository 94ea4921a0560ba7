"""One ModelStreamInfer call to Triton, and how it is ended before its model has finished.

Triton 2.51 has a race between a cancel and responses in flight: when the model ends a stream (or
responds) while the cancel is being handled and a write is still outstanding, the server releases
the stream's state twice. It then dies (``double free``, ``prior > 0``), hangs, or mixes up two
streams. Later versions fix it (triton-inference-server/server #7840, #8078).

So a stream that nobody wants any more is read further, and cancelled only when nothing is in
flight: no response has arrived for a moment, and Triton's single stream thread has proved that it
has no backlog. Most streams that end soon are never cancelled at all, and a model that never pauses
is read to its end.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from gateway.lazy_timer import LazyTimer
from modelspec.parameters import NO_MODEL

QUIET_S = 0.005  # if a model that pauses sends nothing for this long, no response is being written
# A fast model ends its stream immediately when it is cancelled, while the cancel is being handled.
# A model counts as fast if one of its last ``GAPS`` pauses was short: shorter than QUIET_S, and
# than the time that the streams that are ending need for their turns. It has to be silent longer.
GAPS, TURN_S, SLOW_S, SILENT_S = 8, 0.0005, 0.025, 0.1
BOUND_S = 600.0  # a model that is not quiet for this long is cancelled anyway
PROOF_S = 2.0
CLOSE_S = 2.0  # for streams that are ending when the gateway shuts down
# Makes Triton say when each stream has ended, even if it ends without another output.
EMPTY_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"
_FAILED = (grpc.RpcError, asyncio.InvalidStateError)


class StreamEnds:
    """Ends one Triton's streams, with one cancel at a time."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()

    def pause_s(self, gaps: Sequence[float]) -> float:
        """How many seconds a stream with these recent pauses has to be silent before a cancel."""
        slow = min(QUIET_S + TURN_S * len(self._under_way), SLOW_S)
        return QUIET_S if len(gaps) == GAPS and min(gaps) >= slow else SILENT_S

    def begin(self, end: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start an end that continues even if the task that awaits it is cancelled."""
        task = asyncio.create_task(end)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def close(self) -> None:
        """Wait until no stream is ending, or for ``CLOSE_S`` seconds."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_S)

    async def cancel(self, call: Any, reading: "asyncio.Task[Any]", is_busy: bool) -> bool:
        """Cancel the call if it stays quiet (or was busy too long), and return whether it was."""
        async with self._turn:
            if reading.done() and not is_busy:
                return False
            # The thread handles everything in order: once it has answered this, everything before
            # is done, earlier cancels included.
            await self.respond()
            if reading.done() and not is_busy:
                return False
            call.cancel()
        return True

    async def respond(self) -> bool:
        """Whether Triton's stream thread responds; returns within ``PROOF_S`` seconds."""
        return await self.ask(service_pb2.ModelInferRequest(model_name=NO_MODEL))

    async def ask(self, message: service_pb2.ModelInferRequest) -> bool:
        """Send a message whose answer does not matter; whether there was one in ``PROOF_S``."""
        call = self._stub.ModelStreamInfer(timeout=PROOF_S)
        with contextlib.suppress(*_FAILED):
            await call.write(message)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            return True
        return False


class StreamCall:
    """A bidirectional call, used by one reader and one writer.

    Cancelling a task that waits in ``read`` or ``write`` leaves the call as it is (``grpc.aio``
    would cancel it immediately): ``end`` ends it, and must always be awaited.
    """

    def __init__(self, ends: StreamEnds, call: Any) -> None:
        self._ends, self._call = ends, call
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Task[Any] | None = None
        self._reader: asyncio.Future[None] | None = None  # waits in ``read``
        self._patience = LazyTimer(self._loop, self._give_up)
        self._writing: asyncio.Task[Any] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._has_half_closed = False
        # Asks the model itself to give up the request, which ends the stream without a cancel.
        self.cancel_message: service_pb2.ModelInferRequest | None = None

    async def write(self, message: Any) -> None:
        """Raises grpc.RpcError or InvalidStateError if the call has ended."""
        self._writing = asyncio.ensure_future(self._call.write(message))
        await asyncio.shield(self._writing)
        self._writing = None

    async def done_writing(self) -> None:
        self._has_half_closed = True
        self._writing = asyncio.ensure_future(self._call.done_writing())
        await asyncio.shield(self._writing)
        self._writing = None

    async def read(self, until: float | None = None) -> Any:
        """The next message, or grpc.aio.EOF. Raises AioRpcError, and TimeoutError if there is none
        by ``until`` (on the loop's clock)."""
        reading = self._reading
        if reading is None:
            reading = self._reading = self._loop.create_task(self._call.read())
        if not reading.done():
            # Not asyncio.shield and asyncio.timeout: they were a tenth of what a piece costs.
            self._reader = self._loop.create_future()
            reading.add_done_callback(self._wake)
            if until is not None:
                self._patience.set(until)
            try:
                await self._reader
            finally:
                self._reader = None
                self._patience.clear()
                reading.remove_done_callback(self._wake)
        self._reading = None
        return reading.result()

    def _wake(self, _: "asyncio.Task[Any]") -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    def _give_up(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_exception(TimeoutError())

    async def end(self) -> None:
        """Returns when Triton has finished or was told to stop. Raises only if it is cancelled
        itself, in which case the end continues in the background."""
        self._patience.close()
        if self._ending is None:
            self._ending = self._ends.begin(self._end_or_cancel())
        await asyncio.shield(self._ending)

    async def _end_or_cancel(self) -> None:
        try:
            await self._end()
        except BaseException as error:
            self._call.cancel()  # no effect if the call is already over
            if not isinstance(error, _FAILED):
                raise
        finally:
            for task in (self._reading, self._writing):
                if task:
                    task.add_done_callback(_retrieve_error)

    async def _end(self) -> None:
        if self._call.done():
            return
        if self._writing:
            await asyncio.wait([self._writing], timeout=PROOF_S)
        if not self._has_half_closed:
            await self._call.done_writing()
        asked = self.cancel_message is not None and await self._ends.ask(self.cancel_message)
        loop = asyncio.get_running_loop()
        last = loop.time()
        deadline, gaps = last + BOUND_S, deque[float](maxlen=GAPS)
        while True:
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._call.read())
            await asyncio.wait(
                [self._reading], timeout=PROOF_S if asked else self._ends.pause_s(gaps)
            )
            is_busy = loop.time() > deadline
            if self._reading.done() and not is_busy:
                if self._reading.result() is grpc.aio.EOF:
                    return
                self._reading = None
                gaps.append(loop.time() - last)
                last = loop.time()
            elif await self._ends.cancel(self._call, self._reading, is_busy):
                return


def _retrieve_error(task: "asyncio.Task[Any]") -> None:
    """Retrieve the error of a call that was ended, so that asyncio does not complain about it."""
    if not task.cancelled():
        task.exception()
