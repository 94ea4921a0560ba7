"""Equal requests at a time: one of them asks, and what becomes of the others when it fails."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from gateway.errors import DeadlineExceeded, InvalidRequest, NoCapacity, UpstreamError
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Catalogue, Model
from gateway.models.sequences import SequenceSlots
from gateway.response_cache.cache import (
    CONFIRM_S,
    FRESH_S,
    UNCERTAIN_S,
    CachedResponse,
    ResponseCache,
)
from gateway.response_cache.key import CacheScope
from gateway.settings import Settings
from tests.gateway.request_contexts import context_of

SCOPE = CacheScope("default", "m", "1", "abc")
KEY = b"k" * 32


async def _connected():
    await asyncio.Future()


def _context(deadline_s: float = 10.0, **headers: str) -> RequestContext:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"path": "/v2/models/m/infer", "headers": raw}
    return context_of(scope, _connected, deadline_s=deadline_s)


class Work:
    """What asks the model: it takes ``seconds``, and fails with ``error``."""

    def __init__(self, seconds: float = 0.05, error: Exception | None = None, version: str = "1"):
        self.seconds, self.error, self.version = seconds, error, version
        self.calls: list[list[int]] = []

    async def __call__(self, missing: Sequence[int]) -> list[CachedResponse]:
        self.calls.append(list(missing))
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        return [CachedResponse(self.version, b"%d" % index) for index in missing]


@pytest.fixture
def cache() -> ResponseCache:
    return ResponseCache(Settings(cache_mib=1))


def _ask(cache, work, context=None, keys=(KEY,), is_current=lambda: True, flight_key=b""):
    context = context or _context()
    return cache.responses(context, SCOPE, list(keys), work, is_current, flight_key)


async def test_one_asks_for_all(cache):
    work = Work()
    contexts = [_context() for _ in range(10)]
    responses = await asyncio.gather(*(_ask(cache, work, context) for context in contexts))
    assert responses == [[CachedResponse("1", b"0")]] * 10 and len(work.calls) == 1
    assert [context.cache for context in contexts] == ["miss"] + ["shared"] * 9
    later = _context()
    assert await _ask(cache, work, later) == responses[0]
    assert (later.cache, len(work.calls)) == ("hit", 1)


@pytest.mark.parametrize(
    "error", [UpstreamError("x"), NoCapacity("x"), InvalidRequest("x")], ids=lambda e: e.code
)
async def test_what_the_model_refuses_is_refused_for_all_and_not_kept(cache, error):
    work = Work(error=error)
    outcomes = await asyncio.gather(*(_ask(cache, work) for _ in range(5)), return_exceptions=True)
    assert outcomes == [error] * 5 and len(work.calls) == 1
    work.error = None
    assert await _ask(cache, work) == [CachedResponse("1", b"0")]
    assert len(work.calls) == 2


async def test_when_the_first_is_cancelled_one_other_takes_over(cache):
    work = Work(60)
    leader = asyncio.create_task(_ask(cache, work))
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(_ask(cache, work)) for _ in range(5)]
    await asyncio.sleep(0.02)
    work.seconds = 0.05
    leader.cancel()
    assert await asyncio.gather(*others) == [[CachedResponse("1", b"0")]] * 5
    assert len(work.calls) == 2
    with pytest.raises(asyncio.CancelledError):
        await leader


async def test_a_wait_for_one_that_gave_up_is_the_queues_and_not_the_models(cache):
    """Else queue and upstream together would be more than the whole."""
    shared, leader = _context(), asyncio.create_task(_ask(cache, Work(60)))
    await asyncio.sleep(0.02)
    context, work = _context(), Work(0)
    follower = asyncio.create_task(_ask(cache, work, context))
    await asyncio.sleep(0.02)
    leader.cancel()
    await follower
    assert (context.cache, context.upstream_s) == ("miss", 0.0)
    leader = asyncio.create_task(_ask(cache, Work(1), keys=[b"other"]))
    await asyncio.sleep(0.02)
    await _ask(cache, Work(0), shared, keys=[b"other"])
    await leader
    assert shared.cache == "shared" and shared.upstream_s > 0.01


async def test_the_firsts_deadline_is_its_own(cache):
    work = Work(0.05, DeadlineExceeded("the first one's"))
    leader = asyncio.create_task(_ask(cache, work))
    await asyncio.sleep(0.01)
    follower = asyncio.create_task(_ask(cache, work))
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded):
        await leader
    work.error = None
    assert await follower == [CachedResponse("1", b"0")]


async def test_who_waits_has_a_deadline_too(cache):
    work = Work(60)
    leader = asyncio.create_task(_ask(cache, work))
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded):
        await _ask(cache, work, _context(0.1))
    assert not leader.done()
    leader.cancel()


async def test_when_all_have_left_nothing_is_asked_and_nothing_is_left(cache):
    work = Work(60)
    tasks = [asyncio.create_task(_ask(cache, work)) for _ in range(3)]
    await asyncio.sleep(0.02)
    for task in reversed(tasks):
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert len(work.calls) == 1 and not cache._flights


async def test_only_the_unknown_batches_are_asked_for(cache):
    keys = [bytes([number]) * 32 for number in range(3)]
    work = Work(0)
    await _ask(cache, work, keys=keys[1:2])
    context = _context()
    responses = await _ask(cache, work, context, keys, flight_key=b"f")
    assert work.calls == [[0], [0, 2]] and context.cache == "miss"
    assert [response.data for response in responses] == [b"0", b"0", b"2"]


@pytest.mark.parametrize(
    ("version", "is_current"), [("2", True), ("1", False)], ids=["other_version", "replaced"]
)
async def test_what_another_version_answered_is_not_kept(cache, version, is_current):
    work = Work(0, version=version)
    for _ in range(2):
        (response,) = await _ask(cache, work, is_current=lambda: is_current)
        assert response.version == version
    assert len(work.calls) == 2 and len(cache.memory) == 0


def _model(**changes) -> Model:
    fields = {
        "versions": ("1",),
        "max_batch_size": 0,
        "inputs": {},
        "outputs": {},
        "decoupled": False,
        "endpoint_schema": None,
        "probe": None,
        "deterministic": True,
        "revision": "abc",
        "only_version": "1",
        **changes,
    }
    return Model("m", **fields)


def _scope_of(cache, model, context=None, age_s=0.0, **more) -> CacheScope | None:
    catalogue = Catalogue({"m": model})
    as_of = time.monotonic() - age_s
    return cache.scope(context or _context(), catalogue, as_of, "m", **more)


def test_what_is_cached(cache):
    assert _scope_of(cache, _model()) == SCOPE
    assert _scope_of(cache, _model(only_version=""), version="1") == SCOPE
    assert _scope_of(cache, _model(versions=("1", "2"))) == SCOPE  # 2 is on a dead replica
    assert _scope_of(cache, _model(), _context(cache_control="max-age=0")) == SCOPE
    assert _scope_of(cache, _model(), parameters=["top"]) == SCOPE


@pytest.mark.parametrize(
    ("model", "more"),
    [
        pytest.param(_model(deterministic=False), {}, id="undeclared"),
        pytest.param(_model(decoupled=True), {}, id="decoupled"),
        pytest.param(_model(sequences=SequenceSlots(1, 1.0)), {}, id="stateful"),
        pytest.param(_model(only_version=""), {}, id="two_versions"),
        pytest.param(_model(revision=""), {"version": "1"}, id="unknown_steps"),
        pytest.param(_model(), {"parameters": ["sequence_id"]}, id="sequence"),
        pytest.param(_model(), {"age_s": FRESH_S + 1}, id="stale_catalogue"),
        pytest.param(
            _model(), {"context": _context(cache_control="No-Store, max-age=0")}, id="no_store"
        ),
    ],
)
def test_what_is_not_cached(cache, model, more):
    assert _scope_of(cache, model, **more) is None


def test_a_header_that_is_there_twice_counts_twice(cache):
    context = _context()
    context.scope["headers"] = [(b"cache-control", b"no-store"), (b"cache-control", b"max-age=0")]
    context.headers = dict(context.scope["headers"])
    assert _scope_of(cache, _model(), context) is None


async def test_memory_is_divided_among_the_workers():
    cache = ResponseCache(Settings(cache_mib=8, workers=4))
    assert cache.memory.limit_bytes == 2 * 2**20


def test_a_model_whose_versions_differ_for_long_is_reported_once(cache, monkeypatch, caplog):
    caplog.set_level("INFO", logger="gateway")
    now = time.monotonic()
    monkeypatch.setattr("gateway.response_cache.cache.time.monotonic", lambda: now)
    differing = Catalogue({"m": _model(only_version=""), "other": _model(deterministic=False)})
    cache.keep_served(differing)
    now += UNCERTAIN_S - 1  # a rollout
    cache.keep_served(differing)
    assert not caplog.messages
    for _ in range(2):
        now += 1
        cache.keep_served(differing)
    (message,) = caplog.messages
    assert message.startswith("the response cache leaves out m: ")
    for _ in range(2):
        cache.keep_served(Catalogue({"m": _model()}))
    assert caplog.messages[1:] == ["the response cache leaves out m no longer"]


class Redis:
    """What it was given."""

    def __init__(self) -> None:
        self.stored: dict[bytes, float] = {}

    async def get(self, key: bytes) -> None:
        return None

    def put(self, key: bytes, response: bytes, remaining_s: float) -> None:
        self.stored[key] = remaining_s


@pytest.mark.parametrize("is_sick", [False, True])
async def test_redis_gets_what_is_still_trusted_a_while_later(cache, monkeypatch, is_sick):
    redis = Redis()
    monkeypatch.setattr(cache, "redis", redis)
    served = Catalogue({"m": _model()})
    await _ask(cache, Work(0))
    cache.keep_served(served)
    assert redis.stored == {}
    if is_sick:
        cache.keep_served(served, frozenset({"m"}))
        assert len(cache.memory) == 0
        assert cache.scope(_context(), served, time.monotonic(), "m") is None
    monkeypatch.setattr("gateway.response_cache.cache.CONFIRM_S", 0)
    cache.keep_served(served)
    assert [*redis.stored] == ([] if is_sick else [KEY])


async def test_what_was_computed_anew_waits_anew_and_has_the_rest_of_its_time(cache, monkeypatch):
    """The response that a later one has replaced does not vouch for it."""
    redis, served = Redis(), Catalogue({"m": _model()})
    monkeypatch.setattr(cache, "redis", redis)
    now_s = 100.0
    clock = SimpleNamespace(monotonic=lambda: now_s, perf_counter=time.perf_counter)
    monkeypatch.setattr("gateway.response_cache.cache.time", clock)
    await _ask(cache, Work(0))
    now_s += CONFIRM_S - 1
    await _ask(cache, Work(0), _context(cache_control="no-cache"))
    now_s += 2
    cache.keep_served(served)
    assert redis.stored == {}
    now_s += CONFIRM_S
    cache.keep_served(served)
    ttl_s = Settings().cache_ttl_s
    assert ttl_s - 60 < redis.stored[KEY] < ttl_s


async def test_redis_gets_what_was_answered_before_a_golden_sample_that_was_right(cache):
    """While golden samples are late, nobody knows whether the model is right."""
    redis, served = Redis(), Catalogue({"m": _model()})
    cache.redis = redis
    before = time.monotonic()
    await _ask(cache, Work(0))
    cache.keep_served(served, right_as_of={"m": before})
    assert redis.stored == {}
    cache.keep_served(served, right_as_of={"m": time.monotonic()})
    assert [*redis.stored] == [KEY]


async def test_what_was_never_confirmed_is_forgotten_when_it_expires(cache, monkeypatch):
    redis, served = Redis(), Catalogue({"m": _model()})
    cache.redis = redis
    await _ask(cache, Work(0))
    late = time.monotonic() + Settings().cache_ttl_s + 1
    clock = SimpleNamespace(monotonic=lambda: late, perf_counter=time.perf_counter)
    monkeypatch.setattr("gateway.response_cache.cache.time", clock)
    cache.keep_served(served, right_as_of={"m": 0.0})
    assert cache._unconfirmed == {}
    cache.keep_served(served, right_as_of={"m": late})
    assert redis.stored == {}
