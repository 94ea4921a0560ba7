"""How a process of the gateway ends without failing a request.

After SIGTERM it says that it is not ready, over HTTP and gRPC, and serves on for
``TIDEGATE_DRAIN_NOTICE_S``, so that load balancers stop sending to it; its responses close their
connections. Then it accepts no more, and what is under way has ``TIDEGATE_DRAIN_LIMIT_S`` to end;
what still waits for its turn at a model shortly before is refused, instead of being cut off. Ctrl-C
skips the notice. So does REPLACED, after which a worker stays ready until its end: another one
serves already.
"""

import asyncio
import contextlib
import gc
import math
import multiprocessing
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Generator

import uvicorn
from uvicorn.config import Config

# For requests that were sent on an idle connection before its client can know of the end.
LAST_REQUESTS_S = 0.5
_TICK_S = 0.1
# Before the limit, for the responses to requests that are refused; of a short one, half of it.
REFUSALS_S = 1.0
# From the supervisor to one worker. Not SIGHUP: a terminal or systemd sends that to all at once.
REPLACED = signal.SIGUSR2


class Drain:
    """Whether this process is ending. There is one for each process: ``DRAIN``."""

    def __init__(self) -> None:
        self.is_announced = False  # it is not ready any more
        self.has_begun = False  # no connection is kept alive
        # Each takes no more calls, and lets those under way end within so many seconds.
        self.closers: list[Callable[[float], Awaitable[None]]] = []
        # Each refuses what has not begun by the end.
        self.refusers: list[Callable[[], None]] = []

    def refuse(self) -> None:
        for refuse in self.refusers:
            refuse()


DRAIN = Drain()


class DrainingServer(uvicorn.Server):
    """uvicorn's server, without its longest pauses, which drains first and exits with 0 after a
    signal."""

    def __init__(self, config: Config, notice_s: float) -> None:
        super().__init__(config)
        self._notice_s, self._is_replaced = notice_s, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What lives as long as the process (modules, schemas, the catalogue) is not gone through
        # by each full collection again, which held the loop for 20 to 50 ms.
        gc.collect()
        gc.freeze()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals():
            if multiprocessing.parent_process() is not None:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor's business
                signal.signal(REPLACED, self._be_replaced)
            yield
            self._captured_signals.clear()  # uvicorn would raise them again and end with -15

    def _be_replaced(self, *_: object) -> None:
        self._is_replaced = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        DRAIN.has_begun = True
        if self._is_noticed():
            DRAIN.is_announced = True
            self._let_go()
            await self._serve_on(self._notice_s)
        for server in self.servers:
            server.close()
        self._let_go()
        limit_s = float(self.config.timeout_graceful_shutdown or 0)
        until = time.monotonic() + limit_s
        refusals_s = max(limit_s - REFUSALS_S, limit_s / 2)
        refusing = asyncio.get_running_loop().call_later(refusals_s, DRAIN.refuse)
        closing = asyncio.gather(*(close(limit_s) for close in DRAIN.closers))
        await self._serve_on(LAST_REQUESTS_S, until_closed=True)
        # Not uvicorn's first: it ends with the application, and with it what gRPC calls need.
        while not closing.done() and not self.force_exit:
            await self._serve_on(_TICK_S)
        closing.cancel()
        # What gRPC took of the limit is not there for HTTP once more.
        self.config.timeout_graceful_shutdown = max(0, math.ceil(until - time.monotonic()))
        await super().shutdown(sockets)
        refusing.cancel()

    def _is_noticed(self) -> bool:
        parent = multiprocessing.parent_process()
        is_orphan = parent is not None and not parent.is_alive()
        return not (self._is_replaced or is_orphan or signal.SIGINT in self._captured_signals)

    def _let_go(self) -> None:
        """Responses under way close their connections too."""
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False

    async def _serve_on(self, seconds: float, *, until_closed: bool = False) -> None:
        until, tick = time.monotonic() + seconds, 0
        while time.monotonic() < until and not self.force_exit:
            if until_closed and not self.server_state.connections:
                return
            await self.on_tick(tick)  # keeps the Date header right
            await asyncio.sleep(_TICK_S)
            tick += 1
