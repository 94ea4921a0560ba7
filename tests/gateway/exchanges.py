"""Exchanges as the edge makes them, for tests that call a door or the gateway directly."""

from gateway.http.exchange import Exchange
from gateway.identity.principal import Principal
from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE


def exchange_of(scope, receive, *, limit_bytes=2**20, deadline_s=5.0, access=None) -> Exchange:
    """An exchange of a caller who may do what ``access`` says: everything, if it says nothing."""
    exchange = Exchange(scope, receive, access or Access(NO_FILE), limit_bytes, deadline_s)
    exchange.principal = Principal("tester", "tester")
    return exchange
