"""JSON Web Tokens: verified against their issuer's keys, and mapped to a principal.

A token that was verified is remembered by its SHA-256 until it expires: a dict lookup from then on.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from gateway.identity.jwks import Jwks
from gateway.identity.principal import DEFAULT_TENANT, Grant, Principal, refused
from gateway.policy.gateway_toml import Issuer

MAX_TOKEN_BYTES = 16 * 1024
MAX_SUBJECT = 256
MAX_REMEMBERED = 10_000
MAX_VALUES = 100  # of a claim that becomes a part of the grant; models, above all
# Half characters, control characters and ends of lines: nobody's name, and trouble for whatever
# writes a name down.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WRONG = (jwt.PyJWTError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class _Issued:
    """An issuer of gateway.toml with its keys."""

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

    def __init__(self, issuers: Mapping[str, Issuer], before: "Tokens | None" = None) -> None:
        known: dict[str, _Issued] = before._by_url if before else {}
        self._by_url: dict[str, _Issued] = {
            rules.issuer: _Issued(name, rules, _jwks(rules, known.get(rules.issuer)))
            for name, rules in issuers.items()
        }
        self._seen: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, token: str) -> Principal:
        """Who the token speaks for; Unauthenticated, or NoCapacity while its issuer is away."""
        digest = hashlib.sha256(token.encode()).digest()
        seen = self._seen.get(digest)
        if seen and seen.expires > time.time() and seen.generation == seen.jwks.generation:
            seen.jwks.keep_fresh()
            self._seen.move_to_end(digest)
            return seen.principal
        try:
            verified = await self._verify(token)
        except _WRONG:
            raise refused() from None
        self._seen[digest] = verified
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return verified.principal

    @property
    def generation(self) -> int:
        """Grows when the keys of an issuer change."""
        return sum(each.jwks.generation for each in self._by_url.values())

    def keep_fresh(self) -> None:
        """Fetch keys that are old or not there yet, in the background."""
        for each in self._by_url.values():
            each.jwks.keep_fresh()

    async def _verify(self, token: str) -> _Verified:
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError("too long")
        claimed = jwt.decode_complete(token, options={"verify_signature": False})
        issued = self._by_url[_text(claimed["payload"].get("iss"), self._by_url)]
        kid, algorithm = _checked(claimed["header"], issued.rules)
        key = await issued.jwks.key(kid, algorithm)
        if key is None:
            raise ValueError("no such key")
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=issued.rules.audience,
            issuer=issued.rules.issuer,
            leeway=issued.rules.leeway_s,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        expires = float(claims["exp"])
        principal = _principal(issued, claims, expires + issued.rules.leeway_s)
        return _Verified(principal, expires, issued.jwks, issued.jwks.generation)


def _jwks(rules: Issuer, before: _Issued | None) -> Jwks:
    if before and before.rules.jwks_uri == rules.jwks_uri:
        return before.jwks
    return Jwks(rules.issuer, rules.jwks_uri)


def _checked(header: Mapping[str, Any], rules: Issuer) -> tuple[str, str]:
    """The header's kid and algorithm; ValueError for what this issuer is not trusted with.

    Everything else in it (jku, x5u, jwk, x5c) is the sender's word, and ignored.
    """
    if "crit" in header or "b64" in header:
        raise ValueError("extensions are not supported")
    types = {each.lower() for each in rules.types}
    _text(str(header.get("typ", "")).lower().removeprefix("application/"), types)
    kid = header.get("kid", "")
    if not isinstance(kid, str) or len(kid) > MAX_SUBJECT:
        raise ValueError("kid")
    return kid, _text(header.get("alg"), rules.algorithms)


def _text(value: Any, allowed: Any) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError("not allowed")
    return value


def _principal(issued: _Issued, claims: Mapping[str, Any], ends: float) -> Principal:
    """The caller as gateway.toml maps the claims; ValueError when one does not fit."""
    rules, subject = issued.rules, claims["sub"]
    _fitting([subject])
    tenant = rules.tenant or DEFAULT_TENANT
    if rules.tenant_claim:
        (tenant,) = _values(claims, rules.tenant_claim)
    claimed = _values(claims, rules.roles_claim) if rules.roles_claim else []
    roles = {*rules.default_roles, *(rules.roles[v] for v in claimed if v in rules.roles)}
    models = _values(claims, rules.models_claim) if rules.models_claim else ["*"]
    if len(models) > MAX_VALUES:
        raise ValueError("too many models")
    (tenant,) = _fitting([tenant])
    grant = Grant(tenant, tuple(sorted(roles)), _fitting(models))
    return Principal(f"jwt:{issued.name}:{subject}", subject, grant, ends)


def _fitting(names: Iterable[str]) -> tuple[str, ...]:
    """The names; ValueError for one that is empty, long, or holds what no name has."""
    found = tuple(names)
    if any(not 0 < len(name) <= MAX_SUBJECT or _UNFIT.search(name) for name in found):
        raise ValueError("not a name")
    return found


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """A claim's texts; one is split at spaces. ``a.b`` is b in a, unless a claim is called so."""
    found: Any = claims
    for part in [name] if name in claims else name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    values = found.split() if isinstance(found, str) else found
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
