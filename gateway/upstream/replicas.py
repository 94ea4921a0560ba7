"""The Triton servers behind the gateway: the state of each, and permits to send requests to one.

``balancing`` decides which one gets a request. The state comes from four sources. The state of the
gRPC connection is read for every request: a server that was killed closes its connections, and gets
no requests from then on. An active check twice a second detects a server that hangs, and one that
is back; while a check is late, the other servers come first. What a replica refused or did not
answer counts as load for the model for a while. And one that fails far more of a model's requests
than the others do is ejected for it (``outliers``).

**Load is not death:** a server counts as hung after two checks one after the other without a
response, and only if it has answered no request since the first of them started.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NoCapacity,
    ReplicaLost,
    TooLarge,
    UpstreamError,
)
from gateway.upstream.affinity import PrefixAffinity, TextWork
from gateway.upstream.balancing import (
    MUCH_SLOWER,
    Health,
    ReplicaState,
    by_lot,
    candidates,
    choose,
    preferred,
)
from gateway.upstream.outliers import (
    FAILS_ELSEWHERE,
    LEAST_REQUESTS,
    LOT_SHARE,
    SUSPECT_S,
    Record,
    is_outlier,
    slow_start,
)
from gateway.upstream.server import CONTROL_TIMEOUT_S, Upstream

A = TypeVar("A")
log = logging.getLogger("gateway")
# A retry is sent only while retries are less than a fifth of all requests, and a few more: when
# every replica fails, retries must not double the load.
RETRY_SHARE, FEW_RETRIES, MOST_RETRIES = 0.2, 3.0, 50.0
CHECK_S = 0.5  # from the end of one round of checks to the next
ROUND_S = 0.2  # how long a round waits for a check that is late: it goes on beside the next rounds
CHECK_TIMEOUT_S = 1.0
LATE_CHECKS = 2  # after this many in a row, with no response to anything else, it counts as hung
RETIRED_S = 2 * CONTROL_TIMEOUT_S  # how long a removed replica's connection is kept
RETIRING_S = 0.5  # how often a removed replica is looked at: it may still have requests
# How long removed replicas wait at most, once a new one is up, for their models to be served.
LEAVING_S = 30.0
_DOWN = Health.DOWN
# TooLarge is a response, but also a failure: the server may have run out of memory.
_FULL, _REFUSALS = (NoCapacity, TooLarge), (InvalidRequest, TooLarge)
_BUSY = "every replica is busy: try again shortly"
_NEW = "has not listed its models yet"
_NOBODY = "no server can take this now: try again shortly"


class Standing(NamedTuple):
    """How a replica stands for a model; the better of two is the larger one, by what counts first
    in ``balancing.candidates``."""

    health: Health
    is_right: bool
    is_not_ejected: bool
    is_not_silent: bool
    is_not_drained: bool


class Replica:
    """One Triton server: its state, and how many of our requests it is working on."""

    def __init__(
        self,
        address: str,
        upstream: Upstream,
        on_failure: Callable[["Permit"], None] = lambda permit: None,
        on_text: Callable[["Permit"], None] = lambda permit: None,
    ) -> None:
        """``on_failure`` is called after each failure that may be the replica's own fault,
        ``on_text`` after each text that it continued."""
        self.address, self.upstream = address, upstream
        self.on_failure, self.on_text = on_failure, on_text
        self.inflight = 0
        self.aside = 0  # requests whose callers are not reading: not counted in ``inflight``
        self.texts = self.tokens = 0  # texts under way, of all models, and about how many tokens
        self.fault = ""  # what the last active check found
        self.versions: Mapping[str, tuple[str, ...]] | None = None  # its index; None: not read yet
        self.probes: dict[str, str] = {}  # pipeline -> '' or the fault that its probe found here
        self.responded: dict[str, float] = {}  # model -> its last response, monotonic seconds
        self.last_response = 0.0  # the last response to anything, monotonic seconds
        # When the check was sent that is late, monotonic seconds; -inf: none is.
        self._late_since = -math.inf
        self._check: asyncio.Task[None] | None = None
        self.records: dict[str, Record] = {}  # model -> what became of its requests here
        self.is_drained = False  # by an operator
        self.back_since = -math.inf  # when it was found alive again, monotonic seconds
        # When it is removed at the latest, monotonic seconds; inf as long as it is listed.
        self.leaves_at = math.inf

    @property
    def grpc_address(self) -> str:
        """HOST:GRPC_PORT: the same for every gateway, whether it uses the HTTP port or not."""
        return self.address.partition("/")[0]

    @property
    def is_leaving(self) -> bool:
        """Whether it is no longer listed, and stays only until others can replace it."""
        return self.leaves_at < math.inf

    @property
    def health(self) -> Health:
        return _DOWN if self.fault else self.upstream.health()

    @property
    def reason(self) -> str:
        """Why it gets no requests, or '' if it does."""
        if self.fault:
            return self.fault
        reasons = {Health.DOWN: "cannot be reached", Health.UNKNOWN: "is being connected to"}
        reason = reasons.get(self.upstream.health(), "")
        if not reason and self.versions is not None and not self.versions:
            reason = "serves no model yet"
        return reason or ("is drained by an operator" if self.is_drained else "")

    @property
    def is_silent(self) -> bool:
        """Whether a check is late, and it has answered nothing else since that was sent."""
        return self.last_response < self._late_since

    def serves(self, model: str, version: str = "") -> bool:
        """Whether it has the model (and version) ready; true without a name, and until its index
        has been read."""
        if not model or self.versions is None:
            return True
        versions = self.versions.get(model)
        return versions is not None and (not version or version in versions)

    def state(self, model: str, version: str, now: float, tokens: int = 0) -> ReplicaState:
        """``tokens``: those of the text to send; 0 for other requests."""
        serves, is_right = self.serves(model, version), not self.probes.get(model)
        weight = slow_start(now - self.back_since)
        load = None
        if tokens:  # what is no text is as much work as this one: who knows
            load = self.tokens / tokens + max(0, self.inflight - self.texts)
        record = self.records.get(model)
        if record is None:
            return ReplicaState(
                *(self.health, self.inflight, 0, serves, is_right),
                weight=weight,
                load=load,
                is_drained=self.is_drained,
                is_silent=self.is_silent,
            )
        return ReplicaState(
            *(self.health, self.inflight, record.refusals(now), serves, is_right),
            is_ejected=record.gets_none(now),
            latency_s=record.latency_s(now),
            weight=min(weight, record.weight(now)),
            load=load,
            is_drained=self.is_drained,
            is_silent=self.is_silent,
        )

    def ejected(self) -> dict[str, float]:
        """The models for which it gets no requests, or one at a time -> the seconds until it gets
        the next; 0.0 for one that is on trial."""
        now = time.monotonic()
        return {
            model: max(0.0, record.ejected_until - now)
            for model, record in self.records.items()
            if record.trials_left
        }

    def standing(self, model: str) -> Standing:
        record = self.records.get(model)
        return Standing(
            self.health,
            is_right=not self.probes.get(model),
            is_not_ejected=record is None or not record.trials_left,
            is_not_silent=not self.is_silent,
            is_not_drained=not self.is_drained,
        )

    def gets_none(self, model: str, now: float) -> bool:
        """Whether it is ejected for the model."""
        record = self.records.get(model)
        return record is not None and record.gets_none(now)

    def record(self, model: str) -> Record:
        record = self.records.get(model)
        if record is None:
            record = self.records[model] = Record()
        return record

    def permit(
        self, model: str = "", *, by_lot: bool = False, work: TextWork | None = None
    ) -> "Permit":
        """A permit, whatever its load and health. ``by_lot``: nothing but chance chose this
        replica, so what becomes of the request can be compared."""
        return Permit(self, model, by_lot=by_lot, work=work)

    def index_read(self, versions: Mapping[str, tuple[str, ...]]) -> None:
        """Its index, as just read: what is known of models that are gone is forgotten, and one that
        is new here starts slowly (a server that is back may load its models long after that)."""
        known, self.versions = self.versions, versions
        for model in [model for model in self.records if model not in versions]:
            del self.records[model]
            self.responded.pop(model, None)
        if known is not None:
            now = time.monotonic()
            for model in versions.keys() - known.keys():
                self.record(model).back_since = now

    def checked(self) -> asyncio.Task[None]:
        """The check that is under way, or else a new one."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self.check())
        return self._check

    def give_up_check(self) -> None:
        if self._check is not None:
            self._check.cancel()

    async def check(self) -> None:
        """Check whether it is live, and log a change."""
        previous_fault = self.fault
        try:
            fault = await self._find_fault()
        finally:
            self._late_since = -math.inf
        if previous_fault and not fault:
            fault = await self._read_versions()
        self.fault = fault
        if self.fault and previous_fault in ("", _NEW) and self.fault != previous_fault:
            log.warning("replica %s gets no requests: it %s", self.address, self.fault)
        elif previous_fault and not self.fault:
            self.back_since = time.monotonic()
            for record in self.records.values():
                record.forget_refusals()
            reason = self.reason  # it is alive, and may load its models for a while
            log.info("replica %s %s", self.address, reason or "gets requests now")

    async def _find_fault(self) -> str:
        """'' or what is wrong with the server. A check that is late is followed by the next one at
        once: what hangs is known to after ``LATE_CHECKS`` times ``CHECK_TIMEOUT_S``."""
        began = time.monotonic()
        for _ in range(LATE_CHECKS):
            try:
                is_live = await self.upstream.is_live(CHECK_TIMEOUT_S)
            except DeadlineExceeded:
                if self.fault:
                    break
                self._late_since = began
                if not self.is_silent:
                    return ""
            except NoCapacity:
                return "cannot be reached"
            except GatewayError:
                return ""  # it does not support the call, but it responds
            else:
                return "" if is_live else "is shutting down"
        return "does not respond"

    async def _read_versions(self) -> str:
        """Read the index of a server that is back: it may have been restarted, and not have loaded
        its models yet. Returns '' or the fault."""
        try:
            self.index_read(await self.upstream.ready_versions())
        except GatewayError:
            return "does not list its models"
        return ""

    def ended(self, model: str, error: BaseException | None) -> None:
        """Record that it is alive, if the end of this request shows it."""
        if error is None or isinstance(error, _REFUSALS):
            self.last_response = self.responded[model] = time.monotonic()


