"""Limits in one process, and the share that a process grants on its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import NoCapacity, QuotaExceeded
from gateway.limits.limit import Check, Subject, checks_of
from gateway.limits.limiter import Limiter, LimitReached
from gateway.limits.local import LocalStore
from tests.gateway.limits.made import limit_of

RPS = limit_of("key", "requests", 2)
AT_ONCE = limit_of("tenant", "concurrency", 2)
TOKENS = limit_of("model", "tokens", 600, 60)
SUBJECT = Subject("acme", "k1", "chat")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_all_or_nothing():
    limiter = Limiter(clock=Clock())
    checks = checks_of([RPS, AT_ONCE, TOKENS], SUBJECT, tokens=500)
    async with limiter.admit(checks):
        with pytest.raises(LimitReached, match="model limit of 600 tokens in 60 s"):
            async with limiter.admit(checks):
                pass
        # The refused one spent neither the second request nor the second slot.
        async with limiter.admit(checks_of([RPS, AT_ONCE, TOKENS], SUBJECT, tokens=100)):
            with pytest.raises(LimitReached, match="2 requests at once"):
                async with limiter.admit(checks_of([AT_ONCE], SUBJECT)):
                    pass


async def test_concurrency_is_freed_however_the_request_ends():
    limiter = Limiter()
    for error in (None, NoCapacity("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)) if error else pytest.raises(StopAsyncIteration):
            async with limiter.admit(checks_of([AT_ONCE], SUBJECT)):
                raise error or StopAsyncIteration
    assert len(limiter.local) == 0


@pytest.mark.parametrize(
    ("settled", "failed", "left"),
    [(100, False, 500), (599, False, 1), (None, False, 200), (None, True, 600), (50, True, 550)],
)
async def test_tokens_are_reserved_then_settled(settled, failed, left):
    limiter = Limiter(clock=Clock())
    try:
        async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=400)) as admission:
            if settled is not None:
                admission.settle(settled)
            if failed:
                raise NoCapacity("full")
    except NoCapacity:
        assert failed
    async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=left)) as admission:
        assert (b"x-ratelimit-remaining-tokens", b"0") in admission.headers()
    with pytest.raises(QuotaExceeded):
        async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=1)):
            pass


async def test_what_was_used_beyond_the_reservation_is_owed():
    clock = Clock()
    limiter = Limiter(clock=clock)
    async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=100)) as admission:
        admission.settle(700)
    with pytest.raises(LimitReached) as refused:
        async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=10)):
            pass
    assert refused.value.retry_after_s == 11


async def test_what_can_never_fit_is_refused_without_a_retry_time():
    with pytest.raises(LimitReached, match="601 tokens will never fit") as refused:
        async with Limiter().admit(checks_of([TOKENS], SUBJECT, tokens=601)):
            pass
    assert refused.value.retry_after_s is None
    assert (b"x-should-retry", b"false") in refused.value.headers


async def test_a_refusal_says_when_to_retry_and_then_the_request_is_admitted():
    clock = Clock()
    limiter = Limiter(clock=clock)
    checks = checks_of([limit_of("key", "requests", 1, 5)], SUBJECT)
    async with limiter.admit(checks):
        pass
    with pytest.raises(LimitReached) as refused:
        async with limiter.admit(checks):
            pass
    assert refused.value.retry_after_s == 5
    clock.now += 5
    async with limiter.admit(checks):
        pass


@pytest.mark.parametrize("limit", [RPS, AT_ONCE, TOKENS])
def test_each_subject_has_its_own(limit):
    store = LocalStore()
    other = Subject("other", "k2", "chat")
    assert store.admit(checks_of([limit], SUBJECT, limit.capacity, limit.capacity), 1.0).admitted
    assert store.admit(checks_of([limit], other, limit.capacity, limit.capacity), 1.0).admitted


@pytest.mark.parametrize(
    "other",
    [
        limit_of("key", "requests", 3),
        limit_of("key", "requests", 2, 60),
        limit_of("key", "requests", 2, 1, 5),
        limit_of("key", "requests", 2, models=["chat"]),
    ],
)
def test_limits_that_meet_are_counted_apart(other):
    checks = checks_of([RPS, other], SUBJECT)
    assert checks[0].bucket != checks[1].bucket
    assert LocalStore().admit(checks, 1.0).used == [1, 1]


def test_what_has_come_back_is_forgotten():
    store = LocalStore()
    for number in range(1000):
        store.admit(checks_of([RPS, TOKENS], Subject("acme", f"k{number}", f"m{number}"), 10), 5.0)
    assert len(store) == 2000
    store.sweep(5.6)
    assert len(store) == 1000  # tokens take longer
    store.sweep(6.1)
    assert len(store) == 0


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 60))
def test_shares_add_up_to_the_limit(gateways, burst, cost):
    """All gateways on their own: the burst and the rate, plus one request per gateway."""
    limit = limit_of("key", "requests", 10, 1, burst)
    cost = min(cost, burst)
    stores = [LocalStore(1 / gateways) for _ in range(gateways)]
    total = 0
    for tick in range(40):
        for store in stores:
            while store.admit([Check(limit, "bucket", cost)], 1000 + tick / 10).admitted:
                total += cost
    assert total <= burst + 10 * 4 + gateways * cost
    assert total >= cost * gateways  # a share smaller than a request still lets one through


def test_a_share_of_concurrency_is_at_least_one():
    store = LocalStore(1 / 8)
    checks = [Check(limit_of("key", "concurrency", 4), "bucket")]
    assert store.admit(checks, 1.0).admitted
    assert not store.admit(checks, 1.0).admitted


@pytest.mark.parametrize(
    "fields",
    [("you", "requests", 1), ("key", "bytes", 1), ("key", "requests", 0), ("key", "tokens", 1, 0),
     ("key", "requests", 1, 1, 0.5), ("key", "requests", 1, 1, 0, ['a#b']),
     ("key", "requests", 0.5), ("key", "tokens", float("nan"))],
)  # fmt: skip
def test_an_invalid_limit_says_what_to_write_instead(fields):
    with pytest.raises(ValueError, match=r"set burst|Input should be|should match"):
        limit_of(*fields)
