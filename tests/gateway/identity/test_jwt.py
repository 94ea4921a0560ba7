"""Tokens: which are accepted, which are not, and that every refusal reads the same."""

import asyncio
import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from gateway.errors import Unauthenticated
from gateway.identity.callers import Callers
from gateway.identity.credentials import refused
from gateway.identity.keys import KeyRing
from gateway.policy.gateway_toml import Rules
from tests.gateway.issuer import JWKS, Issuer, SigningKey, fetches_ended

TENANTS = {"acme": {"models": ["text_*"]}, "other": {"models": ["*"]}}


@pytest.fixture(scope="module")
def server():
    issuer = Issuer()
    issuer.keys.append(SigningKey("ec", "ES256"))
    yield issuer
    issuer.close()


@pytest.fixture
def issuer(server):
    server.requests.clear()
    return server


def _rules(issuer, **fields):
    table = {
        "issuer": issuer.url,
        "audience": ["tidegate"],
        "algorithms": ["RS256"],
        "tenant": "acme",
        "default_roles": ["user"],
        **fields,
    }
    return Rules(
        tenants=TENANTS, issuers={"corp": {k: v for k, v in table.items() if v is not None}}
    )


@pytest.fixture
def callers_for(issuer, tmp_path):
    ring = KeyRing(tmp_path / "keys.toml", tmp_path / "pepper")
    return lambda **fields: Callers(ring, _rules(issuer, **fields))


async def _identify(callers, token):
    return await callers.identify({"headers": []}, b"Bearer " + token.encode())


async def _is_refused(callers, token):
    with pytest.raises(Unauthenticated) as error:
        await _identify(callers, token)
    assert error.value.message == refused().message
    return True


async def test_a_good_token_is_its_subject(issuer, callers_for):
    principal = await _identify(callers_for(), issuer.token())
    assert (principal.id, principal.name) == ("jwt:corp:ann", "ann")
    assert (principal.tenant, principal.grant.roles) == ("acme", ("user",))


async def test_a_verified_token_asks_nobody_again(issuer, callers_for):
    callers, token = callers_for(), issuer.token()
    first = await _identify(callers, token)
    issuer.requests.clear()
    assert await _identify(callers, token) is first
    assert issuer.requests == []


async def test_a_remembered_token_ends_when_it_expires(issuer, callers_for):
    callers = callers_for(leeway_s=0)
    token = issuer.token(exp=time.time() + 3)
    assert await _identify(callers, token)
    await asyncio.sleep(3.1)
    assert await _is_refused(callers, token)


async def test_a_withdrawn_key_invalidates_the_tokens_that_it_verified(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr("gateway.identity.jwks.FRESH_S", 0.05)
    monkeypatch.setattr("gateway.identity.jwks.COOL_DOWN_S", 0.0)
    issuer = Issuer()
    try:
        callers = Callers(KeyRing(tmp_path / "k", tmp_path / "p"), _rules(issuer))
        token = issuer.token()
        assert await _identify(callers, token)
        issuer.keys = [SigningKey("two")]
        with pytest.raises(Unauthenticated):
            for _ in range(200):
                await asyncio.sleep(0.02)
                await _identify(callers, token)
        await fetches_ended()
    finally:
        issuer.close()


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": 1},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"aud": None},
        {"aud": "another"},
        {"aud": {"tidegate": 1}},
        {"iss": None},
        {"iss": "https://another.example"},
        {"iss": ["https://another.example"]},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 300},
        {"sub": 5},
        {"sub": "\ud800"},
        {"sub": "ann\udfff"},
        {"sub": "ann\x00"},
        {"sub": "ann\nbob"},
        {"sub": "ann\x85"},
        {"sub": "ann\u2028"},
    ],
)
async def test_claims_that_are_wrong(issuer, callers_for, claims):
    assert await _is_refused(callers_for(), issuer.token(**claims))


@pytest.mark.parametrize(
    "claims",
    [
        {"org": "acme\ud800"},
        {"org": "acme\x00"},
        {"org": "a" * 300},
        {"org": ""},
        {"org": ["acme", "other"]},
        {"models": ["text_\udc00"]},
        {"models": ["m" * 300]},
        {"models": ["m"] * 101},
    ],
)
async def test_claims_that_no_name_can_hold(issuer, callers_for, claims):
    callers = callers_for(tenant=None, tenant_claim="org", models_claim="models")
    good = {"org": "acme", "models": ["text_*"]}
    assert (await _identify(callers, issuer.token(**good))).tenant == "acme"
    assert await _is_refused(callers, issuer.token(**{**good, **claims}))


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "refresh"},
        {"typ": None},
        {"kid": "unknown"},
        {"kid": "k" * 5000},
        {"crit": ["exp"]},
        {"crit": []},
    ],
)
async def test_headers_that_are_wrong(issuer, callers_for, header):
    assert await _is_refused(callers_for(), issuer.token(header=header))


