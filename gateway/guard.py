"""The policy, joined: who is calling, what they may do, how much, and the record of it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any

from gateway.addons import load
from gateway.errors import GatewayError, Internal
from gateway.http.exchange import Exchange
from gateway.identity.callers import Callers
from gateway.identity.keys import KeyRing
from gateway.limits.limit import Subject, checks_of
from gateway.limits.limiter import Admission, Limiter
from gateway.metrics import Metrics
from gateway.models.catalogue import Model
from gateway.policy.gateway_toml import PolicyError
from gateway.policy.reload import PolicyFile
from gateway.settings import Settings
from gateway.supervision import Supervisor

log = logging.getLogger("gateway")
# Real text has about four bytes a token; a reservation is settled with the true number.
BYTES_A_TOKEN = 4
# At the start gateway.toml must not have changed for so long, if that comes to pass in a few looks.
STEADY_S, STEADY_LOOKS = 1.0, 50
_FREE: AbstractAsyncContextManager[Admission | None] = nullcontext()


class Guard:
    """One for each worker. Everything that it decides from is in memory, and swapped whole."""

    def __init__(self, settings: Settings, supervisor: Supervisor, metrics: Metrics) -> None:
        self._supervisor, self._metrics = supervisor, metrics
        self.keys = KeyRing(settings.keys_file, settings.pepper_file)
        self.policy = PolicyFile(settings.policy_file)
        self.callers = Callers(self.keys, self.policy.current.rules)
        self._settings = settings
        self._audit: Any = None  # begun by the first policy that wants a record
        redis = load("redis_limits")(settings.redis_url) if settings.redis_url else None
        self.limiter = Limiter(redis, gateways=settings.workers * settings.gateways)

    async def open(self) -> None:
        """Read the keys and the policy; PolicyError when the policy is wrong at the start."""
        for _ in range(STEADY_LOOKS):  # a file that is being written may be half of one
            if self.policy.age_s() > STEADY_S:
                break
            await asyncio.sleep(STEADY_S / 10)
        self.keys.refresh()
        self.policy.refresh()
        self._adopt()
        await self.limiter.beat()

    async def close(self) -> None:
        await self.limiter.close()
        if self._audit:
            await asyncio.to_thread(self._audit.close)

    def refresh(self) -> bool:
        """Follow the files; whether other rules are in force now. What is wrong is logged once, and
        the state before stays in force."""
        try:
            if self.keys.refresh():
                log.info("keys read again")
        except ValueError as error:  # TOMLDecodeError too
            log.error("keys.toml cannot be read, the keys before it stay in force: %s", error)
        before = self.policy.current
        try:
            self.policy.refresh()
        except PolicyError as error:
            log.error("%s; the policy before it stays in force", error)
        if self.policy.current is before:
            return False
        self._adopt()
        log.info("gateway.toml read again: version %s", self.policy.current.version)
        if self.policy.pending_s:
            log.info(
                "gateway.toml: what it gives more than before is in force in %.0f s, if the file "
                "does not change until then",
                self.policy.pending_s,
            )
        return True

    def _adopt(self) -> None:
        rules, settings = self.policy.current.rules, self._settings
        self.callers.adopt(rules)
        if rules.audit.record != "off" and self._audit is None:
            self._audit = load("audit")(
                settings.state_folder, settings.pepper_file, self._metrics.audit_trouble
            )
            self._audit.start()
            self._supervisor.watch("audit", self._audit)

    async def identify(self, exchange: Exchange) -> None:
        """Put the caller and the rules that hold for this request into the exchange."""
        exchange.refuse_twice()
        exchange.principal = await self.callers.identify(exchange.scope, exchange.authorization())

    def admit(
        self, exchange: Exchange, model: Model, reserved: float = 0
    ) -> AbstractAsyncContextManager[Admission | None]:
        """``async with`` it around the work: LimitReached when the caller's limits are used up.
        ``reserved`` tokens are taken until the true number is settled."""
        principal = exchange.principal
        if principal is None:
            raise Internal("a model was called without an identity: report the request id")
        exchange.model = model.name
        limits = exchange.access.limits(principal, model.name)
        if not limits:
            return _FREE
        subject = Subject(principal.tenant, principal.id, model.name)
        if not reserved and model.counts_tokens:
            reserved = exchange.body_bytes / BYTES_A_TOKEN
        return self.limiter.admit(checks_of(limits, subject, reserved), exchange)

    @contextmanager
    def watching(
        self,
        exchange: Exchange,
        end: Callable[[GatewayError], None],
        models: Callable[[], Iterable[str]],
        admissions: Callable[[], Iterable[Admission]],
    ) -> Iterator[None]:
        """Around a stream: ``end`` is called, once, within two seconds after its caller's right to
        it has ended: the key or token, the rules for one of ``models()``, or limits that its
        ``admissions()`` no longer fit into."""
        yield

    async def check_streams(self) -> None:
        pass

    def meter(self, admission: Admission | None, model: Model) -> Any:
        """What settles the admission with the tokens that the model's answers say they cost; None
        where no limit of tokens binds: nothing is read of the answers then."""
        if admission is None or not model.counts_tokens or not admission.counts_tokens:
            return None
        return load("metering")(admission, model)

    def record(self, exchange: Exchange, status: int) -> None:
        """One line of the audit log, if the policy wants this decision in it."""
        if self._audit:
            self._audit.note(exchange, status, self.policy.current.rules.audit.record)
