"""The connection to Redis: bounded in time, and not used while Redis is unavailable."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.limits.redis.running_timeout import RunningTimeout

log = logging.getLogger("gateway")
TIMEOUT_S = 0.05
CONNECT_S = 1.0  # several round trips, for which no request waits
RETRY_S = 0.2  # between attempts to reach a Redis that is unavailable
BATCH = 200  # calls sent together: far fewer than would take TIMEOUT_S
TELL_S = 10.0  # between two warnings
_FOLDER = Path(__file__).parent
_METER = (_FOLDER / "meter.lua").read_text()
SCRIPTS = {
    name: (_METER if name in ("admit", "finish") else "") + (_FOLDER / f"{name}.lua").read_text()
    for name in ("admit", "finish", "over", "renew")
}
OUTAGE = (
    "limits: Redis is unavailable (%s): until it responds, this gateway grants its share of the "
    "limits"
)
Reply = list[Any] | bytes | int | None


class Call(NamedTuple):
    script: str
    keys: Sequence[str]
    args: Sequence[str | bytes | int | float]


class RedisConnection:
    """Runs scripts in the order of the calls; calls that arrive while some run are sent together.

    Callers never hold the connection, so a cancelled one cannot leave its reply for another. While
    Redis is unavailable, ``probe`` is sent until it succeeds, and then ``recovered`` is called.
    """

    def __init__(
        self,
        url: str,
        probe: Call,
        recovered: Callable[[], None],
        restarted: Callable[[], None] = lambda: None,
        scripts: Mapping[str, str] = SCRIPTS,
        outage: str = OUTAGE,
    ) -> None:
        """``restarted`` is called after the connection's own task had ended and was restarted.
        ``scripts`` are those that may be called, by their names, and ``outage`` is logged while
        Redis is unavailable, with the reason for %s."""
        self._client = Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_S,
            socket_timeout=None,
            encoding_errors="backslashreplace",  # a token's subject may contain a lone surrogate
        )
        self._probe, self._recovered, self._restarted = probe, recovered, restarted
        self._scripts, self._outage = scripts, outage
        self._shas: dict[str, str] = {}
        self._waiting: list[tuple[Call, asyncio.Future[Reply]]] = []
        self._in_flight: list[tuple[Call, asyncio.Future[Reply]]] = []
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._healthy = False
        self._warned_at = -TELL_S

    @property
    def is_healthy(self) -> bool:
        """Whether Redis answered the last call."""
        return self._healthy

    def call(self, call: Call) -> "asyncio.Future[Reply]":
        """The script's reply, or None if Redis is unavailable; the future never fails."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._healthy:
            self._waiting.append((call, future))
        else:
            future.set_result(None)
        if self._task is None:
            self._start_task(self._run() if self._healthy else self._recover())
        return future

    async def reached(self) -> bool:
        """Whether Redis is available; if it was not, waits for one attempt to connect."""
        if not self._healthy:
            task = self._task or self._start_task(self._recover())
            await asyncio.wait([task], timeout=CONNECT_S)
        return self._healthy

    async def close(self) -> None:
        """Close after the calls in flight; takes two timeouts at most."""
        self._is_closed = True
        if self._task and self._healthy:
            await asyncio.wait([self._task], timeout=2 * TIMEOUT_S)
        elif self._task:
            self._task.cancel()
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._client.aclose()

    async def _run(self) -> None:
        while self._waiting:
            due, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            batch = [(call, future) for call, future in due if not future.done()]
            self._in_flight = batch
            try:
                async with RunningTimeout(TIMEOUT_S):
                    replies = await self._send([call for call, _ in batch])
            except Exception as error:  # whatever it is, limits must keep working
                self._warn(error)
                self._start_recovery(batch)
                return
            for (_, future), reply in zip(batch, replies, strict=True):
                _resolve(future, reply)
        self._task = None

    def _start_task(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(self._restart)
        return self._task

    def _restart(self, task: "asyncio.Task[None]") -> None:
        """Restart a task that ended unexpectedly; one that ends in order has set its successor."""
        if task is not self._task or self._is_closed:
            return
        error = None if task.cancelled() else task.exception()
        log.error("limits: the task for the connection to Redis has ended", exc_info=error)
        self._healthy = False
        failed, self._waiting = [*self._in_flight, *self._waiting], []
        for _, future in failed:
            _resolve(future, None)
        self._restarted()
        asyncio.get_running_loop().call_later(RETRY_S, self._revive)

    def _revive(self) -> None:
        if not self._is_closed:
            self._start_task(self._recover())

    async def _send(self, calls: Sequence[Call]) -> list[Reply]:
        pipeline = self._client.pipeline(transaction=False)
        for script, keys, args in calls:
            pipeline.execute_command("EVALSHA", self._shas[script], len(keys), *keys, *args)
        replies: list[Reply] = await pipeline.execute()
        return replies

    def _start_recovery(self, batch: Sequence[tuple[Call, "asyncio.Future[Reply]"]]) -> None:
        self._healthy = False
        failed, self._waiting = [*batch, *self._waiting], []
        for _, future in failed:
            _resolve(future, None)
        self._start_task(self._recover())

    async def _recover(self) -> None:
        """Retry until Redis responds again; nobody waits for it meanwhile."""
        while True:
            if await self._connect():
                break
            await asyncio.sleep(RETRY_S)
        self._healthy = True
        self._recovered()
        self._start_task(self._run())

    async def _connect(self) -> bool:
        """Connect, and return whether Redis has the scripts, can write, and is fast enough."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._client.connection_pool.disconnect()  # drops any earlier reply
                for name, text in self._scripts.items():
                    self._shas[name] = await self._client.script_load(text)
            async with RunningTimeout(TIMEOUT_S):
                await self._send([self._probe])
        except Exception as error:  # whatever it is, limits must keep working
            self._warn(error)
            return False
        return True

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._warned_at >= TELL_S:
            self._warned_at = now
            log.warning(self._outage, str(error) or "no response in time")


def _resolve(future: "asyncio.Future[Reply]", reply: Reply) -> None:
    if not future.done():  # its caller may have been cancelled
        future.set_result(reply)
