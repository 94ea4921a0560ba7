"""Who is calling, by whatever the request shows: the one question that every door asks first."""

from starlette.types import Scope

from gateway.addons.certificates import Certificates
from gateway.addons.tokens.tokens import Tokens
from gateway.identity.keys import KeyRing
from gateway.identity.principal import Principal, bearer
from gateway.policy.gateway_toml import Rules


class Callers:
    """API keys, tokens and certificates behind one method."""

    def __init__(self, keys: KeyRing, rules: Rules) -> None:
        self._keys = keys
        self._tokens, self._certificates = Tokens(rules.issuers), Certificates(rules)

    def adopt(self, rules: Rules) -> None:
        """Follow a new gateway.toml; needs a running loop, which fetches the issuers' keys."""
        tokens = Tokens(rules.issuers, self._tokens)
        tokens.keep_fresh()
        self._tokens, self._certificates = tokens, Certificates(rules)

    async def identify(self, scope: Scope, authorization: bytes | None) -> Principal:
        """The caller; Unauthenticated, or NoCapacity while a token's issuer is away.

        A header that is there decides alone: a bad key is refused whatever certificate was shown.
        """
        if authorization is None:
            shown = self._certificates.principal(scope)
            if shown:
                return shown
        credential = bearer(authorization)
        if credential.count(".") == 2:  # no API key has a dot
            return await self._tokens.verify(credential)
        return self._keys.verify(authorization)
