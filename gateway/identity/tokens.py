"""JSON Web Tokens: verified against their issuer's keys, and mapped to a principal.

A verified token is cached under its SHA-256 until it expires: a dict lookup from then on.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from gateway.identity.credentials import refused
from gateway.identity.jwks import Jwks
from gateway.policy.gateway_toml import Issuer
from gateway.policy.principal import DEFAULT_TENANT, Grant, Principal

MAX_TOKEN_BYTES = 16 * 1024
MAX_SUBJECT = 256
MAX_REMEMBERED = 10_000
MAX_VALUES = 100  # of a claim that becomes part of the grant: models, above all
# Control characters, line ends and lone surrogates: in nobody's name, and trouble for whatever
# writes a name down.
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_INVALID = (jwt.PyJWTError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class _IssuerKeys:
    """An issuer in gateway.toml, with its keys."""

    name: str
    rules: Issuer
    jwks: Jwks


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    expires: float  # seconds since the epoch
    jwks: Jwks
    generation: int


class Tokens:
    """Verifies the tokens of the issuers in one gateway.toml; their keys outlive a reload."""

    def __init__(self, issuers: Mapping[str, Issuer], previous: "Tokens | None" = None) -> None:
        known: dict[str, _IssuerKeys] = previous._by_url if previous else {}
        self._by_url: dict[str, _IssuerKeys] = {
            rules.issuer: _IssuerKeys(name, rules, _jwks(rules, known.get(rules.issuer)))
            for name, rules in issuers.items()
        }
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, token: str) -> Principal:
        """The token's principal. Raises Unauthenticated, or NoCapacity while its issuer is
        unreachable."""
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._cache.get(digest)
        if cached and cached.expires > time.time() and cached.generation == cached.jwks.generation:
            cached.jwks.keep_fresh()
            self._cache.move_to_end(digest)
            return cached.principal
        try:
            verified = await self._verify(token)
        except _INVALID:
            raise refused() from None
        self._cache[digest] = verified
        if len(self._cache) > MAX_REMEMBERED:
            self._cache.popitem(last=False)
        return verified.principal

    @property
    def generation(self) -> int:
        """Increases when the keys of an issuer change."""
        return sum(issuer.jwks.generation for issuer in self._by_url.values())

    def keep_fresh(self) -> None:
        """Fetch keys that are old or missing, in the background."""
        for issuer in self._by_url.values():
            issuer.jwks.keep_fresh()

    async def _verify(self, token: str) -> _Verified:
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError("too long")
        unverified = jwt.decode_complete(token, options={"verify_signature": False})
        issuer = self._by_url[_allowed(unverified["payload"].get("iss"), self._by_url)]
        kid, algorithm = _check_header(unverified["header"], issuer.rules)
        key = await issuer.jwks.key(kid, algorithm)
        if key is None:
            raise ValueError("no such key")
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=issuer.rules.audience,
            issuer=issuer.rules.issuer,
            leeway=issuer.rules.leeway_s,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        expires = float(claims["exp"])
        principal = _principal(issuer, claims, expires + issuer.rules.leeway_s)
        return _Verified(principal, expires, issuer.jwks, issuer.jwks.generation)


def _jwks(rules: Issuer, previous: _IssuerKeys | None) -> Jwks:
    if previous and previous.rules.jwks_uri == rules.jwks_uri:
        return previous.jwks
    return Jwks(rules.issuer, rules.jwks_uri)


def _check_header(header: Mapping[str, object], rules: Issuer) -> tuple[str, str]:
    """The header's kid and algorithm. Raises ValueError for any that the rules do not allow.

    Everything else in it (jku, x5u, jwk, x5c) is only the sender's claim, and ignored.
    """
    if "crit" in header or "b64" in header:
        raise ValueError("extensions are not supported")
    types = {name.lower() for name in rules.types}
    _allowed(str(header.get("typ", "")).lower().removeprefix("application/"), types)
    kid = header.get("kid", "")
    if not isinstance(kid, str) or len(kid) > MAX_SUBJECT:
        raise ValueError("kid")
    return kid, _allowed(header.get("alg"), rules.algorithms)


def _allowed(value: Any, allowed: Any) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError("not allowed")
    return value


def _principal(issuer: _IssuerKeys, claims: Mapping[str, Any], ends: float) -> Principal:
    """The caller as gateway.toml maps the claims. Raises ValueError if one is not usable."""
    rules, subject = issuer.rules, claims["sub"]
    _checked_names([subject])
    tenant = rules.tenant or DEFAULT_TENANT
    if rules.tenant_claim:
        (tenant,) = _values(claims, rules.tenant_claim)
    values = _values(claims, rules.roles_claim) if rules.roles_claim else []
    mapped_roles = [rules.roles[value] for value in values if value in rules.roles]
    roles = {*rules.default_roles, *mapped_roles}
    models = _values(claims, rules.models_claim) if rules.models_claim else ["*"]
    if len(models) > MAX_VALUES:
        raise ValueError("too many models")
    (tenant,) = _checked_names([tenant])
    grant = Grant(tenant, tuple(sorted(roles)), _checked_names(models))
    return Principal(f"jwt:{issuer.name}:{subject}", subject, grant, ends)


def _checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises ValueError for one that is empty, too long, or has characters
    that no name has."""
    result = tuple(names)
    if any(not 0 < len(name) <= MAX_SUBJECT or _NOT_IN_NAMES.search(name) for name in result):
        raise ValueError("not a name")
    return result


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """A claim's strings; a single string is split at spaces. ``a.b`` is b in a, unless there is a
    claim of that name."""
    claim: Any = claims
    for part in [name] if name in claims else name.split("."):
        claim = claim.get(part) if isinstance(claim, Mapping) else None
    values = claim.split() if isinstance(claim, str) else claim
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, str)]
