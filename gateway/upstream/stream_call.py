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

from gateway.upstream.grpc_streams import GrpcStream, GrpcStreams
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


class StreamEnds:
    """Ends one Triton's streams, with one cancel at a time."""

    def __init__(self, streams: GrpcStreams) -> None:
        self._streams = streams
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

    async def cancel(self, stream: GrpcStream, is_busy: bool) -> bool:
        """Cancel the stream if it stays quiet (or was busy too long), and return whether it was."""
        async with self._turn:
            if stream.is_readable() and not is_busy:
                return False
            # The thread handles everything in order: once it has answered this, everything before
            # is done, earlier cancels included.
            await self.respond()
            if stream.is_readable() and not is_busy:
                return False
            stream.cancel()
        return True

    async def respond(self) -> bool:
        """Whether Triton's stream thread responds; returns within ``PROOF_S`` seconds."""
        return await self.ask(service_pb2.ModelInferRequest(model_name=NO_MODEL))

    async def ask(self, message: service_pb2.ModelInferRequest) -> bool:
        """Send a message whose answer does not matter; whether there was one in ``PROOF_S``."""
        stream = self._streams.open(timeout_s=PROOF_S)
        with contextlib.suppress(grpc.RpcError, TimeoutError):
            async with asyncio.timeout(PROOF_S):
                await stream.write(message.SerializeToString())
                await stream.done_writing()
                while await stream.read() is not None:
                    pass
            return True
        stream.cancel()
        return False


class StreamCall:
    """A ModelStreamInfer, used by one reader and one writer, both of serialised messages.

    ``end`` ends it, and must always be awaited.
    """

    def __init__(self, ends: StreamEnds, stream: GrpcStream) -> None:
        self._ends, self._stream = ends, stream
        self._ending: asyncio.Task[None] | None = None
        # Asks the model itself to give up the request, which ends the stream without a cancel.
        self.cancel_message: service_pb2.ModelInferRequest | None = None
        # Raise AioRpcError once the call has ended; ``read`` as GrpcStream's does.
        self.write = stream.write
        self.done_writing = stream.done_writing
        self.read = stream.read

    async def end(self) -> None:
        """Returns when Triton has finished or was told to stop. Raises only if it is cancelled
        itself, in which case the end continues in the background."""
        if self._ending is None:
            self._ending = self._ends.begin(self._end_or_cancel())
        await asyncio.shield(self._ending)

    async def _end_or_cancel(self) -> None:
        try:
            await self._end()
        except grpc.RpcError:
            pass
        finally:
            self._stream.cancel()  # no effect if it is over

    async def _end(self) -> None:
        stream = self._stream
        if stream.is_over() or not stream.has_begun():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROOF_S):
                await stream.done_writing()
        asked = self.cancel_message is not None and await self._ends.ask(self.cancel_message)
        loop = asyncio.get_running_loop()
        last = loop.time()
        deadline, gaps = last + BOUND_S, deque[float](maxlen=GAPS)
        while True:
            with contextlib.suppress(TimeoutError):
                await stream.wait(loop.time() + (PROOF_S if asked else self._ends.pause_s(gaps)))
            is_busy = loop.time() > deadline
            if stream.is_readable() and not is_busy:
                if await stream.read() is None:
                    return
                gaps.append(loop.time() - last)
                last = loop.time()
            elif await self._ends.cancel(stream, is_busy):
                return
