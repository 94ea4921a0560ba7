"""An issuer's keys: fetched once, kept while the issuer is unreachable, and used for no other
algorithm."""

import asyncio
import time

import pytest

from gateway.errors import NoCapacity
from gateway.identity import jwks
from gateway.identity.jwks import Jwks, read_keys
from tests.gateway.issuer import DISCOVERY, JWKS, Issuer, SigningKey


@pytest.fixture(scope="module")
def server():
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def issuer(server):
    server.keys = server.keys[:1]
    server.requests.clear()
    server.faults.clear()
    server.documents.clear()
    server.delay_s = 0.0
    server.may_respond.set()
    return server


async def test_the_keys_are_found_by_discovery(issuer):
    key = await Jwks(issuer.url).key("one", "RS256")
    assert key is not None
    assert issuer.requests == [DISCOVERY, JWKS]


async def test_a_given_address_needs_no_discovery(issuer):
    assert await Jwks("https://elsewhere.example", issuer.url + JWKS).key("one", "RS256")
    assert issuer.requests == [JWKS]


async def test_a_hundred_first_tokens_are_one_fetch(issuer):
    issuer.delay_s = 0.05
    keys = Jwks(issuer.url)
    results = await asyncio.gather(*(keys.key("one", "RS256") for _ in range(100)))
    assert all(results)
    assert issuer.requests == [DISCOVERY, JWKS]


async def test_a_client_that_leaves_does_not_end_the_fetch_of_others(issuer):
    issuer.delay_s = 0.1
    keys = Jwks(issuer.url)
    leaver = asyncio.create_task(keys.key("one", "RS256"))
    stayer = asyncio.create_task(keys.key("one", "RS256"))
    await asyncio.sleep(0.02)
    leaver.cancel()
    assert await stayer
    assert issuer.requests == [DISCOVERY, JWKS]


async def test_fetching_does_not_block_the_loop(issuer):
    issuer.may_respond.clear()
    task = asyncio.create_task(Jwks(issuer.url).key("one", "RS256"))
    while not issuer.requests:  # noqa: ASYNC110 - a thread receives it
        await asyncio.sleep(0.001)
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert not task.done()  # the loop went round while the issuer had not responded
    issuer.may_respond.set()
    assert await task


async def test_unknown_kids_cause_one_fetch_per_cool_down(issuer):
    keys = Jwks(issuer.url)
    assert await keys.key("one", "RS256")
    issuer.requests.clear()
    assert [await keys.key(f"kid-{n}", "RS256") for n in range(50)] == [None] * 50
    assert issuer.requests == []  # it has just been read


async def test_a_new_key_is_found_after_the_cool_down(issuer, monkeypatch):
    keys = Jwks(issuer.url)
    assert await keys.key("one", "RS256")
    generation = keys.generation
    issuer.keys = [issuer.keys[0], SigningKey("two")]
    assert await keys.key("two", "RS256") is None
    monkeypatch.setattr(jwks, "COOL_DOWN_S", 0.0)
    monkeypatch.setattr("time.monotonic", lambda later=time.monotonic: later() + 11)
    assert await keys.key("two", "RS256")
    assert keys.generation == generation + 1


async def test_a_kid_that_is_not_there_is_not_looked_for_again(issuer, monkeypatch):
    monkeypatch.setattr(jwks, "COOL_DOWN_S", 0.0)
    keys = Jwks(issuer.url)
    assert await keys.key("gone", "RS256") is None
    issuer.requests.clear()
    assert await keys.key("gone", "RS256") is None
    assert issuer.requests == []


async def test_old_keys_are_fetched_again_while_they_serve(issuer, monkeypatch):
    monkeypatch.setattr(jwks, "FRESH_S", 0.05)
    monkeypatch.setattr(jwks, "COOL_DOWN_S", 0.01)
    keys = Jwks(issuer.url)
    assert await keys.key("one", "RS256")
    await asyncio.sleep(0.06)
    issuer.requests.clear()
    issuer.may_respond.clear()
    assert await keys.key("one", "RS256")
    while not issuer.requests:  # noqa: ASYNC110 - a thread receives it
        await asyncio.sleep(0.001)
    assert issuer.requests == [DISCOVERY]  # it has not responded yet: nobody waited


