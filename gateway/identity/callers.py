"""Identifies the caller by whatever credential the request carries, for every API alike."""

from typing import TYPE_CHECKING

from starlette.types import Scope

from gateway.identity.credentials import bearer
from gateway.identity.keys import KeyRing
from gateway.policy.gateway_toml import Rules
from gateway.policy.principal import Principal

if TYPE_CHECKING:
    from gateway.identity.certificates import Certificates
    from gateway.identity.tokens import Tokens


class Callers:
    """API keys, tokens and certificates behind one method."""

    def __init__(self, keys: KeyRing, rules: Rules) -> None:
        self._keys = keys
        self._tokens: Tokens | None = None
        self._certificates: Certificates | None = None
        self._configure(rules)

    def apply(self, rules: Rules) -> None:
        """Apply a new gateway.toml; needs a running loop, which fetches the issuers' keys."""
        self._configure(rules)
        self.keep_fresh()

    def _configure(self, rules: Rules) -> None:
        """Imports only what the rules configure."""
        previous, self._tokens, self._certificates = self._tokens, None, None
        if rules.issuers:
            from gateway.identity.tokens import Tokens

            self._tokens = Tokens(rules.issuers, previous)
        if rules.certificates:
            from gateway.identity.certificates import Certificates

            self._certificates = Certificates(rules)

    @property
    def generation(self) -> int:
        """Increases when keys change, including the issuers' keys."""
        return self._keys.generation + (self._tokens.generation if self._tokens else 0)

    def keep_fresh(self) -> None:
        """Refetch the issuers' old keys in the background; needs a running loop."""
        if self._tokens:
            self._tokens.keep_fresh()

    async def identify(self, scope: Scope, authorization: bytes | None) -> Principal:
        """The caller. Raises Unauthenticated, or NoCapacity while a token's issuer is unreachable.

        If there is a header, it alone decides: a bad key is refused whatever the certificate is.
        """
        if authorization is None and self._certificates:
            principal = self._certificates.principal(scope)
            if principal:
                return principal
        credential = bearer(authorization)
        if self._tokens and credential.count(".") == 2:  # no API key has a dot
            return await self._tokens.verify(credential)
        return self._keys.holder(credential)
