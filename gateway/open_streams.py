"""Streams that are open: each ends soon after its caller's right to it has ended.

Nothing here is on the way of a request or of a piece of an answer. Four times a second the times
at which identities end are compared with the clock. When keys, policy or an issuer's keys have
changed, every open stream is looked at as if it came now: who is calling, by what the request
itself showed, whether that caller may still use its models, and whether its slots fit the limits
in force.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from gateway.errors import Forbidden, GatewayError, NoCapacity, QuotaExceeded
from gateway.http.request_context import RequestContext
from gateway.identity.principal import Principal, refused
from gateway.limits.limit import Check
from gateway.limits.limiter import Admission, Limiter
from gateway.policy.access import Access

log = logging.getLogger("gateway")
# A caller whose issuer cannot be asked has so long before its stream ends.
UNSURE_S = 1.0
AT_ONCE = 100  # identities looked at between two turns of the loop

End = Callable[[GatewayError], None]
ChecksOf = Callable[[Access, Principal, str], Sequence[Check]]


@dataclass(eq=False, slots=True)
class _Open:
    context: RequestContext
    end: End
    models: Callable[[], Iterable[str]]
    admissions: Callable[[], Iterable[Admission]]
    # Monotonic; 0: the caller is known. A new one is looked at once: whoever was let in before may
    # have lost the right to it while the request was read.
    unsure_since: float = field(default_factory=time.monotonic)
    has_ended: bool = False

    def finish(self, error: GatewayError) -> None:
        """End the stream, once; what goes wrong with that ends no other."""
        if self.has_ended:
            return
        self.has_ended = True
        log.info("%s is ended: %s", self.context.request_id, error)
        try:
            self.end(error)
        except Exception:
            log.exception("%s could not be ended", self.context.request_id)


class OpenStreams:
    """One for each worker; the oldest stream first."""

    def __init__(
        self,
        identify: Callable[[RequestContext], Awaitable[Principal]],
        limiter: Limiter,
        checks_of: ChecksOf,
    ) -> None:
        """``identify`` says who is calling, as of now; ``checks_of`` what the limits ask of a
        caller's request for a model."""
        self._identify, self._limiter, self._checks_of = identify, limiter, checks_of
        self._open: dict[_Open, None] = {}
        self._checked: object = None  # the state of keys and rules that all were held against
        self._counted: Access | None = None  # the limits that all are counted by

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def watching(
        self,
        context: RequestContext,
        end: End,
        models: Callable[[], Iterable[str]],
        admissions: Callable[[], Iterable[Admission]],
    ) -> Iterator[None]:
        """See ``AccessControl.watching``."""
        stream = _Open(context, end, models, admissions)
        if context.access is not self._counted:
            self._checked = self._counted = None  # it was let in by other rules
        self._open[stream] = None
        try:
            yield
        finally:
            stream.has_ended = True
            del self._open[stream]

    async def check(self, access: Access, state: object) -> None:
        """End what has no right to go on. ``state`` is another one whenever keys, policy or
        issuers' keys are others; ``access`` is what the policy gives."""
        now = time.time()
        for stream in list(self._open):
            principal = stream.context.principal
            if principal is None or principal.ends <= now:
                stream.finish(refused())
        if state != self._checked:
            await self._look(list(self._open), access)
            if self._counted is access or await self._recount(access):
                self._checked, self._counted = state, access
        else:
            unsure = [stream for stream in self._open if stream.unsure_since]
            if unsure:
                await self._look(unsure, access)

    async def _look(self, streams: Sequence[_Open], access: Access) -> None:
        """Those that suspend wait together: an issuer that does not answer delays nobody else."""
        looks = []
        for number, stream in enumerate(streams, 1):
            looks.append(asyncio.ensure_future(self._judge(stream, access)))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*looks)

    async def _judge(self, stream: _Open, access: Access) -> None:
        context = stream.context
        try:
            async with asyncio.timeout(UNSURE_S):
                principal = await self._identify(context)
        except (NoCapacity, TimeoutError):
            stream.unsure_since = stream.unsure_since or time.monotonic()
            if time.monotonic() - stream.unsure_since > UNSURE_S:
                stream.finish(NoCapacity("who is calling cannot be verified now: try again"))
            return
        except GatewayError as error:
            stream.finish(error)
            return
        stream.unsure_since = 0.0
        before = context.principal
        if before and (principal.id, principal.tenant) != (before.id, before.tenant):
            stream.finish(Forbidden("what this key or token stands for has changed: begin anew"))
            return
        try:
            for model in stream.models():
                access.check(principal, "infer", model)
            if context.action:  # of a stream on which no model is asked now
                access.check(principal, context.action)
        except GatewayError as error:
            stream.finish(error)
            return
        context.principal, context.access = principal, access

    async def _recount(self, access: Access) -> bool:
        """Have each stream counted by the limits in force; False while Redis cannot say how many
        there are."""
        held: list[tuple[Admission, Sequence[Check]]] = []
        owners: dict[Admission, _Open] = {}
        for stream in list(self._open):
            principal = stream.context.principal
            if stream.has_ended or principal is None:
                continue
            for admission in stream.admissions():
                if admission.is_open:
                    held.append((admission, self._checks_of(access, principal, admission.model)))
                    owners[admission] = stream
        over = await self._limiter.readmit(held)
        for admission, limit in over or ():
            owners[admission].finish(
                QuotaExceeded(f"your {limit.described} has no room for this any more: try later")
            )
        return over is not None
