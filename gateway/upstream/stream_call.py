"""One ModelStreamInfer to Triton, and how it is ended before its model has said everything.

Triton 2.51 has a race between a cancel and the answers that are on their way: when the model ends a
stream (or answers) while the cancel is being handled and a write is still outstanding, the server
releases the stream's state twice. It then dies (``double free``, ``prior > 0``), hangs, or mixes up
two streams. Later versions mend it (triton-inference-server/server #7840, #8078).

So a stream that nobody wants any more is read on, and cancelled only when nothing is on its way:
no answer came for a moment, and Triton's one stream thread has proved that it has no backlog. Most
streams that end soon are never cancelled at all, and a model that never pauses is heard to its end.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

QUIET_S = 0.005  # no answer for so long from a model that pauses: none is being written
# A fast model ends its stream at once when it is cancelled, in the midst of that. It is fast while
# one of its last ``GAPS`` pauses was short: shorter than QUIET_S, and than what as many streams as
# end together need for their turns. Of such a one a longer silence is asked.
GAPS, TURN_S, SLOW_S, SILENT_S = 8, 0.0005, 0.025, 0.1
BOUND_S = 600.0  # a model that is not quiet for so long is cancelled all the same
PROOF_S = 2.0
CLOSE_S = 2.0  # what the ends that are under way have when the gateway ends
NO_MODEL = "tidegate.none"  # a request for it is refused by the stream thread itself
# With it Triton says of each stream when it has ended, even if it ends without another output.
EMPTY_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"
_FAILED = (grpc.RpcError, asyncio.InvalidStateError)


class StreamEnds:
    """The ends of one Triton's streams: cancels are one at a time."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()

    def pause_s(self, gaps: Sequence[float]) -> float:
        """How long a stream with these last pauses has to be silent before it is cancelled."""
        slow = min(QUIET_S + TURN_S * len(self._under_way), SLOW_S)
        return QUIET_S if len(gaps) == GAPS and min(gaps) >= slow else SILENT_S

    def begin(self, end: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """An end that goes on whatever becomes of who waits for it."""
        task = asyncio.create_task(end)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def close(self) -> None:
        """Returns when no end is under way, or after ``CLOSE_S`` s."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_S)

    async def cancel(self, call: Any, reading: "asyncio.Task[Any]", is_busy: bool) -> bool:
        """Cancel the call if it stays quiet (or was busy too long); whether that was done."""
        async with self._turn:
            if reading.done() and not is_busy:
                return False
            # The thread handles everything in its order: with the answer to this, all that came
            # before is done, an earlier cancel too.
            await self.answers()
            if reading.done() and not is_busy:
                return False
            call.cancel()
        return True

    async def answers(self) -> bool:
        """Whether Triton's stream thread answers; returns within ``PROOF_S`` s."""
        call = self._stub.ModelStreamInfer(timeout=PROOF_S)
        with contextlib.suppress(*_FAILED):
            await call.write(service_pb2.ModelInferRequest(model_name=NO_MODEL))
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            return True
        return False


class StreamCall:
    """A bidirectional call, used by one reader and one writer.

    Cancelling a task that waits in ``read`` or ``write`` leaves the call as it is (``grpc.aio``
    would cancel it there and then): ``end`` ends it, and is to be awaited always.
    """

    def __init__(self, ends: StreamEnds, call: Any) -> None:
        self._ends, self._call = ends, call
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[Any] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._has_half_closed = False

    async def write(self, message: Any) -> None:
        """Raises grpc.RpcError or InvalidStateError when the call has ended."""
        self._writing = asyncio.ensure_future(self._call.write(message))
        await asyncio.shield(self._writing)
        self._writing = None

    async def done_writing(self) -> None:
        self._has_half_closed = True
        self._writing = asyncio.ensure_future(self._call.done_writing())
        await asyncio.shield(self._writing)
        self._writing = None

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF; raises AioRpcError."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        try:
            return await asyncio.shield(self._reading)
        finally:
            if self._reading is not None and self._reading.done():
                self._reading = None

    async def end(self) -> None:
        """Returns when Triton works on it no more, or has been told to stop; never raises but when
        cancelled itself, and then the end goes on by itself."""
        if self._ending is None:
            self._ending = self._ends.begin(self._ended())
        await asyncio.shield(self._ending)

    async def _ended(self) -> None:
        try:
            await self._end()
        except BaseException as error:
            self._call.cancel()  # of a call that is over it changes nothing
            if not isinstance(error, _FAILED):
                raise
        finally:
            for task in (self._reading, self._writing):
                if task:
                    task.add_done_callback(_retrieved)

    async def _end(self) -> None:
        if self._call.done():
            return
        if self._writing:
            await asyncio.wait([self._writing], timeout=PROOF_S)
        if not self._has_half_closed:
            await self._call.done_writing()
        loop = asyncio.get_running_loop()
        last = loop.time()
        deadline, gaps = last + BOUND_S, deque[float](maxlen=GAPS)
        while True:
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._call.read())
            await asyncio.wait([self._reading], timeout=self._ends.pause_s(gaps))
            is_busy = loop.time() > deadline
            if self._reading.done() and not is_busy:
                if self._reading.result() is grpc.aio.EOF:
                    return
                self._reading = None
                gaps.append(loop.time() - last)
                last = loop.time()
            elif await self._ends.cancel(self._call, self._reading, is_busy):
                return


def _retrieved(task: "asyncio.Task[Any]") -> None:
    """Nobody reads the error of a call that was ended, and asyncio shall not complain of it."""
    if not task.cancelled():
        task.exception()
