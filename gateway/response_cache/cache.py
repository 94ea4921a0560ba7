"""The response cache: equal requests to a deterministic model get the response that the first one
got, and those that arrive while it is on its way wait for it (single flight).

A hit takes no turn, no permit and nothing of Triton. Everything before that is as for any request:
identity, rights, limits, the tensor firewall, the audit record.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from gateway.errors import DeadlineExceeded, GatewayError
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Catalogue, Model
from gateway.models.sequences import SEQUENCE_ID
from gateway.response_cache.key import CacheScope
from gateway.response_cache.memory import MemoryStore
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.response_cache.redis_store import RedisStore

log = logging.getLogger("gateway")
# The catalogue says which version is served. If it could not be read for so long, nobody knows.
FRESH_S = 2.0
UNCERTAIN_S = 30.0  # a model whose versions differ for so long is reported: no rollout takes longer
CONFIRM_S = 7.0  # of a model without a golden sample: for its responses to be believed
MOST_UNCONFIRMED = 100_000  # keys of a model
Result = Literal["hit", "redis", "shared", "miss"]


class CachedResponse(NamedTuple):
    """A ModelInferResponse without an id, serialised, and the version of the model that wrote
    it."""

    version: str
    data: bytes


Work = Callable[[Sequence[int]], Awaitable[Sequence[CachedResponse]]]
Responses = Sequence[CachedResponse]


class _Unconfirmed(NamedTuple):
    """A response in memory that is to be put into Redis: since when it is known, and when it
    expires (monotonic seconds)."""

    since: float
    key: bytes
    expires_at: float


@dataclass(eq=False)
class _Flight:
    """A request that is on its way, and for which equal ones wait. ``outcome`` is its responses,
    the error that all of them get, or None if it was given up: one of them goes next."""

    outcome: "asyncio.Future[Responses | GatewayError | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def end(self, outcome: Responses | GatewayError | None) -> None:
        self.outcome.set_result(outcome)


class ResponseCache:
    """One per worker; with a Redis, they have its responses in common."""

    def __init__(self, settings: Settings) -> None:
        limit_bytes = settings.cache_mib * 2**20 // settings.workers
        self.memory = MemoryStore(limit_bytes, settings.cache_ttl_s)
        self.redis = _redis_store(settings)
        self._flights: dict[bytes, _Flight] = {}
        self._uncertain: dict[str, float] = {}  # model -> since when, monotonic seconds
        self._reported: set[str] = set()
        self._distrusted: frozenset[str] = frozenset()
        self._unconfirmed: dict[str, deque[_Unconfirmed]] = {}  # of each model, the oldest first

    async def open(self) -> None:
        if self.redis:
            await self.redis.open()

    async def close(self) -> None:
        if self.redis:
            await self.redis.close()

    def scope(
        self,
        context: RequestContext,
        catalogue: Catalogue,
        as_of: float,
        serving: str,
        version: str = "",
        parameters: Iterable[str] = (),
    ) -> CacheScope | None:
        """What the response would be kept under; None if this request has nothing to do with the
        cache: its model does not say that it is deterministic, keeps state or streams, its caller
        says no-store, its golden answer is wrong, or it is not known for certain which version will
        answer. ``as_of`` is when the replicas were asked for the versions in the catalogue."""
        model = catalogue.models.get(serving)
        if model is None or not _is_cacheable(model) or SEQUENCE_ID in parameters:
            return None
        if serving in self._distrusted:
            return None
        if time.monotonic() - as_of > FRESH_S or b"no-store" in _directives(context):
            return None
        version = version or model.only_version
        if not version or not model.revision:
            return None  # one is being replaced by another, or replicas differ
        return CacheScope(context.tenant, serving, version, model.revision)

    def keep_served(
        self,
        catalogue: Catalogue,
        distrusted: frozenset[str] = frozenset(),
        right_as_of: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Forget the responses of versions that are no longer served, and those of the models that
        are ``distrusted``: they give a wrong golden answer, and may have given others before that
        was seen. Report models that are not cached although they could be. Call it twice a second.

        Redis gets a response once its model has answered a golden sample correctly that was sent
        later, ``right_as_of`` (monotonic seconds): what is there cannot be taken back. Without a
        golden sample, after ``CONFIRM_S``.
        """
        self._distrusted = distrusted
        self._report(catalogue)
        self.memory.keep_only(
            {
                (name, version, model.revision)
                for name, model in catalogue.models.items()
                if _is_cacheable(model) and name not in distrusted
                for version in model.versions
            }
        )
        now = time.monotonic()
        for name in list(self._unconfirmed):
            self._confirm(name, right_as_of.get(name, now - CONFIRM_S), now)

    def _confirm(self, model: str, as_of: float, now: float) -> None:
        """Put the model's responses of before ``as_of`` into Redis."""
        notes = self._unconfirmed[model]
        while notes and (notes[0].since < as_of or notes[0].expires_at <= now):
            note = notes.popleft()
            kept = self.memory.still(note.key, note.expires_at)
            if kept and self.redis and note.since < as_of:
                self.redis.put(note.key, kept.response, kept.remaining_s)
        if not notes:
            del self._unconfirmed[model]

    def _report(self, catalogue: Catalogue) -> None:
        now = time.monotonic()
        self._uncertain = {
            name: self._uncertain.get(name, now)
            for name, model in catalogue.models.items()
            if _is_cacheable(model) and not (model.only_version and model.revision)
        }
        late = {name for name, since in self._uncertain.items() if now - since >= UNCERTAIN_S}
        for name in sorted(late - self._reported):
            log.warning(
                "the response cache leaves out %s: for %.0f s it has not been certain which "
                "version of it, or of its steps, answers. More than one is ready, or none",
                *(name, UNCERTAIN_S),
            )
        for name in sorted(self._reported - self._uncertain.keys()):
            log.info("the response cache leaves out %s no longer", name)
        self._reported = late

    async def responses(
        self,
        context: RequestContext,
        scope: CacheScope,
        keys: Sequence[bytes],
        work: Work,
        is_current: Callable[[], bool],
        flight_key: bytes = b"",
    ) -> Responses:
        """The response for each of the ``keys``, which are those of one request. ``work`` asks the
        model for some of them, by their indices; it is called with none that is known. Equal
        requests have the same ``flight_key`` (if there is one key: that). ``is_current`` says
        afterwards whether what was answered still belongs to the scope.

        Raises what ``work`` raises, also to those that wait for it, except for what is the fault of
        one caller only: that he left, or that his deadline passed. DeadlineExceeded if that of a
        waiting one passes, ClientGone if he leaves.
        """
        if b"no-cache" in _directives(context):
            context.cache = "miss"
            responses = await work(range(len(keys)))
            self._store(scope, keys, responses, is_current)
            return responses
        flight_key = flight_key or keys[0]
        while True:
            known = {
                index: CachedResponse(scope.version, data)
                for index, key in enumerate(keys)
                if (data := self.memory.get(key)) is not None
            }
            if len(known) == len(keys):
                context.cache = "hit"
                return [known[index] for index in range(len(keys))]
            flight = self._flights.get(flight_key)
            if flight is None:
                return await self._lead(context, scope, keys, known, work, is_current, flight_key)
            outcome = await _join(context, flight)
            if isinstance(outcome, GatewayError):
                raise outcome
            if outcome is not None:
                context.cache = "shared"
                return outcome

    async def _lead(
        self,
        context: RequestContext,
        scope: CacheScope,
        keys: Sequence[bytes],
        known: dict[int, CachedResponse],
        work: Work,
        is_current: Callable[[], bool],
        flight_key: bytes,
    ) -> Responses:
        flight = self._flights[flight_key] = _Flight()
        outcome: Responses | GatewayError | None = None
        result: Result = "miss"
        try:
            missing = [index for index in range(len(keys)) if index not in known]
            if self.redis:
                missing = await self._from_redis(scope, keys, missing, known)
                result = "miss" if missing else "redis"
            context.cache = result
            if missing:
                fresh = await work(missing)
                self._store(scope, [keys[index] for index in missing], fresh, is_current)
                known.update(zip(missing, fresh, strict=True))
            responses = [known[index] for index in range(len(keys))]
            outcome = responses
            return responses
        except DeadlineExceeded:
            raise  # its own: those that wait may have longer
        except GatewayError as error:
            outcome = error
            raise
        finally:
            del self._flights[flight_key]
            flight.end(outcome)

    async def _from_redis(
        self,
        scope: CacheScope,
        keys: Sequence[bytes],
        missing: Sequence[int],
        known: dict[int, CachedResponse],
    ) -> list[int]:
        """Add what Redis has of the missing ones to ``known``; returns those that it does not
        have."""
        assert self.redis is not None  # noqa: S101 - asked by the caller
        replies = await asyncio.gather(*(self.redis.get(keys[index]) for index in missing))
        for index, stored in zip(missing, replies, strict=True):
            if stored is not None:
                known[index] = CachedResponse(scope.version, stored.data)
                self.memory.put(scope, keys[index], stored.data, stored.remaining_s)
        return [index for index in missing if index not in known]

    def _store(
        self,
        scope: CacheScope,
        keys: Sequence[bytes],
        responses: Responses,
        is_current: Callable[[], bool],
    ) -> None:
        if not is_current():
            return
        for key, response in zip(keys, responses, strict=True):
            if response.version == scope.version:  # else it was replaced meanwhile
                expires_at = self.memory.put(scope, key, response.data)
                if self.redis and expires_at is not None:
                    notes = self._unconfirmed.get(scope.model)
                    if notes is None:
                        notes = self._unconfirmed[scope.model] = deque(maxlen=MOST_UNCONFIRMED)
                    notes.append(_Unconfirmed(time.monotonic(), key, expires_at))


