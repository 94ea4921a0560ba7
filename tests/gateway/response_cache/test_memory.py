"""The memory of the response cache is bounded in bytes and in time."""

from gateway.response_cache.key import CacheScope
from gateway.response_cache.memory import ENTRY_BYTES, MemoryStore
from tests.gateway.clock import Clock

SCOPE = CacheScope("acme", "m", "1", "abc")
SIZE = 1000 - ENTRY_BYTES  # of a response that takes 1,000 bytes


def _key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _store(limit_bytes: int = 10_000, ttl_s: float = 60.0, clock=None) -> MemoryStore:
    return MemoryStore(limit_bytes, ttl_s, clock or Clock())


def test_the_least_recently_used_go_first():
    store = _store()
    for number in range(10):
        store.put(SCOPE, _key(number), bytes(SIZE))
    assert store.get(_key(0)) == bytes(SIZE)
    for number in range(10, 15):
        store.put(SCOPE, _key(number), bytes(SIZE))
    assert store.bytes == 10_000 and store.evicted == 5
    assert store.get(_key(0)) is not None
    assert [number for number in range(15) if store.get(_key(number)) is None] == [1, 2, 3, 4, 5]


def test_a_large_response_does_not_push_out_all_others():
    store = _store()
    store.put(SCOPE, _key(1), bytes(10))
    store.put(SCOPE, _key(2), bytes(2000))
    assert store.get(_key(2)) is None and store.get(_key(1)) == bytes(10)


def test_a_response_that_is_stored_again_counts_once():
    store = _store()
    for _ in range(3):
        store.put(SCOPE, _key(1), bytes(SIZE))
    assert (store.bytes, len(store)) == (1000, 1)


def test_a_response_ends_by_its_age():
    clock = Clock()
    store = _store(ttl_s=10, clock=clock)
    store.put(SCOPE, _key(1), b"x")
    clock.now = 9.9
    assert store.get(_key(1)) == b"x"
    clock.now = 10
    assert store.get(_key(1)) is None
    assert (store.bytes, len(store)) == (0, 0)


def test_a_response_that_is_not_new_is_kept_for_the_rest_of_its_time():
    clock = Clock()
    store = _store(ttl_s=10, clock=clock)
    for number, remaining_s in enumerate((3, 60, 0, -0.001)):
        store.put(SCOPE, _key(number), b"x", remaining_s)
    assert [store.get(_key(number)) for number in range(4)] == [b"x", b"x", None, None]
    clock.now = 3
    assert store.get(_key(0)) is None and store.get(_key(1)) == b"x"
    clock.now = 10  # Redis may have been given a longer time by another gateway's settings
    assert store.get(_key(1)) is None


def test_what_is_no_longer_served_is_dropped():
    store = _store()
    scopes = [
        SCOPE,
        SCOPE._replace(tenant="other"),
        SCOPE._replace(version="2"),
        SCOPE._replace(revision="def"),
    ]
    for number, scope in enumerate(scopes):
        store.put(scope, _key(number), b"x")
    store.keep_only({("m", "1", "abc")})
    assert [store.get(_key(number)) for number in range(4)] == [b"x", b"x", None, None]
    store.keep_only(())
    assert (store.bytes, len(store)) == (0, 0)