class Permit:
    """The right to one request to a replica, which counts as in flight while it is entered."""

    __slots__ = ("_sent", "_trial", "by_lot", "is_trial", "model", "replica", "work")

    def __init__(
        self,
        replica: Replica,
        model: str,
        *,
        by_lot: bool = False,
        is_trial: bool = False,
        work: TextWork | None = None,
    ) -> None:
        """``is_trial``: an ejected replica gets it, to see whether it is well again. ``work``: the
        text to continue, if it is that."""
        self.replica, self.model, self.by_lot, self.is_trial = replica, model, by_lot, is_trial
        self.work = work
        self._sent = 0.0
        self._trial: Record | None = None

    @property
    def inflight(self) -> int:
        return self.replica.inflight

    def __enter__(self) -> Upstream:
        replica = self.replica
        replica.inflight += 1
        if self.work:
            replica.texts += 1
            replica.tokens += self.work.tokens
        self._sent = time.monotonic()
        if self.is_trial:
            self._trial = replica.record(self.model)
            self._trial.trial_began(self._sent)
        return replica.upstream

    def __exit__(self, error_type: object, error: BaseException | None, traceback: object) -> None:
        replica, now = self.replica, time.monotonic()
        replica.inflight -= 1
        if self.work:
            replica.texts -= 1
            replica.tokens -= self.work.tokens
        if error is None:
            replica.record(self.model).answered(now - self._sent, now, by_lot=self.by_lot)
        else:
            self._judge(error, now)
        if self._trial is not None:
            self._trial.trials -= 1
            if error is None and self._trial.trials_left and self._trial.trial_passed(now):
                log.info("replica %s gets requests for %s again", replica.address, self.model)
        if isinstance(error, UpstreamError):
            replica.on_failure(self)
        # Who has read enough of it closes the generator.
        if self.work and (error is None or isinstance(error, GeneratorExit)):
            replica.on_text(self)
        replica.ended(self.model, error)

    def _judge(self, error: BaseException, now: float) -> None:
        """What a request that had no good answer says of the replica."""
        record = self.replica.record
        # A late one counts as refused only if the model has answered nothing here since: load is
        # not death.
        is_silent = self.replica.responded.get(self.model, 0.0) <= self._sent
        if isinstance(error, _FULL) or (is_silent and isinstance(error, DeadlineExceeded)):
            record(self.model).refused(now)
        if isinstance(error, UpstreamError):
            # Not what a client did wrong or had no patience for, nor a full model.
            record(self.model).failed(now, by_lot=self.by_lot)


