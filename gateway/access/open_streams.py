"""Open streams: each is ended soon after its caller has lost the right to it.

Nothing here is on the path of a request or of a part of a response. Four times a second the expiry
times of the identities are compared with the clock. When keys, policy or an issuer's keys have
changed, every open stream is checked as if it were opened now: who is calling, by the credential in
the request itself, whether that caller may still use its models, and whether it still fits the
limits in force.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from gateway.errors import Forbidden, GatewayError, NoCapacity, QuotaExceeded
from gateway.http.request_context import RequestContext
from gateway.identity.credentials import refused
from gateway.limits.limit import Check
from gateway.limits.limiter import Admission, Limiter
from gateway.policy.access import Access
from gateway.policy.principal import Principal

log = logging.getLogger("gateway")
# If a caller's issuer is unreachable, its stream is ended after this long.
UNSURE_S = 1.0
AT_ONCE = 100  # streams checked in one iteration of the event loop

End = Callable[[GatewayError], None]
ChecksOf = Callable[[Access, Principal, str], Sequence[Check]]


@dataclass(eq=False, slots=True)
class _Open:
    context: RequestContext
    end: End
    models: Callable[[], Iterable[str]]
    admissions: Callable[[], Iterable[Admission]]
    # Monotonic seconds; 0: the caller is verified. A new stream is always checked once: its caller
    # may have lost the right to it while the request was read.
    unsure_since: float = field(default_factory=time.monotonic)
    has_ended: bool = False

    def finish(self, error: GatewayError) -> None:
        """End the stream, once; an error in doing so affects no other stream."""
        if self.has_ended:
            return
        self.has_ended = True
        log.info("%s is ended: %s", self.context.request_id, error)
        try:
            self.end(error)
        except Exception:
            log.exception("%s could not be ended", self.context.request_id)


class OpenStreams:
    """One per worker; the oldest stream comes first."""

    def __init__(
        self,
        identify: Callable[[RequestContext], Awaitable[Principal]],
        limiter: Limiter,
        checks_of: ChecksOf,
    ) -> None:
        """``identify`` returns the caller as of now; ``checks_of`` the limit checks for a caller's
        request for a model."""
        self._identify, self._limiter, self._checks_of = identify, limiter, checks_of
        self._open: dict[_Open, None] = {}
        self._checked: object = None  # the state of keys and rules that all were checked against
        self._counted: Access | None = None  # the access whose limits count all of them

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
            self._checked = self._counted = None  # it was admitted under other rules
        self._open[stream] = None
        try:
            yield
        finally:
            stream.has_ended = True
            del self._open[stream]

    async def check(self, access: Access, state: object) -> None:
        """End the streams that have no right to continue. ``state`` differs whenever keys, policy
        or issuers' keys differ; ``access`` holds the policy's rights."""
        now = time.time()
        for stream in list(self._open):
            principal = stream.context.principal
            if principal is None or principal.ends <= now:
                stream.finish(refused())
        if state != self._checked:
            await self._verify_all(list(self._open), access)
            if self._counted is access or await self._recount(access):
                self._checked, self._counted = state, access
        else:
            unsure = [stream for stream in self._open if stream.unsure_since]
            if unsure:
                await self._verify_all(unsure, access)

    async def _verify_all(self, streams: Sequence[_Open], access: Access) -> None:
        """Concurrently: an issuer that does not respond delays no other stream."""
        tasks = []
        for number, stream in enumerate(streams, 1):
            tasks.append(asyncio.ensure_future(self._verify(stream, access)))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    async def _verify(self, stream: _Open, access: Access) -> None:
        context = stream.context
        try:
            async with asyncio.timeout(UNSURE_S):
                principal = await self._identify(context)
        except (NoCapacity, TimeoutError):
            stream.unsure_since = stream.unsure_since or time.monotonic()
            if time.monotonic() - stream.unsure_since > UNSURE_S:
                stream.finish(NoCapacity("your identity cannot be verified now: try again"))
            return
        except GatewayError as error:
            stream.finish(error)
            return
        stream.unsure_since = 0.0
        previous = context.principal
        if previous and (principal.id, principal.tenant) != (previous.id, previous.tenant):
            stream.finish(
                Forbidden("the identity of this key or token has changed: open a new stream")
            )
            return
        try:
            for model in stream.models():
                access.check(principal, "infer", model)
            if context.action:  # also covers a stream that uses no model at the moment
                access.check(principal, context.action)
        except GatewayError as error:
            stream.finish(error)
            return
        context.principal, context.access = principal, access

    async def _recount(self, access: Access) -> bool:
        """Count each stream against the limits in force; False while Redis cannot say how many
        there are."""
        admissions: list[tuple[Admission, Sequence[Check]]] = []
        owners: dict[Admission, _Open] = {}
        for stream in list(self._open):
            principal = stream.context.principal
            if stream.has_ended or principal is None:
                continue
            for admission in stream.admissions():
                if admission.is_open:
                    checks = self._checks_of(access, principal, admission.model)
                    admissions.append((admission, checks))
                    owners[admission] = stream
        over = await self._limiter.readmit(admissions)
        for admission, limit in over or ():
            owners[admission].finish(
                QuotaExceeded(
                    f"your {limit.description} has no more room for this: try again later"
                )
            )
        return over is not None
