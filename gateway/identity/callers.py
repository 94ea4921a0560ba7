"""Who is calling, by whatever the request shows: the one question that every door asks first."""

from typing import Any

from starlette.types import Scope

from gateway.addons import load
from gateway.identity.keys import KeyRing
from gateway.identity.principal import Principal, bearer
from gateway.policy.gateway_toml import Rules


class Callers:
    """API keys, tokens and certificates behind one method."""

    def __init__(self, keys: KeyRing, rules: Rules) -> None:
        self._keys = keys
        self._tokens: Any = None
        self._follow(rules)

    def adopt(self, rules: Rules) -> None:
        """Follow a new gateway.toml; needs a running loop, which fetches the issuers' keys."""
        self._follow(rules)
        self.keep_fresh()

    def _follow(self, rules: Rules) -> None:
        self._tokens = load("tokens")(rules.issuers, self._tokens) if rules.issuers else None
        self._certificates = load("certificates")(rules) if rules.certificates else None

    @property
    def generation(self) -> int:
        """Grows when keys change, the issuers' among them."""
        return self._keys.generation + (self._tokens.generation if self._tokens else 0)

    def keep_fresh(self) -> None:
        """Fetch issuers' keys that are old, in the background; needs a running loop."""
        if self._tokens:
            self._tokens.keep_fresh()

    async def identify(self, scope: Scope, authorization: bytes | None) -> Principal:
        """The caller; Unauthenticated, or NoCapacity while a token's issuer is away.

        A header that is there decides alone: a bad key is refused whatever certificate was shown.
        """
        if authorization is None and self._certificates:
            shown: Principal | None = self._certificates.principal(scope)
            if shown:
                return shown
        credential = bearer(authorization)
        if self._tokens and credential.count(".") == 2:  # no API key has a dot
            principal: Principal = await self._tokens.verify(credential)
            return principal
        return self._keys.verify(authorization)