class ReplicaPool:
    """Permits for requests to a replica. There is no queue: a full pool refuses at once."""

    def __init__(
        self,
        connect: Callable[[str], Upstream],
        max_inflight: int,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._connect, self._max_inflight, self._draw = connect, max_inflight, draw
        self.replicas: list[Replica] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._lots: dict[str, frozenset[str]] = {}  # model -> the replicas that are compared now
        self._affinity = PrefixAffinity()
        self._retries = FEW_RETRIES  # how many may be sent now
        self._suspect_until: dict[str, float] = {}  # model -> monotonic seconds

    def apply(self, addresses: Sequence[str]) -> None:
        """Use these replicas from now on; requests in flight on others end there. A new one gets
        requests once it has listed its models, if others are up meanwhile: one that stays or, if
        none of those is up, the removed ones, which leave when they are dispensable (at the latest
        LEAVING_S after a new one is up)."""
        removed = {replica.address: replica for replica in self.replicas}
        addresses = list(dict.fromkeys(addresses))
        kept = [removed.pop(address, None) for address in addresses]
        # One that is up may serve no model yet, and replaces nobody then.
        is_served = any(
            replica and replica.health is Health.UP and replica.versions != {} for replica in kept
        )
        leaving = [
            replica
            for replica in removed.values()
            if replica.health is Health.UP and (not is_served or replica.is_leaving)
        ]
        fault = _NEW if is_served or leaving else ""
        listed = []
        for address, known in zip(addresses, kept, strict=True):
            replica = known or Replica(
                address, self._connect(address), self._on_failure, self._on_text
            )
            if known is None or known.fault == _NEW:
                replica.fault = fault  # those that it could wait for may be gone
            replica.leaves_at = math.inf
            listed.append(replica)
        for replica in leaving:
            if not replica.is_leaving:
                replica.leaves_at = time.monotonic() + LEAVING_S
                log.info("replica %s stays until a new one serves its models", replica.address)
        self.replicas = [*listed, *leaving]
        self._retire(replica for replica in removed.values() if replica not in leaving)

    def _retire(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            task = asyncio.ensure_future(_retire(replica))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _let_leave(self) -> None:
        """Retire what is no longer listed, as soon as those that are listed can replace it."""
        listed = [replica for replica in self.replicas if not replica.is_leaving]
        is_served = any(replica.health is Health.UP for replica in listed)
        now = time.monotonic()
        if listed and not is_served:  # nobody is there yet, however long it takes
            for replica in self.replicas:
                if replica.is_leaving:
                    replica.leaves_at = now + LEAVING_S
        gone = [
            replica
            for replica in self.replicas
            if replica.is_leaving
            and (
                replica.leaves_at <= now
                or replica.health is not Health.UP
                or (is_served and self.is_dispensable(replica))
            )
        ]
        if gone:
            self.replicas = [replica for replica in self.replicas if replica not in gone]
            self._retire(gone)

    def drain(self, addresses: Collection[str]) -> list[Replica]:
        """Send no new requests to the replicas of these addresses (HOST:GRPC_PORT), as long as
        others that are as well can take them. Those that were drained and are not any more are
        returned: they start slowly."""
        lifted = []
        for replica in self.replicas:
            was_drained, is_drained = replica.is_drained, replica.grpc_address in addresses
            replica.is_drained = is_drained
            if is_drained and not was_drained:
                log.info("replica %s is drained: it gets no new requests", replica.address)
            elif was_drained and not is_drained:
                lifted.append(replica)
                replica.back_since = time.monotonic()
                log.info("replica %s is no longer drained", replica.address)
        return lifted

    def is_dispensable(self, replica: Replica) -> bool:
        """Whether other replicas take every request for the models that it serves: each model is
        right on another one that is up, not drained, and not ejected for it."""
        others = [
            other
            for other in self.replicas
            if other is not replica
            and other.health is Health.UP
            and not other.is_drained
            and not other.is_leaving
        ]
        return all(
            any(
                model in (other.versions or ())
                and other.standing(model).is_right
                and other.standing(model).is_not_ejected
                for other in others
            )
            for model in replica.versions or ()
        )

    async def call(
        self,
        model: str,
        version: str,
        work: Callable[[Upstream], Awaitable[A]],
        *,
        may_repeat: bool,
    ) -> A:
        """The result of ``work`` at a replica, or at a second one if the first was lost: see
        ``second_permit``."""
        permit = self.permit(model, version)
        try:
            with permit as upstream:
                return await work(upstream)
        except ReplicaLost as error:
            permit = self.second_permit(permit, error, version, may_repeat=may_repeat)
        with permit as upstream:
            return await work(upstream)

    def second_permit(
        self, first: Permit, error: ReplicaLost, version: str = "", *, may_repeat: bool
    ) -> Permit:
        """A permit for another replica, for a request whose first one was lost before any of its
        response was passed on. Raises the ``error`` if there is none, if too many requests were
        sent a second time lately, or if the first replica may have worked on it and the request
        ``may_repeat`` no work."""
        others = [
            replica
            for replica in self.replicas
            if replica is not first.replica and replica.serves(first.model, version)
        ]
        if self._retries < 1 or not others or (error.was_sent and not may_repeat):
            raise error
        try:
            permit = self._permit(others, first.model, version, first.work)
        except NoCapacity:
            raise error from None
        self._retries -= 1
        log.info(
            "sent once more, to replica %s: %s was lost",
            permit.replica.address,
            first.replica.address,
        )
        return permit

    def permit(
        self,
        model: str = "",
        version: str = "",
        at: Upstream | None = None,
        work: TextWork | None = None,
    ) -> Permit:
        """A permit for a healthy replica that serves the model (``choose``); enter it at once.

        The replica ``at`` which a stream already is comes first, as long as it is up and serves the
        model; then, for a text, the one that has computed its beginning (``PrefixAffinity``), and
        among others the one with fewer tokens under way. Raises NoCapacity if all are full, and if
        none is healthy: at once, since a dead server would refuse and a hung one would hold the
        caller until its deadline.
        """
        replicas = self.replicas
        permit = self._permit_at(at, model, version, work) if at is not None else None
        if permit is None and len(replicas) == 1:  # nothing to choose from: most gateways' case
            only = replicas[0]
            if only.health and only.inflight < self._max_inflight and only.serves(model, version):
                permit = Permit(only, model, work=work)
        if permit is None:
            permit = self._permit(replicas, model, version, work)
        self._retries = min(MOST_RETRIES, self._retries + RETRY_SHARE)
        return permit

    def _permit_at(
        self, at: Upstream, model: str, version: str, work: TextWork | None
    ) -> Permit | None:
        """For the replica ``at`` which a stream already is; None if it is not well enough. Raises
        NoCapacity if it is full."""
        replica = self._replica_of(at)
        if replica is None or replica.health is not Health.UP or replica.is_drained:
            return None
        if replica.is_silent:
            return None
        record = replica.records.get(model)
        if not replica.serves(model, version) or (record is not None and record.trials_left):
            return None
        if replica.inflight >= self._max_inflight:
            raise NoCapacity(_BUSY, retry_after_s=1)
        return replica.permit(model, work=work)

    def unpermitted(self, model: str) -> Upstream:
        """Of the ``candidates`` that are up, the one with the fewest requests; for a request that
        nobody waits for. It counts for nothing. Raises NoCapacity if there is none."""
        replicas = self.candidates(model)
        if not replicas or replicas[0].health is not Health.UP:
            raise NoCapacity(_NOBODY, retry_after_s=1)
        return min(replicas, key=lambda replica: (replica.inflight, self._draw())).upstream

    def require(self, model: str) -> None:
        """Raises NoCapacity if no replica could take a request for the model now."""
        if not any(replica.health and replica.serves(model) for replica in self.replicas):
            raise NoCapacity(_NOBODY, retry_after_s=1)

    def takes(self, model: str) -> bool:
        """Whether a replica would take a request for the model now: one that is up, serves it, is
        not full, and is not ejected for it."""
        now = time.monotonic()
        return any(
            replica.health
            and replica.inflight < self._max_inflight
            and replica.serves(model)
            and not replica.gets_none(model, now)
            for replica in self.replicas
        )

    def candidates(self, model: str) -> list[Replica]:
        """The replicas one of which gets the next request for the model, as far as they have room
        (``balancing.candidates``): not those that it would get only without these."""
        now = time.monotonic()
        states = [replica.state(model, "", now) for replica in self.replicas]
        return [self.replicas[index] for index in candidates(states)]

    def has_http(self, model: str) -> bool:
        """Whether a replica that serves the model can be asked over HTTP/1.1."""
        for replica in self.replicas:
            if replica.upstream.http_upstream is not None and replica.serves(model):
                return True
        return False

    def _permit(
        self,
        replicas: Sequence[Replica],
        model: str,
        version: str,
        work: TextWork | None = None,
    ) -> Permit:
        now, tokens = time.monotonic(), work.tokens if work else 0
        states = [replica.state(model, version, now, tokens) for replica in replicas]
        is_drawn, index = False, None
        if now < self._suspect_until.get(model, 0.0) and self._draw() < LOT_SHARE:
            index, is_drawn = self._by_lot(replicas, states, model)
        if index is None and work:
            index = self._known_to(replicas, states, model, work)
        if index is None:
            index = choose(states, self._max_inflight, self._draw)
        if index is not None:
            replica = replicas[index]
            record = replica.records.get(model)
            is_trial = record is not None and record.trials_left > 0
            return Permit(replica, model, by_lot=is_drawn, is_trial=is_trial, work=work)
        if candidates(states):
            raise NoCapacity(_BUSY, retry_after_s=1)
        raise NoCapacity(_NOBODY, retry_after_s=1)

    def _by_lot(
        self, replicas: Sequence[Replica], states: Sequence[ReplicaState], model: str
    ) -> tuple[int | None, bool]:
        """The index of the replica that the lot chose, or None, and whether what becomes of the
        request can be compared: if all take part alike, and no replica is on trial."""
        if replicas is not self.replicas:  # a request that is sent once more
            return None, False
        indices = candidates(states)
        if len(indices) < 2 or any(states[index].weight < 1 for index in indices):
            self._lots.pop(model, None)
            return None, False
        index = by_lot(states, indices, self._max_inflight, self._draw)
        records = [replicas[index].records.get(model) for index in indices]
        if index is None or any(record and record.trials_left for record in records):
            return index, False
        taking_part = frozenset(replicas[index].address for index in indices)
        if self._lots.get(model) != taking_part:
            self._lots[model] = taking_part
            for record in records:
                if record:
                    record.forget_counts()
        return index, True

    def _known_to(
        self,
        replicas: Sequence[Replica],
        states: Sequence[ReplicaState],
        model: str,
        work: TextWork,
    ) -> int | None:
        """The index of the candidate that has computed the text's beginning; None if it may go to
        any. One that is new is not drowned, and one that refuses or is much slower than another
        gets what is drawn: it would have nothing under way, and so always have room."""
        quickest_s = min((state.latency_s for state in states if state.latency_s), default=0.0)
        loads = {
            replicas[index].address: states[index].load or 0.0
            for index in candidates(states)
            if (state := states[index]).inflight < self._max_inflight
            and state.weight >= 1
            and not state.failures
            and state.latency_s <= MUCH_SLOWER * (quickest_s or state.latency_s)
        }
        home = self._affinity.home(model, work, loads)
        return next((i for i, replica in enumerate(replicas) if replica.address == home), None)

    def _on_text(self, permit: Permit) -> None:
        if permit.work:
            self._affinity.sent(permit.model, permit.work, permit.replica.address)

    def _on_failure(self, permit: Permit) -> None:
        """Judge the replica by a request that failed: eject it for the model if it is an outlier,
        or if the request was its trial."""
        if len(self.replicas) == 1:
            return
        now = time.monotonic()
        self._suspect_until[permit.model] = now + SUSPECT_S
        record = permit.replica.record(permit.model)
        if record.trials_left:
            if permit.is_trial:
                answers, failures = _together(self._other_records(permit), now)
                requests = answers + failures
                fails = requests >= LEAST_REQUESTS and failures >= FAILS_ELSEWHERE * requests
                record.eject(now, for_longer=not fails)
        elif permit.by_lot:
            record.forgive(now)
            self._find_outlier(permit, record, now)

    def _other_records(self, permit: Permit) -> list[Record]:
        return [
            other.record(permit.model)
            for other in self.replicas
            if other is not permit.replica
            and other.health is Health.UP
            and other.serves(permit.model)
        ]

    def _find_outlier(self, permit: Permit, record: Record, now: float) -> None:
        """Eject the replica for the model if it is an outlier. At most half of the replicas that
        serve a model are ejected for it: worse than few healthy ones is none."""
        others = self._other_records(permit)
        if 2 * (1 + sum(other.trials_left > 0 for other in others)) > 1 + len(others):
            return
        own, together = record.counts(now), _together(others, now)
        if is_outlier(own, together):
            record.eject(now)
            log.warning(
                "replica %s gets no requests for %s for %.0f s: it failed %.0f of %.0f, the others "
                "%.0f of %.0f",
                *(permit.replica.address, permit.model, record.ejected_until - now),
                *(own[1], sum(own), together[1], sum(together)),
            )

    def _replica_of(self, upstream: Upstream | None) -> Replica | None:
        return next((replica for replica in self.replicas if replica.upstream is upstream), None)

    @contextmanager
    def set_aside(self, upstream: Upstream | None, count: int) -> Iterator[None]:
        """While ``count`` of the requests that have permits for it wait for their caller to read,
        let others use these permits. The caller gets them back unconditionally."""
        replica = self._replica_of(upstream)
        if replica is None:  # it is being retired, and gets no other requests
            yield
            return
        replica.inflight -= count
        replica.aside += count
        try:
            yield
        finally:
            replica.inflight += count
            replica.aside -= count

    def home(
        self, sequence: int | str, model: str, version: str, *, begun_at: str, starts: bool
    ) -> Replica:
        """The replica that a sequence's request has to go to.

        ``begun_at`` is the address where it was started, or '' if this process does not know. A
        sequence that starts (and whose replica will be remembered) takes the first healthy replica
        in its order of preference. Any other request goes to where the sequence was started, or
        else to the first in that order, healthy or not. Raises UpstreamError if that replica is
        gone, and NoCapacity if it is full or, for a start, if none is healthy.
        """
        serving = {
            replica.grpc_address: replica
            for replica in self.replicas
            if replica.serves(model, version)
        }
        preference = [serving[address] for address in preferred(sequence, serving)]
        if starts:
            # Stable: of those that are well, the first.
            preference.sort(key=lambda replica: replica.standing(model), reverse=True)
        elif begun_at:
            preference = [replica for replica in self.replicas if replica.grpc_address == begun_at]
        if not preference or (starts and not preference[0].health):
            raise lost() if begun_at and not starts else NoCapacity(_NOBODY, retry_after_s=1)
        replica = preference[0]
        if not replica.health:
            raise lost()
        if replica.inflight >= self._max_inflight:
            raise NoCapacity(
                "the replica of this sequence is busy: try again shortly", retry_after_s=1
            )
        return replica

    async def describe(self, method: str, model: str = "", version: str = "") -> Any:
        """As ``Upstream.describe``, from the first replica in the list that responds.

        Not from the least busy: each replica has its own statistics, and they must not jump.
        """
        last_error: GatewayError = NoCapacity(_NOBODY, retry_after_s=1)
        replicas = [
            replica
            for replica in self.replicas
            if replica.serves(model, version) and replica.health
        ]
        # Stable: the first in the list, of those that are as well.
        replicas.sort(key=lambda replica: (replica.health, not replica.is_silent), reverse=True)
        for replica in replicas:
            try:
                return await replica.upstream.describe(method, model, version)
            except (NoCapacity, DeadlineExceeded) as error:
                last_error = error
        raise last_error

    async def check(self, within_s: float = CHECK_TIMEOUT_S) -> None:
        """Check all replicas concurrently, ``CHECK_S`` after the last time. It returns after
        ``within_s`` at the latest: a check that is late goes on, and delays those of no other."""
        if checks := {replica.checked() for replica in self.replicas}:
            done, _ = await asyncio.wait(checks, timeout=within_s)
            for check in done:
                check.result()
        self._let_leave()

    async def close(self) -> None:
        for task in self._retiring:
            task.cancel()
        for replica in self.replicas:
            replica.give_up_check()
        await asyncio.gather(*(replica.upstream.close() for replica in self.replicas))


def _together(records: Sequence[Record], now: float) -> tuple[float, float]:
    """Their answers and failures, by what they weigh; not those of ejected replicas."""
    counts = [record.counts(now) for record in records if not record.trials_left]
    return sum(answers for answers, _ in counts), sum(failures for _, failures in counts)


def lost() -> UpstreamError:
    """The error for a sequence whose server is gone: no other server knows its state."""
    return UpstreamError("the server of this sequence is gone: start the sequence again")


async def _retire(replica: Replica) -> None:
    """Close the connection once its last request has been answered, and what the background asks
    it (its index, configs, a golden sample)."""
    while replica.inflight or replica.aside:  # noqa: ASYNC110 - each request would pay for an Event
        await asyncio.sleep(RETIRING_S)
    await asyncio.sleep(RETIRED_S)
    await replica.upstream.close()