async def test_keys_serve_while_the_issuer_is_away_but_not_for_ever(issuer, monkeypatch):
    monkeypatch.setattr(jwks, "FRESH_S", 0.0)
    monkeypatch.setattr(jwks, "COOL_DOWN_S", 0.0)
    keys = Jwks(issuer.url)
    assert await keys.key("one", "RS256")
    issuer.faults = {DISCOVERY: 500}
    for _ in range(3):
        assert await keys.key("one", "RS256")
        await asyncio.sleep(0.02)
    monkeypatch.setattr(jwks, "STALE_S", 0.0)
    with pytest.raises(NoCapacity):
        await keys.key("one", "RS256")


async def test_an_issuer_that_is_away_from_the_start_is_a_503_and_is_asked_again(
    issuer, monkeypatch
):
    monkeypatch.setattr(jwks, "COOL_DOWN_S", 60.0)
    issuer.faults = {DISCOVERY: 503}
    keys = Jwks(issuer.url)
    for _ in range(5):
        with pytest.raises(NoCapacity) as away:
            await keys.key("one", "RS256")
    assert issuer.url not in away.value.message
    assert issuer.requests == [DISCOVERY]
    issuer.faults = {}
    monkeypatch.setattr("time.monotonic", lambda later=time.monotonic: later() + 61)
    assert await keys.key("one", "RS256")


async def test_a_slow_issuer_is_given_up(issuer, monkeypatch):
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.1)
    issuer.may_respond.clear()
    with pytest.raises(NoCapacity):
        await Jwks(issuer.url).key("one", "RS256")


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (DISCOVERY, {"issuer": "https://another.example", "jwks_uri": "https://another.example"}),
        (DISCOVERY, {"jwks_uri": "http://127.0.0.1/"}),
        (DISCOVERY, []),
        (DISCOVERY, b"not json"),
        (JWKS, b" " * (jwks.DOCUMENT_LIMIT_BYTES + 1)),
        (JWKS, {"keys": []}),
        (JWKS, {"keys": [{"kty": ["RSA"], "kid": "one"}]}),
        (JWKS, {"keys": {"kid": "one"}}),
        (JWKS, b"[" * 5000),
        (JWKS, None),
    ],
)
async def test_a_document_that_is_wrong_is_no_key(issuer, path, document):
    issuer.documents[path] = document if document is not None else []
    with pytest.raises(NoCapacity):
        await Jwks(issuer.url).key("one", "RS256")


@pytest.mark.parametrize("uri", ["http://example.com/keys", "file:///etc/passwd", "", 5])
async def test_keys_are_read_over_https_only(issuer, uri):
    issuer.documents[DISCOVERY] = {"issuer": issuer.url, "jwks_uri": uri}
    with pytest.raises(NoCapacity):
        await Jwks(issuer.url).key("one", "RS256")
    assert issuer.requests == [DISCOVERY]


async def test_no_redirect_is_followed(issuer):
    issuer.faults = {JWKS: 302}
    with pytest.raises(NoCapacity):
        await Jwks(issuer.url).key("one", "RS256")
    assert issuer.requests == [DISCOVERY, JWKS]


def test_a_key_serves_the_algorithms_of_its_type_only():
    keys = read_keys(
        {
            "keys": [
                SigningKey("rsa").jwk,
                SigningKey("rsa-ps", alg="PS256").jwk,
                SigningKey("ec", "ES256").jwk,
                SigningKey("encrypts", use="enc").jwk,
                {"kty": "oct", "kid": "secret", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"},
                {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            ]
        }
    )
    assert set(keys) == {"rsa", "rsa-ps", "ec"}
    assert set(keys["rsa"]) == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    assert set(keys["rsa-ps"]) == {"PS256"}
    assert set(keys["ec"]) == {"ES256"}