async def test_the_clock_may_differ_by_the_leeway_and_no_more(issuer, callers_for):
    callers = callers_for(leeway_s=60)
    assert await _identify(callers, issuer.token(exp=time.time() - 50))
    assert await _identify(callers, issuer.token(nbf=time.time() + 50))
    assert await _is_refused(callers, issuer.token(exp=time.time() - 70))


async def test_types_are_a_list_of_gateway_toml(issuer, callers_for):
    assert await _identify(callers_for(), issuer.token(header={"typ": "application/AT+JWT"}))
    assert await _identify(callers_for(types=[""]), issuer.token(header={"typ": None}))


async def test_the_algorithm_is_the_issuers_choice_not_the_tokens(issuer, callers_for):
    by_curve = issuer.token(key=issuer.keys[1])
    assert await _is_refused(callers_for(), by_curve)
    assert await _identify(callers_for(algorithms=["ES256"]), by_curve)
    # the curve's kid with an RSA algorithm, and the other way round
    both = callers_for(algorithms=["RS256", "ES256"])
    assert await _is_refused(both, issuer.token(header={"kid": "ec"}))
    assert await _is_refused(both, issuer.token(key=issuer.keys[1], header={"kid": "one"}))


def _encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256"])
async def test_no_signature_and_no_hmac_with_the_public_key(issuer, callers_for, algorithm):
    public = issuer.keys[0].private.public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    header = {"alg": algorithm, "kid": "one", "typ": "JWT"}
    signed = _encoded(header) + b"." + _encoded(claims)
    mac = base64.urlsafe_b64encode(hmac.digest(pem, signed, "sha256")).rstrip(b"=")
    for signature in (b"", mac):
        token = (signed + b"." + signature).decode()
        assert await _is_refused(callers_for(), token)


async def test_a_key_that_the_token_brings_along_is_ignored(issuer, callers_for):
    attacker = Issuer()
    try:
        evil = SigningKey("one", owner="attacker")
        attacker.keys = [evil]
        header = {"jku": attacker.url + JWKS, "x5u": attacker.url + JWKS, "jwk": evil.jwk}
        forged = issuer.token(key=evil, header=header)
        assert await _is_refused(callers_for(), forged)
        assert await _is_refused(callers_for(), issuer.token(key=evil, iss=attacker.url))
        assert attacker.requests == []
    finally:
        attacker.close()


async def test_a_changed_character_anywhere_keeps_out(issuer, callers_for):
    callers, token = callers_for(), issuer.token()
    assert await _identify(callers, token)
    for index in range(0, len(token) - 1, 7):
        changed = "x" if token[index] != "x" else "y"
        assert await _is_refused(callers, token[:index] + changed + token[index + 1 :])


@pytest.mark.parametrize(
    "token",
    [
        "..",
        "a.b.c",
        ".." + "x" * 20000,
        "e30.e30.e30",
        _encoded([]).decode() + ".e30.e30",
        base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.e30",
        "\xff.\xfe.\xfd",
    ],
)
async def test_what_is_no_token_is_refused_like_any_other(callers_for, token):
    with pytest.raises(Unauthenticated) as error:
        await callers_for().identify({"headers": []}, b"Bearer " + token.encode("latin-1"))
    assert error.value.message == refused().message


async def test_claims_become_tenant_roles_and_models(issuer, callers_for):
    callers = callers_for(
        tenant=None,
        tenant_claim="org",
        roles_claim="realm_access.roles",
        roles={"ml-team": "user", "ops": "admin"},
        default_roles=None,
        models_claim="https://example.com/models",
    )
    token = issuer.token(
        org="acme",
        realm_access={"roles": ["ml-team", "admin", 7]},
        **{"https://example.com/models": "text_a text_b"},
    )
    grant = (await _identify(callers, token)).grant
    assert grant.tenant == "acme"
    assert grant.roles == ("user",)  # 'admin' is the issuer's word, not ours
    assert grant.models == ("text_a", "text_b")
    bare = await _identify(callers, issuer.token(org="acme"))
    assert (bare.grant.roles, bare.grant.models) == ((), ())
    assert await _is_refused(callers, issuer.token())  # of no tenant
    assert await _is_refused(callers, issuer.token(org=["acme", "other"]))


async def test_a_reload_keeps_the_issuers_keys(issuer, callers_for):
    callers, token = callers_for(), issuer.token()
    assert (await _identify(callers, token)).tenant == "acme"
    issuer.requests.clear()
    callers.apply(_rules(issuer, tenant="other"))
    assert (await _identify(callers, token)).tenant == "other"
    assert issuer.requests == []
    callers.apply(Rules())
    assert await _is_refused(callers, token)


def test_remembered_tokens_are_known_by_hash_only(issuer, callers_for):
    callers, token = callers_for(), issuer.token()
    asyncio.run(_identify(callers, token))
    cache = callers._tokens._cache
    assert list(cache) == [hashlib.sha256(token.encode()).digest()]
    assert token not in repr(cache)
