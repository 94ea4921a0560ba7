"""The rights that gateway.toml gives, decided once for each caller, action and model.

A caller may do what a role of theirs and their scopes allow, on models that the role, the tenant
and the caller's own globs all reach. What nothing allows is denied. A role with the action
``admin`` is the operator's: the tenant does not bound it.
"""

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

from gateway.errors import Forbidden, no_model, quoted
from gateway.identity.principal import ACTIONS, Grant, Principal
from gateway.limits.limit import Limit
from gateway.policy.gateway_toml import Role, Rules

K = TypeVar("K")
V = TypeVar("V")
# Names come from clients: their number must be bounded.
MAX_DECISIONS, MAX_NAME = 20_000, 256


class Access:
    """Made anew for each gateway.toml, so that a decision never outlives the rules it came from."""

    def __init__(self, rules: Rules, within: "Access | None" = None) -> None:
        """``within``: what these rules give holds only where that gives it too."""
        self._rules, self._within = rules, within
        self._decisions: dict[tuple[Grant, str, str], bool] = {}
        self._limits: dict[tuple[str, str, str], tuple[Limit, ...]] = {}

    def allowed(self, principal: Principal, action: str, model: str = "") -> bool:
        """Whether the caller may do this to the model; without one, to anything at all."""
        key = (principal.grant, action, model)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(*key)
            if self._within:
                decision = decision and self._within.allowed(principal, action, model)
            _remember(self._decisions, key, decision, model)
        return decision

    def check(self, principal: Principal, action: str, model: str = "") -> None:
        """NotFound when nothing of the model is the caller's, Forbidden when only this is not."""
        if self.allowed(principal, action, model):
            return
        if not model or any(self.allowed(principal, each, model) for each in ACTIONS):
            what = f" with {quoted(model)}" if model else ""
            raise Forbidden(f"you may not {action}{what}: ask for a role or scope that allows it")
        # Word for word what the catalogue says of a model that does not exist.
        raise no_model(model)

    def limits(self, principal: Principal, model: str) -> tuple[Limit, ...]:
        """The limits of gateway.toml that count a request of this caller for this model."""
        key = (principal.id, principal.tenant, model)
        found = self._limits.get(key)
        if found is None:
            found = _each_once(each for each in self._rules.limits if _counts(each, *key))
            _remember(self._limits, key, found, model)
        return found

    def _decide(self, grant: Grant, action: str, model: str) -> bool:
        if action not in grant.scopes:
            return False
        found = (self._rules.role(name) for name in grant.roles)
        roles = [role for role in found if role and action in role.actions]
        return any(self._reaches(role, grant, model) for role in roles)

    def _reaches(self, role: Role, grant: Grant, model: str) -> bool:
        bounds = [tuple(role.models), grant.models]
        if "admin" not in role.actions:
            bounds.append(self._tenant_models(grant.tenant))
        return all(_matches(globs, model) for globs in bounds)

    def _tenant_models(self, tenant: str) -> tuple[str, ...]:
        """Without any tenant in the file there is one, and it reaches everything."""
        if not self._rules.tenants:
            return ("*",)
        found = self._rules.tenants.get(tenant)
        return tuple(found.models) if found else ()


def _remember(known: dict[K, V], key: K, value: V, model: str) -> None:
    if len(known) >= MAX_DECISIONS:
        known.clear()
    if len(model) <= MAX_NAME:
        known[key] = value


def _each_once(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Of limits that count in the same place, the lowest: a request has one place there."""
    found: dict[str, Limit] = {}
    for limit in limits:
        before = found.get(limit.identity)
        if before is None or limit.amount < before.amount:
            found[limit.identity] = limit
    return tuple(found.values())


def _counts(limit: Limit, principal: str, tenant: str, model: str) -> bool:
    wanted = ((limit.principals, principal), (limit.tenants, tenant), (limit.models, model))
    return all(_matches(tuple(globs), name) for globs, name in wanted)


def _matches(globs: tuple[str, ...], model: str) -> bool:
    return bool(globs) if not model else _pattern(globs).match(model) is not None


@lru_cache(1024)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")
