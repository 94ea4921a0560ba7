"""From one gateway.toml to the next: what the new one grants that the previous one did not.

A file that is still being written, or was cut off, may also be a valid policy, and one that grants
more than the complete one: a limit, a tenant or a role may be missing. So rights are revoked at
once, and added only once the file is known to be complete (``gateway.policy.reload``).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from gateway.policy.gateway_toml import Certificate, Issuer, Role, Rules

T = TypeVar("T")


def covers(before: Rules, after: Rules) -> bool:
    """Whether ``after`` certainly grants nobody more than ``before``; False if that is not evident
    table by table."""
    return (
        all(limit in after.limits for limit in before.limits)
        and _tenants_cover(before, after)
        and all(_role_covers(before.role(name), after.role(name)) for name in _roles(before, after))
        and _has_all(before.issuers, after.issuers)
        and _has_all(before.certificates, after.certificates)
        and after.proxy in (None, before.proxy)
    )


def lost(before: Rules, after: Rules) -> list[str]:
    """What restricted callers before and is missing now, as after a cut: limits, and roles that
    were narrower than the built-in ones."""
    present = {(limit.name, limit.kind) for limit in after.limits}
    limits = [limit.name for limit in before.limits if (limit.name, limit.kind) not in present]
    roles = [name for name in before.roles if name not in after.roles and after.role(name)]
    return [*(f"limit {name}" for name in limits), *(f"role {name}" for name in roles)]


def narrowed(before: Rules, after: Rules) -> Rules:
    """``after``, restricted to identities and limits that grant no more than ``before``."""
    issuers = {
        name: _issuer(before.issuers[name], issuer)
        for name, issuer in after.issuers.items()
        if name in before.issuers
    }
    certificates = {
        name: _certificate(before.certificates[name], certificate)
        for name, certificate in after.certificates.items()
        if name in before.certificates
    }
    removed_limits = [limit for limit in before.limits if limit not in after.limits]
    return after.model_copy(
        update={
            "issuers": {name: issuer for name, issuer in issuers.items() if issuer},
            "certificates": {
                name: certificate for name, certificate in certificates.items() if certificate
            },
            "proxy": after.proxy if after.proxy == before.proxy else None,
            "limits": [*after.limits, *removed_limits],
        }
    )


def _roles(before: Rules, after: Rules) -> set[str]:
    return {"user", *before.roles, *after.roles}


def _tenants_cover(before: Rules, after: Rules) -> bool:
    if not before.tenants:
        return True  # there was one tenant, which reached every model
    return bool(after.tenants) and all(
        name in before.tenants and _within(tenant.models, before.tenants[name].models)
        for name, tenant in after.tenants.items()
    )


def _role_covers(before: Role | None, after: Role | None) -> bool:
    if before is None or after is None:
        return after is None
    return set(after.actions) <= set(before.actions) and _within(after.models, before.models)


def _within(globs: Sequence[str], bounds: Sequence[str]) -> bool:
    return "*" in bounds or set(globs) <= set(bounds)


def _has_all(before: Mapping[str, T], after: Mapping[str, T]) -> bool:
    return all(before.get(name) == table for name, table in after.items())


def _both(before: Iterable[T], after: Iterable[T]) -> list[T]:
    previous = list(before)
    return [value for value in after if value in previous]


def _globs(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Globs that match only what both of these match, as far as that is evident."""
    if "*" in after:
        return list(before)
    if "*" in before:
        return list(after)
    return _both(before, after)


def _issuer(before: Issuer, after: Issuer) -> Issuer | None:
    """An issuer whose tokens grant what both grant; None if that cannot be determined."""
    must_match = ("issuer", "jwks_uri", "tenant", "tenant_claim", "roles_claim")
    if any(getattr(before, name) != getattr(after, name) for name in must_match):
        return None
    claims = {before.models_claim, after.models_claim} - {None}
    audience = _both(before.audience, after.audience)
    algorithms = _both(before.algorithms, after.algorithms)
    if len(claims) > 1 or not audience or not algorithms:
        return None
    return after.model_copy(
        update={
            "audience": audience,
            "algorithms": algorithms,
            "types": _both(before.types, after.types),
            "leeway_s": min(before.leeway_s, after.leeway_s),
            "roles": dict(_both(before.roles.items(), after.roles.items())),
            "default_roles": _both(before.default_roles, after.default_roles),
            "models_claim": next(iter(claims), None),
        }
    )


def _certificate(before: Certificate, after: Certificate) -> Certificate | None:
    if before.tenant != after.tenant:
        return None
    return after.model_copy(
        update={
            "roles": _both(before.roles, after.roles),
            "models": _globs(before.models, after.models),
            "scopes": _both(before.scopes, after.scopes),
        }
    )
