"""Access control: who is calling, what they may do, how much of it, and the audit record."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.access.open_streams import OpenStreams
from gateway.errors import GatewayError, Internal, Unauthenticated
from gateway.http.request_context import RequestContext
from gateway.identity.callers import Callers
from gateway.identity.keys import KeyRing
from gateway.limits.limiter import Admission, Limiter
from gateway.limits.shared_slots import SharedSlots
from gateway.metrics import Metrics
from gateway.models.catalogue import Model
from gateway.policy.access import Access, tenants_without_fallback
from gateway.policy.applied_policy import AppliedPolicy
from gateway.policy.gateway_toml import PolicyError, Rules
from gateway.policy.principal import Principal
from gateway.policy.reload import PolicyFile
from gateway.settings import Settings
from gateway.supervision import Supervisor

if TYPE_CHECKING:
    from gateway.audit.log import AuditLog
    from gateway.models.metering import Meter

log = logging.getLogger("gateway")
# Real text has about four bytes per token; a reservation is later replaced by the true count.
BYTES_A_TOKEN = 4
# At startup, wait until gateway.toml has been unchanged for STEADY_S; give up after STEADY_LOOKS.
STEADY_S, STEADY_LOOKS = 1.0, 50
EARLY_LOOK_S = 0.1  # between two looks at the keys because of a credential that was refused


class AccessControl:
    """One per worker. All the data it decides from is in memory and is swapped as a whole."""

    def __init__(self, settings: Settings, supervisor: Supervisor, metrics: Metrics) -> None:
        self._supervisor, self._metrics = supervisor, metrics
        self.keys = KeyRing(
            settings.keys_file, settings.pepper_file, last_good=settings.last_good_keys
        )
        self.policy = PolicyFile(settings.policy_file, last_good=settings.last_good_policy)
        self.callers = Callers(self.keys, self.policy.current.rules)
        self._settings = settings
        self._applied_policy = AppliedPolicy(settings.state_folder, settings.policy_file)
        self._audit: AuditLog | None = None  # started by the first policy that asks for a record
        self._applied = self.policy.current
        self._unreadable: dict[str, str] = {}  # existing files that cannot be read -> the reason
        supervisor.watch("policy_files", self)
        self.limiter = _limiter(settings, supervisor)
        self._next_early_look = 0.0  # time.monotonic
        self._early_reading: asyncio.Task[object] | None = None
        self._streams = OpenStreams(self._caller, self.limiter, Access.checks)

    async def open(self) -> None:
        """Read the keys and the policy. Raises PolicyError if the policy is invalid at startup and
        no earlier process saved a valid one."""
        for _ in range(STEADY_LOOKS):  # a file that is still being written may be incomplete
            if self.policy.age_s() > STEADY_S:
                break
            await asyncio.sleep(STEADY_S / 10)
        self._refresh_keys()  # unreadable: no key is valid, and the gateway is not ready
        self._refresh_policy(is_start=True)
        self._apply_policy()
        self._applied_policy.report(self.policy.current.version)
        await self.limiter.heartbeat()

    async def close(self) -> None:
        self._applied_policy.close()
        await self.limiter.close()
        if self._audit:
            await asyncio.to_thread(self._audit.close)

    def refresh(self) -> bool:
        """Reload the files if they have changed, and return whether the rules in force are now
        different. An invalid file is logged once, and the previous state stays in force."""
        self._read_files()
        return self._follow_policy()

    async def refresh_off_loop(self) -> bool:
        """As ``refresh``, but changed files are read in a thread: 10,000 keys take a while."""
        if self.keys.is_stale() or self.policy.is_stale():
            await asyncio.to_thread(self._read_files)
        return self._follow_policy()

    def _read_files(self) -> None:
        self._refresh_keys()
        self._refresh_policy()

    def _follow_policy(self) -> bool:
        """Apply the policy in force unless that was done: a reading whose wait was cancelled may
        have ended since."""
        if self.policy.current is self._applied:
            return False
        self._apply_policy()
        self._applied_policy.report(self.policy.current.version)
        log.info("gateway.toml reloaded: version %s", self.policy.current.version)
        if self.policy.pending_s:
            log.info(
                "gateway.toml: the rights that it adds take effect in %.0f s, unless the file "
                "changes before then",
                self.policy.pending_s,
            )
        return True

    def fault(self) -> str:
        """Which of the files cannot be read: the rights they revoke are then not known."""
        return "; ".join(self._unreadable.values())

    def revive(self) -> bool:
        return False  # each refresh tries again

    def _refresh_keys(self) -> None:
        """Separate from the policy: one unreadable file must not hold up the other."""
        try:
            if self.keys.refresh():
                log.info("keys reloaded")
            if not self.keys.is_refused:
                self._unreadable.pop("keys.toml", None)
        except OSError as error:
            self._set_unreadable("keys.toml", error, "keys")
        except ValueError as error:  # TOMLDecodeError too
            if not self.keys.generation:  # there are no earlier keys: nobody would be let in
                self._set_unreadable("keys.toml", error, "keys")
                return
            self._unreadable.pop("keys.toml", None)
            log.error("keys.toml cannot be read, the previous keys stay in force: %s", error)

    def _refresh_policy(self, *, is_start: bool = False) -> None:
        try:
            self.policy.refresh()
            self._unreadable.pop("gateway.toml", None)
        except OSError as error:
            if is_start and not self.policy.has_last_good:
                raise
            self._set_unreadable("gateway.toml", error, "policy")
        except PolicyError as error:
            if is_start and not self.policy.has_last_good:
                raise
            self._unreadable.pop("gateway.toml", None)
            log.error("%s; the previous policy stays in force", error)

    def _set_unreadable(self, name: str, error: Exception, content: str) -> None:
        """Record the problem and log it once; the gateway is not ready until it is resolved."""
        reason = f"{name} cannot be read: {error}"
        if self._unreadable.get(name) != reason:
            log.error("%s; the previous %s stay in force", reason, content)
        self._unreadable[name] = reason

    def _apply_policy(self) -> None:
        self._applied = self.policy.current
        rules, settings = self._applied.rules, self._settings
        self.callers.apply(rules)
        self._warn_of_shares(rules)
        for name, tenants in tenants_without_fallback(rules).items():
            fallback = rules.pipelines[name].fallback
            log.warning(
                "gateway.toml: pipelines.%s.fallback: %s does not answer for tenants that may not "
                "use it: %s; add it to their models if it should",
                *(name, fallback, ", ".join(tenants)),
            )
        if rules.audit.record != "off" and self._audit is None:
            from gateway.audit.log import AuditLog

            self._audit = AuditLog(
                settings.state_folder, settings.pepper_file, self._metrics.audit_trouble
            )
            self._audit.start()
            self._supervisor.watch("audit", self._audit)

    def _warn_of_shares(self, rules: Rules) -> None:
        """Log the limits that are smaller than what processes counting separately let through."""
        settings = self._settings
        processes = settings.workers * settings.gateways
        if settings.redis_url or processes == 1:
            return
        for limit in rules.limits:
            counters = settings.gateways if limit.kind == "concurrency" else processes
            if limit.capacity < counters:
                log.warning(
                    "limits: %s processes count separately, and each lets one request through: "
                    "together that is more than your %s allows at once; set TIDEGATE_REDIS_URL",
                    counters,
                    limit.description,
                )

    async def identify(self, context: RequestContext) -> None:
        """Put the caller into the request's context. Raises Unauthenticated."""
        head = context.connection.known_head if context.connection else None
        if head and head.holding and self.keys.still_holds(head.holding):
            context.principal = head.holding.principal
            return
        context.refuse_twice()
        scope, authorization = context.scope, context.authorization()
        generation = self.keys.generation
        try:
            principal = await self.callers.identify(scope, authorization)
        except Unauthenticated:
            if authorization is None or not await self._has_newer_keys(generation):
                raise
            principal = await self.callers.identify(scope, authorization)
        context.principal = principal
        if head:
            head.holding = self.keys.holding(principal)

    async def _has_newer_keys(self, generation: int) -> bool:
        """Whether other keys are in force than those of the generation; if they have changed, they
        are read now: a key that was just created is valid at its first request. Asked for every
        refused credential, whether its id is known or not, so that the time tells nothing of it; a
        flood of them makes it look at the files every ``EARLY_LOOK_S`` at most."""
        now = time.monotonic()
        if self._early_reading is None and now >= self._next_early_look:
            self._next_early_look = now + EARLY_LOOK_S
            if self.keys.is_stale():
                reading = asyncio.to_thread(self._refresh_keys)
                self._early_reading = asyncio.create_task(reading)
                self._early_reading.add_done_callback(self._has_read)
        if self._early_reading:
            await asyncio.wait({self._early_reading})  # one for all who were refused meanwhile
        return self.keys.generation != generation

    def _has_read(self, _: "asyncio.Task[object]") -> None:
        self._early_reading = None

    async def _caller(self, context: RequestContext) -> Principal:
        """Who is calling, as of now."""
        return await self.callers.identify(context.scope, context.authorization())

    def admit(self, context: RequestContext, model: Model, reserved: float = 0) -> Admission:
        """An admission, for ``async with`` around the work; entering it raises LimitReached when
        the caller's limits are used up. ``reserved`` tokens are taken until the true count is
        known."""
        principal = context.principal
        if principal is None:
            raise Internal("a model was called without an identity: report the request id")
        context.model = model.name
        if not reserved and model.counts_tokens:
            reserved = context.body_bytes / BYTES_A_TOKEN
        checks = context.access.checks(principal, model.name, reserved)
        admission = context.admission = self.limiter.admit(checks, context)
        admission.model = model.name
        return admission

    @contextmanager
    def watching(
        self,
        context: RequestContext,
        end: Callable[[GatewayError], None],
        models: Callable[[], Iterable[str]],
        admissions: Callable[[], Iterable[Admission]],
    ) -> Iterator[None]:
        """Around a stream: calls ``end`` once, within two seconds after its caller has lost the
        right to it: through the key or token, the rules for one of ``models()``, or limits that
        its ``admissions()`` no longer fit into. The context's principal and access follow the
        rules in force, so that later messages of the stream are judged by them."""
        with self._streams.watching(context, end, models, admissions):
            yield

    @contextmanager
    def bounded(self, context: RequestContext) -> Iterator[None]:
        """``watching`` for a block of one coroutine that uses one model: the block is interrupted,
        and the error is raised in its place."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        cancels_before = task.cancelling()
        errors: list[GatewayError] = []

        def end(error: GatewayError) -> None:
            errors.append(error)
            task.cancel()

        with self.watching(
            context,
            end,
            lambda: (context.model,),
            lambda: (context.admission,) if context.admission else (),
        ):
            try:
                yield
            except asyncio.CancelledError:
                if errors and task.uncancel() <= cancels_before:
                    raise errors[0] from None
                raise

    async def check_streams(self) -> None:
        """End the streams whose callers no longer have a right to them. Call it four times a
        second."""
        if len(self._streams):
            self.callers.keep_fresh()
        access = self.policy.current.access
        await self._streams.check(access, (access, self.callers.generation))

    def meter(
        self, context: RequestContext, admission: Admission | None, model: Model
    ) -> "Meter | None":
        """A Meter that charges the admission with the tokens that the model's responses report, or
        None if no token limit applies: the responses are not read then."""
        if admission is None or not model.counts_tokens or not admission.counts_tokens:
            return None
        from gateway.models.metering import Meter

        context.tokens = meter = Meter(admission, model)
        return meter

    def record(self, context: RequestContext, status: int) -> None:
        """Write one line to the audit log, if the policy asks for this decision to be recorded."""
        if self._audit:
            self._audit.note(context, status, self.policy.current.rules.audit.record)


def _limiter(settings: Settings, supervisor: Supervisor) -> Limiter:
    processes = settings.workers * settings.gateways
    if settings.redis_url:
        from gateway.limits.redis.store import RedisStore

        store = RedisStore(
            settings.redis_url, lambda: supervisor.restarted("redis_limits", "had ended")
        )
        return Limiter(store, processes)
    shared_slots = None
    if settings.workers > 1:
        try:
            shared_slots = SharedSlots(settings.state_folder / "slots.lock")
        except OSError as error:
            log.warning("limits: each worker counts separately: %s", error)
    return Limiter(None, processes, shared_slots=shared_slots, machine=1 / settings.gateways)