def _redis_store(settings: Settings) -> "RedisStore | None":
    if not settings.cache_redis_url:
        return None
    from gateway.response_cache.redis_store import RedisStore

    return RedisStore(settings.cache_redis_url)


async def _join(context: RequestContext, flight: _Flight) -> Responses | GatewayError | None:
    """Wait for another request's outcome. The wait is the model's time, unless there is none: then
    this request, or another one, goes next, and has only queued until then."""
    started = time.perf_counter()
    wait = asyncio.wait({flight.outcome}, timeout=context.remaining_s())
    try:
        await context.while_connected(wait)
    finally:
        if not flight.outcome.done() or flight.outcome.result() is not None:
            context.upstream_s += time.perf_counter() - started
    if not flight.outcome.done():
        raise DeadlineExceeded("the model did not answer in time: try again or send less")
    return flight.outcome.result()


def _is_cacheable(model: Model) -> bool:
    return model.deterministic and not model.decoupled and model.sequences is None


def _directives(context: RequestContext) -> set[bytes]:
    """The request's Cache-Control, in lower case; the header may be there several times."""
    if b"cache-control" not in context.headers:
        return _NONE
    headers = context.scope["headers"]
    value = b",".join(value for name, value in headers if name == b"cache-control")
    return {part.strip() for part in value.lower().split(b",")}


_NONE: set[bytes] = set()
