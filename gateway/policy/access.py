"""The rights that gateway.toml grants, decided once per caller, action and model.

A caller may do what one of its roles and its scopes allow, on models that match the globs of the
role, of the tenant and of the caller. Anything else is denied. A role with the action ``admin`` is
for operators: the tenant does not restrict it.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeVar

from gateway.errors import Forbidden, no_model, quoted
from gateway.limits.limit import Check, Limit, Subject, checks_of
from gateway.policy.gateway_toml import Role, Rules
from gateway.policy.principal import ACTIONS, Grant, Principal

K = TypeVar("K")
V = TypeVar("V")
# Names come from clients, so their number must be bounded.
MAX_DECISIONS, MAX_NAME = 20_000, 256


class Access:
    """Created anew for each gateway.toml, so that no decision outlives the rules it came from."""

    def __init__(self, rules: Rules, within: "Access | None" = None) -> None:
        """With ``within``, a right must be granted by both."""
        self._rules, self._within = rules, within
        self._decisions: dict[tuple[Grant, str, str], bool] = {}
        self._limits: dict[tuple[str, str, str], tuple[Limit, ...]] = {}
        self._checks: dict[tuple[str, str, str], tuple[Check, ...]] = {}  # of 0 tokens

    def allowed(self, principal: Principal, action: str, model: str = "") -> bool:
        """Whether the caller may do this with the model; without a model, with any at all."""
        key = (principal.grant, action, model)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(*key)
            if self._within:
                decision = decision and self._within.allowed(principal, action, model)
            _remember(self._decisions, key, decision, model)
        return decision

    def check(self, principal: Principal, action: str, model: str = "") -> None:
        """Raises NotFound if the caller may do nothing with the model, Forbidden if not this."""
        if self.allowed(principal, action, model):
            return
        if not model or any(self.allowed(principal, other, model) for other in ACTIONS):
            suffix = f" with {quoted(model)}" if model else ""
            raise Forbidden(f"you may not {action}{suffix}: ask for a role or scope that allows it")
        # Word for word the catalogue's error for a model that does not exist.
        raise no_model(model)

    def limits(self, principal: Principal, model: str) -> tuple[Limit, ...]:
        """The limits of gateway.toml that count a request of this caller for this model."""
        key = (principal.id, principal.tenant, model)
        limits = self._limits.get(key)
        if limits is None:
            limits = _lowest(limit for limit in self._rules.limits if _counts(limit, *key))
            _remember(self._limits, key, limits, model)
        return limits

    def checks(self, principal: Principal, model: str, tokens: float = 0) -> Sequence[Check]:
        """What one request of this caller takes from these limits; ``tokens`` are reserved."""
        subject = Subject(principal.tenant, principal.id, model)
        if tokens:
            return checks_of(self.limits(principal, model), subject, tokens)
        checks = self._checks.get(subject)
        if checks is None:
            checks = tuple(checks_of(self.limits(principal, model), subject))
            _remember(self._checks, subject, checks, model)
        return checks

    def _decide(self, grant: Grant, action: str, model: str) -> bool:
        if action not in grant.scopes:
            return False
        candidates = (self._rules.role(name) for name in grant.roles)
        roles = [role for role in candidates if role and action in role.actions]
        return any(self._reaches(role, grant, model) for role in roles)

    def _reaches(self, role: Role, grant: Grant, model: str) -> bool:
        bounds = [tuple(role.models), grant.models]
        if "admin" not in role.actions:
            bounds.append(self._tenant_models(grant.tenant))
        return all(_matches(globs, model) for globs in bounds)

    def _tenant_models(self, tenant: str) -> tuple[str, ...]:
        """A file without tenants means one tenant, which reaches every model."""
        if not self._rules.tenants:
            return ("*",)
        table = self._rules.tenants.get(tenant)
        return tuple(table.models) if table else ()


def tenants_without_fallback(rules: Rules) -> dict[str, list[str]]:
    """Each pipeline with a fallback -> the tenants that may use it and not its fallback, if there
    are any: that does not answer for them."""
    access = Access(rules)
    without: dict[str, list[str]] = {}
    for name, pipeline in rules.pipelines.items():
        for tenant in rules.tenants:
            models = access._tenant_models(tenant)
            if _matches(models, name) and not _matches(models, pipeline.fallback):
                without.setdefault(name, []).append(tenant)
    return without


def _remember(cache: dict[K, V], key: K, value: V, model: str) -> None:
    if len(cache) >= MAX_DECISIONS:
        cache.clear()
    if len(model) <= MAX_NAME:
        cache[key] = value


def _lowest(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """The lowest of each group of limits that share a bucket: a request counts there once."""
    lowest: dict[str, Limit] = {}
    for limit in limits:
        other = lowest.get(limit.identity)
        if other is None or limit.amount < other.amount:
            lowest[limit.identity] = limit
    return tuple(lowest.values())


def _counts(limit: Limit, principal: str, tenant: str, model: str) -> bool:
    """Whether the limit counts a request of this caller for this model."""
    patterns = ((limit.principals, principal), (limit.tenants, tenant), (limit.models, model))
    return all(_matches(tuple(globs), name) for globs, name in patterns)


def _matches(globs: tuple[str, ...], model: str) -> bool:
    return bool(globs) if not model else _pattern(globs).match(model) is not None


@lru_cache(1024)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")
