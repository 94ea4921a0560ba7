"""One issuer's signing keys, fetched in the background and kept while the issuer is unreachable.

A key is used only with the algorithms of its own type, so a public key is never taken for an HMAC
secret.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import httpx
import jwt
import orjson

from gateway.errors import NoCapacity
from gateway.policy.gateway_toml import is_trustworthy

log = logging.getLogger("gateway")
FRESH_S = 300.0  # older keys are fetched again, in the background
STALE_S = 86_400.0  # older keys are no longer used
COOL_DOWN_S = 10.0  # between two fetches, whatever the reason for them
ABSENT_S = 60.0  # a kid that was not found is not looked for again for this long
FETCH_TIMEOUT_S = 5.0
DOCUMENT_LIMIT_BYTES = 256 * 1024
MAX_KEYS, MAX_ABSENT = 100, 1000
RSA_MIN_BITS = 2048

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# (kty, crv) -> the algorithms that such a key may be used with; none for HMAC (kty oct)
ALGORITHMS: Mapping[tuple[Any, Any], tuple[str, ...]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
Keys = dict[str, dict[str, jwt.PyJWK]]  # kid -> algorithm -> key


class Jwks:
    """``key`` finds a signing key; one fetch at a time, at most one every ``COOL_DOWN_S``."""

    def __init__(self, issuer: str, jwks_uri: str | None = None) -> None:
        self._issuer, self._uri = issuer, jwks_uri
        self._keys: Keys = {}
        self._read_at = self._tried_at = float("-inf")  # time.monotonic
        self._absent: dict[str, float] = {}  # kid -> when it may be looked for again
        self._fetching: asyncio.Task[None] | None = None
        self.generation = 0  # increases when the keys change: tokens are then verified again

    async def key(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key, or None. Raises NoCapacity as long as the issuer has never responded."""
        self.keep_fresh()
        if kid not in self._usable_keys() and self._absent.get(kid, 0) < time.monotonic():
            await self._look_for(kid)
        keys = self._usable_keys()
        if not keys:
            raise NoCapacity(
                "the issuer of this token cannot be reached: try again shortly",
                retry_after_s=int(COOL_DOWN_S),
            )
        return keys.get(kid, {}).get(algorithm)

    def keep_fresh(self) -> None:
        """Fetch the keys in the background if they are old; needs a running loop."""
        if time.monotonic() - self._read_at > FRESH_S:
            self._fetch()

    def _usable_keys(self) -> Keys:
        return self._keys if time.monotonic() - self._read_at < STALE_S else {}

    async def _look_for(self, kid: str) -> None:
        fetch, read_before = self._fetch(), self._read_at
        if fetch:
            # Not ``await fetch``: cancelling one waiter must not cancel the fetch for the others.
            await asyncio.wait([fetch])
        if kid not in self._keys:
            if len(self._absent) >= MAX_ABSENT:
                self._absent.clear()
            was_read = self._read_at > read_before
            self._absent[kid] = time.monotonic() + (ABSENT_S if was_read else COOL_DOWN_S)

    def _fetch(self) -> "asyncio.Task[None] | None":
        """The fetch in progress, or a new one; None if it is too soon for one."""
        if self._fetching is None or self._fetching.done():
            if time.monotonic() - self._tried_at < COOL_DOWN_S:
                return None
            self._tried_at = time.monotonic()
            self._fetching = asyncio.get_running_loop().create_task(self._read())
        return self._fetching

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                document = await fetch_json(self._uri or await discover(self._issuer))
            keys = read_keys(document)
        except Exception as error:  # whatever the issuer sent: the previous keys stay
            log.warning("the keys of %s were not read: %s", self._issuer, error or "timeout")
            return
        if keys.keys() != self._keys.keys() or _raw(keys) != _raw(self._keys):
            self.generation += 1
            self._absent.clear()
        self._keys, self._read_at = keys, time.monotonic()


async def discover(issuer: str) -> str:
    """The issuer's jwks_uri. Raises ValueError if the document is another issuer's, or unsafe."""
    document = await fetch_json(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise ValueError("its openid-configuration belongs to another issuer")
    uri = document.get("jwks_uri")
    if not isinstance(uri, str) or not is_trustworthy(uri):
        raise ValueError("its jwks_uri is not an https URL")
    return uri


async def fetch_json(url: str) -> object:
    """A small JSON document; follows no redirect. Raises httpx.HTTPError, or ValueError if it is
    too large or not JSON."""
    body = bytearray()
    verify = await asyncio.to_thread(_tls)  # reading the system's certificates takes 20 ms
    headers = {"accept-encoding": "identity"}
    async with (
        httpx.AsyncClient(verify=verify, timeout=FETCH_TIMEOUT_S, headers=headers) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        async for part in response.aiter_raw():
            body += part
            if len(body) > DOCUMENT_LIMIT_BYTES:
                raise ValueError(f"the document is over {DOCUMENT_LIMIT_BYTES} bytes")
    return orjson.loads(body)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def read_keys(document: object) -> Keys:
    """The usable public keys of a JWKS. Raises ValueError if there is none."""
    keys: Keys = {}
    entries = document.get("keys") if isinstance(document, dict) else None
    for entry in entries[:MAX_KEYS] if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("kid", ""), str):
            by_algorithm = dict(_usable(entry))
            if by_algorithm:
                keys[entry.get("kid", "")] = by_algorithm
    if not keys:
        raise ValueError("its JWKS has no usable key")
    return keys


def _usable(raw: dict[str, Any]) -> Iterator[tuple[str, jwt.PyJWK]]:
    """One key for each algorithm that its type and its own ``alg`` allow."""
    is_private = "d" in raw
    if is_private or raw.get("use", "sig") != "sig" or "verify" not in raw.get("key_ops", "verify"):
        return
    for algorithm in ALGORITHMS.get((raw.get("kty"), raw.get("crv")), ()):
        if raw.get("alg", algorithm) != algorithm:
            continue
        try:
            key = jwt.PyJWK(raw, algorithm)
        except (jwt.PyJWTError, LookupError):
            continue
        if getattr(key.key, "key_size", RSA_MIN_BITS) >= RSA_MIN_BITS or raw["kty"] != "RSA":
            yield algorithm, key


def _raw(keys: Keys) -> list[object]:
    return [key._jwk_data for by_algorithm in keys.values() for key in by_algorithm.values()]
